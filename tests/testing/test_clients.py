"""Clients of an app in this process, of ours and of the frameworks' own."""

import asyncio
import contextlib
import sys

import httpx
import pytest
from aiohttp import web
from fastapi import FastAPI
from litestar import Litestar, get
from litestar.testing import TestClient as LitestarTestClient
from quart import Quart
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from deferred import NoCurrentContextError, Supervisor, TaskFailed, TaskState, defer
from deferred.integrations.asgi import DeferredMiddleware
from deferred.integrations.litestar import DeferredPlugin
from deferred.testing import Kit, UnfinishedWorkWarning, aiohttp_client, client
from tests.testing.support import BoomError, boom, fine, forever


async def index(request: Request):
    """Defer and answer."""
    defer(fine, 1)
    return PlainTextResponse("now")


async def failing(request: Request):
    """Defer what fails."""
    defer(boom)
    return PlainTextResponse("now")


async def hanging(request: Request):
    """Defer what hangs."""
    defer(forever)
    return PlainTextResponse("now")


async def state(request: Request):
    """Tell what the lifespan has left."""
    return JSONResponse({"name": request.state.name})


async def broken(request: Request):
    """Raise."""
    raise BoomError("handler")


ROUTES = [Route(f"/{view.__name__}", view, methods=["GET"]) for view in (index, failing, hanging, state, broken)]


def starlette(**options):
    """Make a Starlette app behind the middleware."""
    return DeferredMiddleware(Starlette(routes=ROUTES, **options))


def fastapi():
    """Make a FastAPI app behind the middleware."""
    app = FastAPI()
    app.get("/index")(index)
    return DeferredMiddleware(app)


def litestar():
    """Make a Litestar app with the plugin."""

    @get("/index")
    async def root() -> str:
        return (await index(None)).body.decode()

    return Litestar([root], plugins=[DeferredPlugin()])


def quart():
    """Make a Quart app behind the middleware."""
    app = Quart(__name__)

    @app.get("/index")
    async def root():
        defer(fine, 1)
        return "now"

    return DeferredMiddleware(app)


@pytest.mark.parametrize("make", [starlette, fastapi, litestar, quart])
async def test_one_client_for_every_asgi_framework(make):
    """TH-08: the app is started, answers, its work is waited for, and it is stopped."""
    async with client(make()) as http:
        assert isinstance(http, httpx.AsyncClient)
        response = await http.get("/index")
        assert response.text == "now"
        handle = http.kit.assert_deferred(fine, 1)
        await http.wait()
        assert handle.result() == 1


async def test_a_request_does_not_wait_for_deferred_work():
    """Work that hangs holds up nothing but the wait, which names it."""
    with Kit() as kit:
        async with kit.client(starlette(), headers={"x-test": "1"}) as http:
            assert (await http.get("/hanging")).text == "now"
            with pytest.warns(UnfinishedWorkWarning, match="GET /hanging"):
                await http.wait(0.01)


async def test_errors_are_raised_by_the_wait():
    """TH-02: as themselves."""
    async with client(starlette()) as http:
        await http.get("/failing")
        with pytest.raises(BoomError):
            await http.wait()


async def test_errors_nobody_has_waited_for_are_raised_in_the_end():
    """A client without a kit of the test's raises them when it is left."""
    with pytest.raises(BoomError):
        async with client(starlette()) as http:
            await http.get("/failing")


async def test_leaving_waits_while_the_app_is_up():
    """The work is done before the lifespan's shutdown begins."""
    order = []

    async def slow():
        await asyncio.sleep(0)
        order.append("work")

    async def lifespan(app):
        order.append("start")
        yield {"name": "state"}
        order.append("stop")

    async def view(request):
        defer(slow)
        return PlainTextResponse()

    app = DeferredMiddleware(
        Starlette(routes=[Route("/", view), *ROUTES], lifespan=contextlib.asynccontextmanager(lifespan))
    )
    async with client(app) as http:
        await http.get("/")
        assert (await http.get("/state")).json() == {"name": "state"}
    assert order == ["start", "work", "stop"]


async def test_what_handlers_raise_is_raised_or_answered():
    """As httpx does: the exception by default, a 500 on request."""
    async with client(starlette()) as http:
        with pytest.raises(BoomError, match="handler"):
            await http.get("/broken")
    async with client(starlette(), raise_app_exceptions=False) as http:
        assert (await http.get("/broken")).status_code == 500


