"""What is around a request: other middleware, servers that leak, websockets, scopes (B12 to B40)."""

import asyncio

import pytest
from starlette.middleware.base import BaseHTTPMiddleware

from deferred import Supervisor, TaskState, current_context, defer, wait_until
from deferred.integrations.asgi import DeferredMiddleware, deferred_from
from tests.faults.requests import ASYNCIO, BODY, START, call
from tests.faults.support import boom, forever, idle, outcome_of, turns
from tests.integrations.asgi_client import Client


class TestMiddlewareAround:
    @ASYNCIO
    async def test_base_http_middleware(self, journal):
        """B24: below `BaseHTTPMiddleware`, whose handlers run in tasks of their own, contexts and work are the same."""

        class Around(BaseHTTPMiddleware):
            async def dispatch(self, request, call_next):
                journal.append(current_context() is deferred_from(request))
                return await call_next(request)

        async def app(scope, receive, send):
            journal.append(current_context() is deferred_from(scope))
            defer(journal.note, "deferred")
            wait_until(journal.note("waited"))
            await send(START)
            await send(BODY)

        async with Supervisor() as supervisor:
            exchange = await Client(DeferredMiddleware(Around(app), supervisor)).get("/")
            await idle(supervisor)
        assert exchange.body == b"answer"
        assert journal == [True, True, "waited", "deferred"]

    @pytest.mark.parametrize("outermost", [True, False])
    async def test_cancelling(self, journal, outermost):
        """B25, C12: a middleware that cancels the app call leaves accepted work running."""
        arrived = asyncio.Event()

        async def app(scope, receive, send):
            defer(journal.note, "deferred")
            wait_until(_later(journal))
            arrived.set()
            await forever()

        def cancelling(inner):
            async def around(scope, receive, send):
                running = asyncio.ensure_future(inner(scope, receive, send))
                await arrived.wait()
                running.cancel()
                await asyncio.wait([running])
                await send(START)
                await send(BODY)

            return around

        async with Supervisor() as supervisor:
            if outermost:
                served = DeferredMiddleware(cancelling(app), supervisor)
            else:
                served = cancelling(DeferredMiddleware(app, supervisor))
            await call(served)
            await idle(supervisor)
        assert sorted(journal) == ["deferred", "waited"]

    @pytest.mark.looptime
    async def test_timing_out(self, journal):
        """B25: a handler cut by ``asyncio.timeout`` leaves accepted work running."""

        async def app(scope, receive, send):
            wait_until(asyncio.sleep(10))
            defer(journal.note)
            try:
                async with asyncio.timeout(3):
                    await forever()
            except TimeoutError:
                await send({**START, "status": 504})
                await send(BODY)

        async with Supervisor(drain_timeout=20) as supervisor:
            sent = await call(DeferredMiddleware(app, supervisor))
            assert sent[0]["status"] == 504
            report = await supervisor.drain()
        assert report.finished == 2

    async def test_mounted_twice(self, journal):
        """B21: under the same supervisor there is one context, and everything runs once."""

        async def app(scope, receive, send):
            journal.append(current_context() is outer[0])
            defer(journal.note)
            await send(START)
            await send(BODY)

        outer = []
        async with Supervisor() as supervisor:
            inner = DeferredMiddleware(app, supervisor)

            async def between(scope, receive, send):
                outer.append(current_context())
                await inner(scope, receive, send)

            await call(DeferredMiddleware(between, supervisor))
            await idle(supervisor)
        assert journal == [True, "task"]

    async def test_a_supervisor_of_its_own_inside(self, journal):
        """B22: a mounted app with a supervisor of its own has contexts of its own, drained with the outer one."""
        inner_supervisor = Supervisor()

        async def app(scope, receive, send):
            defer(_later, journal)
            await send(START)
            await send(BODY)

        async with Supervisor() as supervisor:
            await call(DeferredMiddleware(DeferredMiddleware(app, inner_supervisor), supervisor))
        assert journal == ["waited"]
        assert inner_supervisor.stats().succeeded == 1


