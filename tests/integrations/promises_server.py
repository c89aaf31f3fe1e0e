"""The promises that only a real server can try: keep-alive, pipelining, leaked context variables."""

from __future__ import annotations

import contextvars

import pytest

from deferred import DeferredContext, NoCurrentContextError, TaskFailed, current_context
from tests.integrations.adapter import Base
from tests.integrations.asgi_client import idle, raw
from tests.integrations.script import is_current

LARGE = 100_000  # bytes: more than uvicorn takes without pausing the connection
GET = b"GET %s HTTP/1.1\r\nhost: test\r\n\r\n"
POST = b"POST /body HTTP/1.1\r\nhost: test\r\ncontent-length: %d\r\n\r\n" % LARGE + b"x" * LARGE

number: contextvars.ContextVar[int] = contextvars.ContextVar("number")


class ServerPromises(Base):
    """Asked of every framework."""

    async def test_requests_of_one_connection_keep_their_variables_apart(self, script, supervisor):
        """S6, A60, B16, NX-17: over keep-alive, pipelined and after a large body, each request's work sees its own."""
        contexts: list[DeferredContext] = []

        async def work(ctx: DeferredContext) -> None:
            script.note(f"{number.get()} {is_current(ctx)}")

        def act(ctx: DeferredContext) -> None:
            number.set(len(contexts))
            contexts.append(ctx)
            ctx.defer(work, ctx)

        script.act = act
        mounted = [] if "/mounted/plain" in self.adapter.lacks else [GET % b"/mounted/plain"]
        requests = [GET % b"/plain", GET % b"/sync", POST, GET % b"/plain", POST, *mounted]
        async with self.adapter.serving(self.adapter.build(script, supervisor)) as port:
            for sent in (requests, requests[:2]):  # pipelined, on a connection of their own
                await raw(port, *sent)
            await idle(supervisor)
        assert len({id(ctx) for ctx in contexts}) == len(requests) + 2
        assert sorted(script.noted) == [f"{one} True" for one in range(len(requests) + 2)]
        assert number.get(None) is None
        with pytest.raises(NoCurrentContextError):
            current_context()

    @pytest.mark.parametrize("error", [ValueError("no"), SystemExit(1)])
    async def test_a_failing_task_leaves_server_and_connection_alone(self, script, supervisor, error):
        """A task that fails after its 200 closes no connection under the next request."""
        failed: list[TaskFailed] = []
        supervisor.add_hook(lambda event: isinstance(event, TaskFailed) and failed.append(event))

        async def fails() -> None:
            raise error

        script.act = lambda ctx: ctx.defer(fails)
        async with self.adapter.serving(self.adapter.build(script, supervisor)) as port:
            read = await raw(port, *[GET % b"/plain"] * 3)
            await idle(supervisor)
        assert read.count(b" 200 ") == 3
        assert [event.error for event in failed] == [error] * 3

    async def test_the_servers_shutdown_waits_for_the_work(self, script, supervisor):
        """What the requests have left is done when a real server has stopped."""
        script.act = lambda ctx: ctx.defer(script.work)
        async with self.adapter.serving(self.adapter.build(script, supervisor)) as port:
            await raw(port, GET % b"/plain")
        assert script.noted == ["work"]