async def test_an_app_that_fails_to_start():
    """The reason is in the error."""

    async def refusing(scope, receive, send):
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no database"})
        await receive()

    async def raising(scope, receive, send):
        await receive()
        raise BoomError

    async def mute(scope, receive, send):
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.failed"})

    with pytest.raises(RuntimeError, match="startup of the app has failed: no database"):
        async with client(refusing):
            pass
    assert asyncio.all_tasks() == {asyncio.current_task()}
    with pytest.raises(BoomError):
        async with client(raising):
            pass
    with pytest.raises(RuntimeError, match="shutdown of the app has failed: it gives no reason"):
        async with client(mute):
            pass


async def test_an_app_without_a_lifespan():
    """It raises at the scope it does not know, or leaves at once, and is served all the same."""

    async def app(scope, receive, send):
        assert scope["type"] == "http"
        defer(fine)
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def leaving(scope, receive, send):
        if scope["type"] == "http":
            await app(scope, receive, send)

    async with client(DeferredMiddleware(app)) as http:
        assert (await http.get("/")).status_code == 204
        http.kit.assert_deferred(fine)
    for plain in (app, leaving):
        async with client(plain, raise_app_exceptions=True) as http:
            with pytest.raises(NoCurrentContextError):
                await http.get("/")


async def test_inline_work_is_done_when_the_client_returns():
    """No wait is needed for work that waits for nothing."""
    with Kit("inline") as kit:
        async with kit.client(starlette()) as http:
            await http.get("/index")
            assert kit.assert_deferred(fine, 1).state is TaskState.SUCCEEDED


async def test_an_aiohttp_app():
    """It is served on a port of this machine, by aiohttp's own client; the errors nobody saw are raised."""
    supervisor = Supervisor()

    async def view(request):
        with supervisor.context("GET /") as ctx:
            ctx.defer(boom)
        return web.Response(text="now")

    async def opened(app):
        async with supervisor:
            yield

    def make():
        app = web.Application()
        app.router.add_get("/", view)
        app.cleanup_ctx.append(opened)
        return app

    with pytest.raises(BoomError):
        async with aiohttp_client(make()) as http:
            assert await (await http.get("/")).text() == "now"
    with Kit() as kit:
        async with kit.aiohttp_client(make()) as http:
            await http.get("/")
            with pytest.raises(BoomError):
                await kit.wait()


# -- beside the frameworks' own ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "own"), [(starlette, TestClient), (fastapi, TestClient), (litestar, LitestarTestClient)]
)
def test_a_synchronous_test_client_can_be_waited_for(make, own):
    """TH-08: its loop turns in a thread; ``wait_sync`` waits for the work there."""
    with Kit() as kit:
        with own(make()) as http:
            assert http.get("/index").text == "now"
            kit.wait_sync()
            assert kit.assert_deferred(fine, 1).result() == 1
        kit.wait_sync()


def test_a_synchronous_wait_raises_and_warns():
    """As the asynchronous one."""
    with Kit() as kit, TestClient(starlette()) as http:
        http.get("/failing")
        http.get("/hanging")
        with pytest.warns(UnfinishedWorkWarning, match="'forever'") as warned, pytest.raises(BoomError):
            kit.wait_sync(0.01)
    assert warned[0].filename == __file__
    assert len(kit.of(TaskFailed)) == 1


def test_captured_work_of_a_synchronous_test_client():
    """It is run on the client's loop, or, when that is gone, on one of its own."""
    with Kit("capture") as kit:
        with TestClient(starlette()) as http:
            http.get("/index")
            handle = kit.assert_deferred(fine, 1)
            kit.captured.run_sync()
            assert handle.result() == 1
            http.get("/failing")
        with pytest.raises(BoomError):
            kit.captured.run_sync()


def test_work_of_a_test_client_without_a_lifespan_can_never_end():
    """B40: without ``with`` the loop of each request is closed behind it, and the work with it."""
    with Kit() as kit:
        TestClient(starlette()).get("/hanging")
        with pytest.warns(UnfinishedWorkWarning, match="event loop"):
            kit.wait_sync()


async def test_without_httpx_the_client_says_what_to_install(monkeypatch):
    """The error names the extra, and not a package that nobody has heard of."""
    for name in ("httpx", "httpx2"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "deferred.testing._http", raising=False)
    with pytest.raises(ModuleNotFoundError, match=r"deferred-middleware\[testing\]"):
        async with client(starlette()):
            raise AssertionError
