"""The promises asked of every framework; each test file brings an `Adapter` and inherits them.

An adapter builds an app whose handlers call ``script.handle(ctx)`` (``script.act(ctx)`` where
they are synchronous) and then answer:

=========================== ============================================================
``GET, HEAD /plain``        200, ``plain``
``POST /body``              reads the body, then as above
``GET /stream``             ``script.act``, then 200 with ``script.stream(ctx)`` as its body
``GET /raises``             raises `BoomError`
``GET /http-error``         raises the framework's own error for 409
``GET /redirect``           303 to ``/plain``
``GET /nothing``            204
``GET /not-modified``       304
``GET /sync``               200 from a synchronous handler in a thread
``GET /behind``             ``/plain`` behind the framework's usual middleware, which calls
                            ``script.act(ctx)`` as well
``GET /own``                200 with the framework's background tasks, one that calls
                            ``script.after(ctx)`` and one that notes ``own``
``GET /own-raises``         the same with a single one that raises `BoomError`
``GET /run/<execution>``    ``await ctx.run(script.step)`` under that decorator; ``/run/none``
                            without any
``GET /mounted/plain``      ``/plain`` in a mounted app
``WEBSOCKET /socket``       accepts, ``handle``, echoes; ``bye`` closes it, ``boom`` raises
``WEBSOCKET /refused``      ``handle``, then closes without accepting
=========================== ============================================================

Its lifespan calls ``script.opening()`` and ``script.closing()``. Nothing else answers: 404, 405.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, ClassVar

import pytest

from deferred import (
    ContextClosedError,
    ContextOpened,
    DeferredContext,
    DrainFinished,
    DrainStarted,
    Outcome,
    Supervisor,
    SupervisorClosedError,
    TaskDiscarded,
    TaskRejectedError,
    current_context,
    defer,
)
from tests.integrations.asgi_client import Client, Exchange, idle, turn, turns
from tests.integrations.script import BoomError, Script, is_current

OK = "/plain /behind /stream /sync /nothing /not-modified /redirect /mounted/plain".split()
FAILING = "/raises /http-error".split()
MATCHES = {  # which `when` besides "always" runs
    **dict.fromkeys(OK, "success"),
    **dict.fromkeys(FAILING, "error"),
}
EXECUTIONS = ("sequential", "fire-and-forget", "concurrent", "deferred", "none")
PHASES = ("before the body", "mid-handler", "mid-stream", "after the last byte")


class Adapter:
    """What a framework's test file brings.

    Attributes:
        lacks: Routes (by path) that the framework cannot have, and ``"405"``, ``"lifespan"``.
    """

    lacks: ClassVar[frozenset[str]] = frozenset()

    def build(self, script: Script, supervisor: Supervisor | None) -> Any:
        """Build the app; without our middleware (``ctx`` is None) when `supervisor` is None."""
        raise NotImplementedError

    def client(self, app: Any, **options: Any) -> Client:
        """Return a client of the app."""
        return Client(app, **options)

    def wrap_again(self, app: Any, supervisor: Supervisor) -> Any:
        """Put the integration around an app that has it already."""
        from deferred.integrations.asgi import DeferredMiddleware

        return DeferredMiddleware(app, supervisor)


class Promises:
    """Inherited by one class a framework; `adapter` is all it adds."""

    adapter: ClassVar[Adapter]

    @pytest.fixture
    def script(self) -> Script:
        """Give the script of the app's handlers."""
        return Script()

    @pytest.fixture
    def events(self) -> list[Any]:
        """Give the list of what the supervisor's hooks were told."""
        return []

    @pytest.fixture
    def supervisor(self, events: list[Any], request: pytest.FixtureRequest) -> Supervisor:
        """Give the supervisor of the app; ``parametrize`` it indirectly for other options."""
        return Supervisor(on_error=events.append, **getattr(request, "param", {}))

    @pytest.fixture
    async def client(self, script: Script, supervisor: Supervisor) -> Any:
        """Give a client of the app, started."""
        async with self.adapter.client(self.adapter.build(script, supervisor)) as client:
            yield client

    def needs(self, *paths: str) -> None:
        """Skip what the framework cannot have."""
        lacking = self.adapter.lacks.intersection(paths)
        if lacking:
            pytest.skip(f"has no {', '.join(lacking)}")

    # -- the context ----------------------------------------------------------------------------

    @pytest.mark.parametrize("path", [*OK, *FAILING, "/own"])
    async def test_the_injected_context_is_the_current_one(self, client, script, path):
        """What a handler gets is what `current_context` finds there, and another one in the next request."""
        self.needs(path)
        seen: list[DeferredContext] = []
        script.act = lambda ctx: seen.append(ctx) or seen.append(current_context())
        await client.get(path)
        first, seen[:] = list(seen), []
        await client.get(path)
        assert len({id(ctx) for ctx in first}) == 1
        assert len({id(ctx) for ctx in seen}) == 1
        assert isinstance(first[0], DeferredContext)
        assert first[0] is not seen[0]

    async def test_streams_and_tasks_find_the_context_of_their_request(self, client, script, supervisor):
        """The generator of a stream and a deferred task find the context that their handler was given."""
        seen: list[bool] = []

        async def task(ctx: DeferredContext) -> None:
            seen.append(is_current(ctx))

        script.act = lambda ctx: ctx.defer(task, ctx)
        script.midway = lambda ctx: seen.append(is_current(ctx))
        await client.get("/stream")
        await idle(supervisor)
        assert seen == [True, True]

    # -- when work starts -----------------------------------------------------------------------

    @pytest.mark.parametrize("path", [*OK, *FAILING, "/own"])
    async def test_work_starts_after_the_response_on_a_later_turn(self, client, script, supervisor, path):
        """Deferred work starts on a later turn of the loop than the one that sent the last byte."""
        self.needs(path)
        script.act = lambda ctx: ctx.defer(script.work)
        exchange = await client.get(path)
        await idle(supervisor)
        runs = 2 if path == "/behind" else 1
        assert script.noted.count("work") == runs
        if exchange.sent:
            assert script.turn_of("work") > exchange.last

    async def test_work_of_a_stream_starts_after_its_last_chunk(self, client, script, supervisor):
        """Work deferred before and during a stream waits for the last chunk, however slow the client is."""
        script.act = lambda ctx: ctx.defer(script.work, "before")
        script.midway = lambda ctx: ctx.defer(script.work, "during")
        exchange = client.open("GET", "/stream")
        exchange.hold = lambda message: message.get("body") in {b"two", b""}
        exchange.start()
        await exchange.until(lambda: any(message.get("body") == b"one" for message in exchange.sent))
        await turns(20)
        assert script.noted == []
        exchange.gate.set()
        await exchange.done()
        await idle(supervisor)
        assert script.noted == ["before", "during"]
        assert exchange.body == b"onetwo"
        assert script.turn_of("before") > exchange.last

    async def test_wait_until_starts_now(self, client, script, supervisor):
        """What `wait_until` is given runs while the response is still open."""
        script.act = lambda ctx: ctx.wait_until(script.work("at once"))
        script.go.clear()
        exchange = client.open("GET", "/plain").start()
        await script.arrived.wait()
        await turns(3)
        assert script.noted == ["at once"]
        assert exchange.sent == []
        script.go.set()
        assert (await exchange.done()).status == 200
        await idle(supervisor)

    async def test_a_head_request_runs_its_work(self, client, script, supervisor):
        """Work of a HEAD request runs after its answer, which has no body."""
        script.act = lambda ctx: ctx.defer(script.work)
        exchange = await client.request("HEAD", "/plain")
        await idle(supervisor)
        assert exchange.status == 200
        assert script.noted == ["work"]
        assert script.turn_of("work") > exchange.last

    # -- failures -------------------------------------------------------------------------------

    @pytest.mark.parametrize(
        "error", [ValueError("no"), SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError(), BaseException("odd")]
    )
    async def test_one_failure_harms_nobody(self, client, script, supervisor, events, error):
        """A task that fails, in whatever way, leaves its neighbours, the response and the next request alone."""

        async def fails() -> None:
            raise error

        def act(ctx: DeferredContext) -> None:
            ctx.defer(script.work, "first")
            ctx.defer(fails)
            ctx.wait_until(fails())
            ctx.defer(script.work, "last")

        script.act = act
        exchange = await client.get("/plain")
        await idle(supervisor)
        assert (exchange.status, exchange.body, exchange.error) == (200, b"plain", None)
        assert script.noted == ["first", "last"]
        if not isinstance(error, asyncio.CancelledError):  # cancelling oneself is no failure
            assert [event.error for event in events] == [error, error]
        script.act = lambda ctx: ctx.defer(script.work, "next")
        assert (await client.get("/plain")).status == 200
        await idle(supervisor)
        assert script.noted[-1] == "next"

    @pytest.mark.parametrize("path", [*OK, *FAILING])
    async def test_work_runs_by_its_policy(self, client, script, supervisor, path):
        """Of work for success and for error exactly the one that the final status means runs; always always does."""
        self.needs(path)
        told: list[Any] = []
        supervisor.add_hook(lambda event: isinstance(event, TaskDiscarded) and told.append(event))

        def act(ctx: DeferredContext) -> None:
            for when in ("always", "success", "error"):
                ctx.with_options(when=when).defer(script.work, when)

        script.act = act
        await client.get(path)
        await idle(supervisor)
        times = 2 if path == "/behind" else 1
        assert sorted(script.noted) == sorted(["always", MATCHES[path]] * times)
        assert [event.outcome for event in told] == [Outcome.DISCARDED_BY_WHEN] * times

    @pytest.mark.parametrize("gone", ["drop", "raise"])
    @pytest.mark.parametrize("phase", PHASES)
    async def test_work_survives_a_disconnect(self, script, supervisor, phase, gone):
        """Work registered before, at, or after a disconnect runs once, at each phase and on both kinds of server."""
        kinds: list[str] = []

        def act(ctx: DeferredContext) -> None:
            kinds.append("act")
            for when in ("always", "success", "error"):
                ctx.with_options(when=when).defer(script.work, when)

        script.act = act
        script.midway = lambda ctx: ctx.defer(script.work, "midway")
        async with self.adapter.client(self.adapter.build(script, supervisor), gone=gone) as client:
            await disconnect(client, script, phase)
            await idle(supervisor)
            assert kinds in (["act"], []), "frameworks may refuse a request whose body never came"
            assert script.noted.count("always") == len(kinds)
            assert sum(script.noted.count(when) for when in ("success", "error")) == len(kinds)
            assert script.noted.count("midway") == (phase == "mid-stream")
            script.act = lambda ctx: ctx.defer(script.work, "next")
            await client.get("/plain")
            await idle(supervisor)
            assert script.noted[-1] == "next"

    async def test_work_starts_when_the_client_is_known_to_be_gone(self, client, script, supervisor):
        """Deferred work does not wait for a handler that goes on after its client has left, where that is seen."""
        self.needs("receive")
        script.act = lambda ctx: ctx.defer(script.work)
        script.go.clear()
        exchange = client.open("GET", "/listens").start()
        await script.arrived.wait()
        await turns(5)
        assert script.noted == []
        exchange.leave()
        await exchange.until(lambda: True)
        await idle(supervisor)
        assert script.noted == ["work"]
        assert exchange.returned is None
        script.go.set()
        await exchange.done()

    # -- websockets -----------------------------------------------------------------------------

    async def test_a_websocket_has_one_context_for_all_its_messages(self, client, script, supervisor):
        """A websocket's work starts after its close, not after its messages."""
        self.needs("/socket")
        script.act = lambda ctx: ctx.defer(script.work)
        exchange = client.websocket("/socket", "a", "b").start()
        await exchange.until(lambda: sum(m["type"] == "websocket.send" for m in exchange.sent) == 2)
        await turns(5)
        assert script.noted == []
        exchange.push({"type": "websocket.receive", "text": "bye", "bytes": None})
        await exchange.done()
        await idle(supervisor)
        assert script.noted == ["work"]
        assert [m.get("text") for m in exchange.sent if m["type"] == "websocket.send"] == ["a", "b"]
        assert script.turn_of("work") > exchange.last

    @pytest.mark.parametrize(
        ("how", "runs"), [("bye", "success"), ("leave", "success"), ("boom", "error"), ("refuse", "error")]
    )
    async def test_a_websocket_runs_its_work_by_policy(self, client, script, supervisor, how, runs):
        """However a websocket ends, work runs; its outcome is an error when it raised or was refused."""
        self.needs("/socket", "/refused" if how == "refuse" else "/socket")

        def act(ctx: DeferredContext) -> None:
            for when in ("always", "success", "error"):
                ctx.with_options(when=when).defer(script.work, when)

        script.act = act
        exchange = client.websocket("/refused" if how == "refuse" else "/socket", *({how} & {"bye", "boom"})).start()
        if how == "leave":
            await script.arrived.wait()
            exchange.leave()
        await exchange.done()
        await idle(supervisor)
        assert sorted(script.noted) == sorted(["always", runs])

    # -- nesting --------------------------------------------------------------------------------

    async def test_mounted_twice_is_one_context_and_one_drain(self, script, supervisor):
        """The integration around itself gives one context, runs work once and drains once."""
        told: list[Any] = []
        supervisor.add_hook(lambda event: told.append(type(event)))
        app = self.adapter.wrap_again(self.adapter.build(script, supervisor), supervisor)
        script.act = lambda ctx: (script.note(str(is_current(ctx))), ctx.defer(script.work))
        async with self.adapter.client(app) as client:
            assert (await client.get("/plain")).status == 200
            await idle(supervisor)
        assert script.noted == ["True", "work"]
        assert told.count(ContextOpened) == 1
        assert told.count(DrainFinished) == 1

    # -- lifespan -------------------------------------------------------------------------------

    async def test_without_a_lifespan_it_works_and_warns_once(self, script, supervisor, caplog):
        """Where the server sends no lifespan, work runs all the same, and one warning says what that risks."""
        client = self.adapter.client(self.adapter.build(script, supervisor))
        script.act = lambda ctx: ctx.defer(script.work)
        for _ in range(3):
            assert (await client.get("/plain")).status == 200
        await idle(supervisor)
        assert script.noted == ["work"] * 3
        warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
        assert [record.name for record in warnings] == ["deferred"]
        assert "lifespan" in warnings[0].message

    async def test_the_drain_ends_before_the_apps_own_resources_close(self, script, supervisor):
        """Work that is under way at the shutdown ends while the app's own resource is still open."""
        self.needs("lifespan")
        draining = asyncio.Event()
        supervisor.add_hook(lambda event: draining.set() if isinstance(event, DrainStarted) else None)

        async def slow() -> None:
            await draining.wait()
            await turns(20)
            script.note(f"open: {script.resource}")

        script.act = lambda ctx: ctx.defer(slow)
        client = self.adapter.client(self.adapter.build(script, supervisor))
        async with client:
            assert script.resource is True
            await client.get("/plain")
        assert script.noted == ["open: True"]
        assert script.resource is False
        assert client.lifespan.answers == ["startup.complete", "shutdown.complete"]

    async def test_after_the_shutdown_work_is_refused(self, script, supervisor):
        """Once drained, registering raises instead of losing the work."""
        caught: list[BaseException] = []

        def act(ctx: DeferredContext) -> None:
            try:
                ctx.defer(script.work)
            except SupervisorClosedError as error:
                caught.append(error)

        client = self.adapter.client(self.adapter.build(script, supervisor))
        async with client:
            pass
        script.act = act
        await client.get("/plain")
        await turns(5)
        assert len(caught) == 1
        assert script.noted == []

    async def test_a_failing_startup_is_the_apps_own(self, script, supervisor):
        """An app that fails to start says so as it does without us, and no drain follows."""
        self.needs("lifespan")
        told: list[Any] = []
        supervisor.add_hook(lambda event: told.append(type(event)))
        answers = []
        for owner in (None, supervisor):
            script.fail_startup = True
            client = self.adapter.client(self.adapter.build(script, owner))
            await client.lifespan.startup()
            answers.append((client.lifespan.answers, type(client.lifespan.error)))
            await client.lifespan.shutdown()
        assert answers[0] == answers[1]
        assert DrainStarted not in told

    # -- pass-through ---------------------------------------------------------------------------

    @pytest.mark.parametrize("path", [*OK, *FAILING, "/own", "/missing", "/body", "HEAD /plain"])
    async def test_the_messages_are_those_of_the_app(self, script, supervisor, path):
        """What the server is sent is the same with and without the integration, deferred work or not."""
        self.needs(path)
        method, _, path = path.rpartition(" ")
        answers = []
        for owner in (None, supervisor):
            async with self.adapter.client(self.adapter.build(script, owner)) as client:
                exchange = await client.request(method or "GET", path)
                answers.append((exchange.sent, type(exchange.error)))
                if owner is not None:
                    script.act = lambda ctx: ctx.defer(script.work)
                    exchange = await client.request(method or "GET", path)
                    answers.append((exchange.sent, type(exchange.error)))
                    await idle(supervisor)
        assert answers[0] == answers[1] == answers[2]

    async def test_missing_routes_and_methods_are_answered_by_the_framework(self, client, script):
        """404 and 405 stay the framework's own, and cost nobody anything."""
        assert (await client.get("/missing")).status == 404
        if "405" not in self.adapter.lacks:
            assert (await client.request("DELETE", "/plain")).status == 405
        assert (await client.get("/plain")).status == 200

    # -- the framework's own background tasks ---------------------------------------------------

    async def test_the_frameworks_background_task_and_ours_run_both(self, client, script, supervisor):
        """Theirs and ours both run, ours not inside their call, and theirs may defer as well."""
        self.needs("/own")
        script.act = lambda ctx: ctx.defer(script.work, "ours")
        script.after = lambda ctx: ctx.defer(script.work, "from theirs")
        exchange = await client.get("/own")
        await idle(supervisor)
        assert sorted(script.noted) == ["from theirs", "ours", "own"]
        assert script.turn_of("ours") > exchange.last

    async def test_a_failing_background_task_of_the_framework_harms_not_ours(self, client, script, supervisor):
        """When the framework's own background task raises, ours run all the same."""
        self.needs("/own-raises")
        script.act = lambda ctx: ctx.defer(script.work, "ours")
        exchange = await client.get("/own-raises")
        await idle(supervisor)
        assert exchange.status == 200
        assert script.noted == ["ours"]

    # -- limits ---------------------------------------------------------------------------------

    @pytest.mark.parametrize("supervisor", [{"max_per_context": 1}], indirect=True)
    async def test_a_reached_limit_is_answered_with_503(self, client, script, supervisor):
        """A rejection that the handler lets through is a 503 with Retry-After; what was accepted runs."""

        def act(ctx: DeferredContext) -> None:
            ctx.defer(script.work, "accepted")
            ctx.defer(script.work, "rejected")

        script.act = act
        exchange = await client.get("/plain")
        await idle(supervisor)
        assert exchange.status == 503
        assert exchange.headers["retry-after"] == "1"
        assert exchange.error is None
        assert script.noted == ["accepted"]

    @pytest.mark.parametrize("supervisor", [{"max_per_context": 1}], indirect=True)
    async def test_a_handler_may_catch_a_rejection(self, client, script, supervisor):
        """A handler that catches the rejection answers as it likes."""

        def act(ctx: DeferredContext) -> None:
            ctx.defer(script.work, "accepted")
            with pytest.raises(TaskRejectedError):
                ctx.defer(script.work, "rejected")

        script.act = act
        assert (await client.get("/plain")).status == 200
        await idle(supervisor)
        assert script.noted == ["accepted"]

    # -- execution ------------------------------------------------------------------------------

    @pytest.mark.parametrize("execution", EXECUTIONS)
    async def test_a_decorator_decides_when_steps_run(self, client, script, supervisor, execution):
        """Sequential steps run before the answer, those started at once without being awaited, deferred ones after."""
        exchange = client.open("GET", f"/run/{execution}")
        exchange.hold = lambda message: message["type"] == "http.response.start"
        exchange.start()
        await turns(20)
        early = list(script.noted)
        exchange.gate.set()
        await exchange.done()
        await idle(supervisor)
        assert early == ([] if execution in {"deferred", "none"} else ["step"])
        assert script.noted == ["step"]

    async def test_a_decorator_changes_nothing_else(self, client, script, supervisor):
        """The messages of a route are the same under every decorator."""
        sent = [(await client.get(f"/run/{execution}")).sent for execution in EXECUTIONS]
        await idle(supervisor)
        assert all(messages == sent[0] for messages in sent)
        assert script.noted == ["step"] * len(EXECUTIONS)

    @pytest.mark.parametrize("execution", EXECUTIONS)
    async def test_only_a_sequential_step_can_fail_the_answer(self, client, script, supervisor, events, execution):
        """A failing step fails a sequential answer, and under the other decorators only tells the error hooks."""

        async def fails() -> None:
            raise BoomError

        script.step = fails  # type: ignore[method-assign]
        exchange = await client.get(f"/run/{execution}")
        await idle(supervisor)
        assert exchange.status == (500 if execution == "sequential" else 200)
        assert [type(event.error) for event in events] == [BoomError]

    # -- leaks ----------------------------------------------------------------------------------

    async def test_a_leaked_closed_context_raises(self, client, script, supervisor):
        """Code that kept a context beyond its request is refused, also in the midst of another request."""
        kept: list[DeferredContext] = []
        script.act = kept.append
        await client.get("/plain")
        refused: list[BaseException] = []

        def act(ctx: DeferredContext) -> None:
            try:
                kept[0].defer(script.work, "leaked")
            except ContextClosedError as error:
                refused.append(error)

        script.act = act
        assert (await client.get("/plain")).status == 200
        await idle(supervisor)
        assert len(refused) == 1
        assert script.noted == []

    async def test_a_task_left_running_never_reaches_the_next_request(self, client, script, supervisor):
        """An asyncio task that a handler left behind gets `ContextClosedError`, not the context of the next request."""
        caught: list[BaseException] = []
        go_on = asyncio.Event()
        left: list[asyncio.Task[None]] = []

        async def straggler() -> None:
            await go_on.wait()
            try:
                defer(script.work, "straggler")
            except ContextClosedError as error:
                caught.append(error)

        script.act = lambda ctx: left.append(asyncio.get_running_loop().create_task(straggler()))
        await client.get("/plain")
        script.act = lambda ctx: go_on.set()
        await client.get("/plain")
        await left[0]
        await idle(supervisor)
        assert len(caught) == 1
        assert script.noted == []

    async def test_overlapping_requests_keep_their_work_apart(self, client, script, supervisor):
        """Four requests at a time each run their own work after their own answer."""
        script.go.clear()
        seen: list[DeferredContext] = []

        async def work(ctx: DeferredContext) -> None:
            script.note(f"{seen.index(ctx)} {is_current(ctx)}")

        script.act = lambda ctx: (seen.append(ctx), ctx.defer(work, ctx))
        exchanges: list[Exchange] = [client.open("GET", "/plain").start() for _ in range(4)]
        await turns(30)
        assert len(seen) == 4
        assert script.noted == []
        script.go.set()
        for exchange in exchanges:
            await exchange.done()
        await idle(supervisor)
        assert sorted(script.noted) == ["0 True", "1 True", "2 True", "3 True"]
        assert turn() > max(exchange.last for exchange in exchanges)


async def disconnect(client: Client, script: Script, phase: str) -> Exchange:
    """Make a request whose client leaves at this phase; return once the app call is over."""
    if phase == "before the body":
        exchange = client.open("POST", "/body")
        exchange.leave()
        return await exchange.start().done()
    if phase == "after the last byte":
        exchange = client.open("GET", "/plain")
        exchange.on_sent = lambda message: exchange.complete and exchange.leave()
        return await exchange.start().done()
    exchange = client.open("GET", "/stream" if phase == "mid-stream" else "/plain")
    script.go.clear()
    exchange.start()
    await script.arrived.wait()
    exchange.leave()
    await turns(3)
    script.go.set()
    return await exchange.done()
