"""Litestar: what its handlers, dependencies and lifespan may do to deferred work (B01 to B40)."""

import asyncio
from contextlib import asynccontextmanager

import pytest
from litestar import Litestar, Request, get, post, websocket
from litestar.background_tasks import BackgroundTask
from litestar.connection import WebSocket
from litestar.di import NamedDependency, Provide
from litestar.exceptions import ClientException
from litestar.response import Response, Stream

from deferred import DeferredContext, Supervisor, TaskState, current_context, defer
from deferred.integrations.litestar import DeferredPlugin
from tests.faults.support import BoomError, Told, idle, nothing_left, settled, turns
from tests.integrations.asgi_client import Client

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio"])  # the client counts the turns of the loop


@pytest.fixture
def journal():
    """What happened, in order."""
    return []


@pytest.fixture
def note(journal):
    """A task that notes what it is given."""

    async def work(what="task"):
        journal.append(what)

    return work


@asynccontextmanager
async def serving(*handlers, **options):
    """Serve these handlers; give a client and the supervisor."""
    supervisor = Supervisor(drain_timeout=20, **options.pop("settings", {}))
    app = Litestar(list(handlers), plugins=[DeferredPlugin(supervisor)], openapi_config=None, **options)
    async with Client(app) as client:
        yield client, supervisor
    assert nothing_left(supervisor)


@pytest.mark.parametrize(("error", "status"), [(BoomError, 500), (ClientException, 400)])
async def test_a_handler_that_raises(journal, note, error, status):
    """B01, B02: work deferred before the handler raised runs; ``when`` sees the error, as it is answered."""

    @get("/")
    async def handler(ctx: NamedDependency[DeferredContext]) -> str:
        for when in ("always", "success", "error"):
            ctx.with_options(when=when).defer(note, when)
        raise error

    async with serving(handler) as (client, supervisor):
        assert (await client.get("/")).status == status
        await idle(supervisor)
    assert journal == ["always", "error"]


async def test_a_sync_handler(journal, note):
    """B37, A40: a plain handler in a thread has the context injected and current, and its work runs after it."""

    @get("/", sync_to_thread=True)
    def handler(ctx: NamedDependency[DeferredContext]) -> str:
        journal.append(current_context() is ctx)
        defer(note, "current")
        ctx.defer(note, "injected")
        return "answer"

    async with serving(handler) as (client, supervisor):
        assert (await client.get("/")).body == b"answer"
        await idle(supervisor)
    assert journal == [True, "current", "injected"]


async def test_a_dependency_that_yields(journal, note):
    """B01: work that a dependency defers as it is cleaned up runs, though the handler has returned."""

    async def resource(ctx: NamedDependency[DeferredContext]):
        yield "resource"
        ctx.defer(note, "cleaned up")

    @get("/", dependencies={"resource": Provide(resource)})
    async def handler(resource: NamedDependency[str], ctx: NamedDependency[DeferredContext]) -> str:
        ctx.defer(note, "handler")
        return resource

    async with serving(handler) as (client, supervisor):
        assert (await client.get("/")).status == 200
        await idle(supervisor)
    assert sorted(journal) == ["cleaned up", "handler"]


async def test_the_apps_resources_are_open(journal):
    """B32: the drain runs before the app's own lifespan managers close, however many there are."""

    @asynccontextmanager
    async def resource(app):
        journal.append("open")
        yield
        journal.append("closed")

    async def slow():
        await turns(20)
        journal.append("task")

    @get("/")
    async def handler(ctx: NamedDependency[DeferredContext]) -> str:
        ctx.defer(slow)
        return "answer"

    async with serving(handler, lifespan=[resource, resource]) as (client, _):
        await client.get("/")
    assert journal == ["open", "open", "task", "closed", "closed"]


async def test_its_own_background_task(journal, note):
    """B20: Litestar's own background task and deferred work both run, once, also when the former raises."""

    async def own():
        journal.append("own")
        raise BoomError

    @get("/")
    async def handler(ctx: NamedDependency[DeferredContext]) -> Response[str]:
        ctx.defer(note)
        return Response("answer", background=BackgroundTask(own))

    async with serving(handler) as (client, supervisor):
        assert (await client.get("/")).body == b"answer"
        await idle(supervisor)
    assert sorted(journal) == ["own", "task"]


async def test_a_stream_that_breaks(journal, note):
    """B08, B10: a stream that raises in the middle closes its context; what it deferred runs once."""

    async def chunks():
        yield b"one"
        defer(note, "from the stream")
        raise BoomError

    @get("/")
    async def handler(ctx: NamedDependency[DeferredContext]) -> Stream:
        ctx.defer(note, "handler")
        return Stream(chunks())

    async with serving(handler) as (client, supervisor):
        await client.get("/")
        await idle(supervisor)
    assert sorted(journal) == ["from the stream", "handler"]


async def test_overload(journal, note):
    """A48: a rejection that the handler lets through is answered with 503 and when to come again."""

    @get("/")
    async def handler(ctx: NamedDependency[DeferredContext]) -> str:
        ctx.defer(note)
        return ctx.defer(note).name

    async with serving(handler, settings={"max_per_context": 1}) as (client, supervisor):
        exchange = await client.get("/")
        assert (exchange.status, exchange.headers["retry-after"]) == (503, "1")
        await idle(supervisor)
    assert journal == ["task"]


async def test_the_body_in_a_task():
    """B36: a task that reads the request's body after the response fails, told, and hangs nothing."""
    told = Told()

    @post("/", status_code=200)
    async def handler(request: Request, ctx: NamedDependency[DeferredContext]) -> str:
        handles.append(ctx.defer(request.body))
        return "answer"

    handles = []
    async with serving(handler, settings={"on_error": told}) as (client, _):
        exchange = await client.request("POST", "/", body=b"body")
        assert exchange.status == 200
        await settled(*handles)
        assert handles[0].state is TaskState.FAILED
        assert told.errors == [handles[0].error]


async def test_a_websocket(journal, note):
    """B13: a websocket has one context for its life; it is released when the client goes."""

    @websocket("/")
    async def handler(socket: WebSocket, ctx: NamedDependency[DeferredContext]) -> None:
        await socket.accept()
        async for frame in socket.iter_data(mode="text"):
            ctx.defer(note, frame)

    async with serving(handler) as (client, supervisor):
        exchange = client.websocket("/", "a", "b").start()
        await turns(30)
        assert journal == []
        exchange.leave()
        await exchange.done()
        await idle(supervisor)
    assert journal == ["a", "b"]


async def test_a_request_cancelled(journal, note):
    """B25, C13: a request that is cancelled while it waits leaves its work running."""
    arrived = asyncio.Event()

    @get("/")
    async def handler(ctx: NamedDependency[DeferredContext]) -> str:
        ctx.defer(note)
        arrived.set()
        return await asyncio.get_running_loop().create_future()

    async with serving(handler) as (client, supervisor):
        exchange = client.open("GET", "/").start()
        await arrived.wait()
        exchange._task.cancel()
        await exchange.done()
        await idle(supervisor)
    assert journal == ["task"]
    assert isinstance(exchange.error, asyncio.CancelledError) or exchange.status == 500


@pytest.mark.parametrize("path", ["/missing", "/"])
async def test_no_handler(path):
    """B01: answers of the router itself (404, 405) pass through and leave no context behind."""

    @post("/")
    async def handler() -> str:
        raise AssertionError

    async with serving(handler) as (client, supervisor):
        assert (await client.get(path)).status == (404 if path == "/missing" else 405)
        await turns(3)
        with pytest.raises(LookupError):
            current_context()
        assert supervisor.stats().pending == 0
