"""The raw ASGI middleware behind a real uvicorn: keep-alive, pipelining, leaked context variables."""

import asyncio
import contextlib
import contextvars

import pytest

from deferred import (
    ContextClosedError,
    NoCurrentContextError,
    Supervisor,
    current_context,
    defer,
)
from deferred.integrations.asgi import DeferredMiddleware, deferred_from
from tests.integrations.asgi_client import Client, idle, raw, serving, turns
from tests.integrations.raw_app import RawApp, answer
from tests.integrations.script import Script, late

LARGE = 100_000
GET = b"GET /%s HTTP/1.1\r\nhost: test\r\n\r\n"
POST = b"POST /%s HTTP/1.1\r\nhost: test\r\ncontent-length: %d\r\n\r\n"


async def test_requests_of_one_connection_keep_their_contexts_apart():
    """Over keep-alive, pipelined and after a large body, every request finds its own context and runs its work."""
    supervisor = Supervisor()
    seen, ran = [], []

    async def work(path, ctx):
        ran.append((path, current_context() is ctx))

    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            await RawApp(Script(), bare=True).lifespan(receive, send)
            return
        while (await receive()).get("more_body"):
            pass
        ctx = current_context()
        assert deferred_from(scope) is ctx
        seen.append(ctx)
        defer(work, scope["path"], ctx)
        await answer(send, 200, scope["path"].encode())

    requests = [GET % b"1", GET % b"2", POST % (b"3", LARGE) + b"x" * LARGE, GET % b"4"]
    async with serving(DeferredMiddleware(app, supervisor)) as port:
        read = await raw(port, *requests)
        await idle(supervisor)
    assert [f"/{n}".encode() in read for n in range(1, 5)] == [True] * 4
    assert len({id(ctx) for ctx in seen}) == 4
    assert ran == [(f"/{n}", True) for n in range(1, 5)]


async def test_a_context_leaked_by_the_server_is_closed_and_attaches_to_nothing():
    """Context variables that a server carries over from an ended request lead to an error, never to another's work."""
    supervisor = Supervisor()
    leaked = contextvars.copy_context()
    outcomes = []

    async def app(scope, receive, send):
        await answer(send, 200, b"")
        if scope["path"] == "/first":
            nonlocal leaked
            leaked = contextvars.copy_context()

    async def unwrapped(scope, receive, send):
        try:
            defer(turns, 1)
        except ContextClosedError as error:
            outcomes.append(type(error))
        await answer(send, 200, b"")

    wrapped = DeferredMiddleware(app, supervisor)
    async with supervisor:
        client = Client(wrapped)
        await client.get("/first")
        await client.open("GET", "/second").start(leaked).done()
        await Client(unwrapped).open("GET", "/third").start(leaked).done()
        with pytest.raises(NoCurrentContextError):
            current_context()
    assert outcomes == [ContextClosedError]
    assert supervisor.stats().succeeded == 0


async def test_a_failing_task_leaves_the_connection_open():
    """A task that fails after its 200 does not close the keep-alive connection under the next request."""
    supervisor = Supervisor()
    failed = asyncio.Event()
    supervisor.add_hook(lambda event: failed.set() if type(event).__name__ == "TaskFailed" else None)

    async def fails():
        raise SystemExit(1)

    async def app(scope, receive, send):
        if scope["type"] != "http":
            raise AssertionError
        if scope["path"] == "/1":
            defer(fails)
        else:
            await failed.wait()
        await answer(send, 200, b"fine")

    async with serving(DeferredMiddleware(app, supervisor)) as port:
        read = await raw(port, GET % b"1", GET % b"2")
    assert read.count(b"200 OK") == 2


async def test_uvicorn_waits_for_the_drain_at_its_shutdown(script):
    """A real server's shutdown ends after the work that its requests have left."""
    supervisor = Supervisor()
    slow = late(supervisor, lambda: script.note("done"))

    async def app(scope, receive, send):
        if scope["type"] != "http":
            raise AssertionError
        defer(slow)
        await answer(send, 200, b"")

    async with contextlib.AsyncExitStack() as stack:
        port = await stack.enter_async_context(serving(DeferredMiddleware(app, supervisor)))
        await raw(port, GET % b"1")
        assert script.noted == []
    assert script.noted == ["done"]