class TestLeaks:
    async def test_variables_of_the_server(self, journal):
        """A60, B16: a server that lets one request's variables leak into the next cannot mix up their contexts."""
        seen = []

        async def app(scope, receive, send):
            ctx = current_context()
            seen.append((ctx, deferred_from(scope)))
            defer(journal.note, scope["path"])
            await send(START)
            await send(BODY)

        async with Supervisor() as supervisor:
            served = DeferredMiddleware(app, supervisor)
            await call(served, path="/one")
            with supervisor.context():  # what a server has left set
                await call(served, path="/two")
            await idle(supervisor)
        assert all(current is of_scope for current, of_scope in seen)
        assert seen[0][0] is not seen[1][0]
        assert journal == ["/one", "/two"]

    async def test_interleaved_on_one_connection(self, journal):
        """B16, B17: requests that overlap in one asyncio task's variables keep their work apart, one reset included."""
        gates = {path: asyncio.Event() for path in ("/1", "/2", "/3")}

        async def app(scope, receive, send):
            await gates[scope["path"]].wait()
            assert current_context() is deferred_from(scope)
            defer(journal.note, (scope["path"], current_context().label))
            if scope["path"] == "/2":
                raise ConnectionResetError
            await send(START)
            await send(BODY)

        async with Supervisor() as supervisor:
            served = DeferredMiddleware(app, supervisor)
            running = [asyncio.ensure_future(outcome_of(call(served, path=path))) for path in gates]
            await turns(3)
            for path in ("/3", "/2", "/1"):
                gates[path].set()
                await turns(3)
            await asyncio.gather(*running)
            await idle(supervisor)
        assert journal == [(path, f"GET {path}") for path in ("/3", "/2", "/1")]

    async def test_outside_again(self):
        """A60: after the app call, in its own variables, there is no current context."""

        async def app(scope, receive, send):
            await send(START)
            await send(BODY)

        async with Supervisor() as supervisor:
            await call(DeferredMiddleware(app, supervisor))
            with pytest.raises(LookupError):
                current_context()


class TestWebsockets:
    @ASYNCIO
    async def test_in_its_loop(self, journal):
        """B13: a websocket has one context for all its frames; its cap applies, and its close releases the work."""
        refused = []

        async def app(scope, receive, send):
            await receive()
            await send({"type": "websocket.accept"})
            while (await receive())["type"] == "websocket.receive":
                try:
                    defer(journal.note)
                except Exception as error:  # noqa: BLE001  # a refusal is what is expected
                    refused.append(error)
            journal.append("closed")

        async with Supervisor(max_per_context=3) as supervisor:
            exchange = Client(DeferredMiddleware(app, supervisor)).websocket("/", *"abcde").start()
            await turns(30)
            assert journal == []
            exchange.leave()
            await exchange.done()
            await idle(supervisor)
        assert journal == ["closed", "task", "task", "task"]
        assert len(refused) == 2

    @pytest.mark.looptime
    async def test_open_at_the_shutdown(self, journal):
        """B14: a websocket still open at the drain keeps it no longer than the deadline; what had started finishes."""

        async def app(scope, receive, send):
            await receive()
            await send({"type": "websocket.accept"})
            wait_until(asyncio.sleep(3))
            defer(journal.note)
            await receive()

        async with Supervisor(drain_timeout=20) as supervisor:
            exchange = Client(DeferredMiddleware(app, supervisor)).websocket("/").start()
            await turns(5)
            report = await supervisor.drain()
            assert asyncio.get_running_loop().time() <= 22
            exchange.leave()
            await exchange.done()
        assert report.finished == 1
        assert len(report.cancelled) == 1


class TestScopes:
    @pytest.mark.parametrize("kind", ["http", "websocket", "lifespan", "unknown"])
    async def test_what_the_app_sees(self, kind):
        """B30, S12: an app gets its scope, and an unknown kind of it nothing else."""
        seen = []

        async def app(scope, receive, send):
            seen.append((scope, receive))
            if kind == "lifespan":
                await receive()
                await send({"type": "lifespan.startup.complete"})
                await receive()
                await send({"type": "lifespan.shutdown.complete"})

        messages = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])

        async def receive():
            return next(messages)

        scope, supervisor = {"type": kind}, Supervisor()
        await DeferredMiddleware(app, supervisor)(scope, receive, _drop)
        assert seen[0][0] is scope
        assert set(scope) == {"type"}
        if kind == "unknown":
            assert seen[0][1] is receive

    async def test_an_app_that_clears_its_scope(self, journal):
        """S12: an app may clear the scope; its work runs."""

        async def app(scope, receive, send):
            defer(journal.note)
            scope.clear()
            await send(START)
            await send(BODY)

        async with Supervisor() as supervisor:
            await outcome_of(call(DeferredMiddleware(app, supervisor)))
            await idle(supervisor)
        assert journal == ["task"]

    async def test_no_lifespan_at_all(self, journal, caplog):
        """B40: without any lifespan the first registration opens the supervisor, and one warning says so."""

        async def app(scope, receive, send):
            defer(journal.note)
            await send(START)
            await send(BODY)

        served = DeferredMiddleware(app)
        for _ in range(3):
            await call(served)
        await idle(served.supervisor)
        assert journal == ["task"] * 3
        assert sum("never opened" in record.message for record in caplog.records) == 1

    async def test_failing_beside_the_next_request(self, journal):
        """S4: a task that fails while the next request is served touches neither its answer nor its work."""

        async def app(scope, receive, send):
            handles.append(defer(boom))
            defer(journal.note)
            await turns(3)
            await send(START)
            await send(BODY)

        handles = []
        async with Supervisor() as supervisor:
            served = DeferredMiddleware(app, supervisor)
            for _ in range(3):
                assert await call(served) == [START, BODY]
            await idle(supervisor)
        assert journal == ["task"] * 3
        assert [handle.state for handle in handles] == [TaskState.FAILED] * 3


async def _later(journal):
    await turns(5)
    journal.append("waited")


async def _drop(message):
    return None
