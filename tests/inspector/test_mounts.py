"""The inspector inside apps of every framework, and beside any ASGI app."""

import asyncio

import httpx
import pytest

from deferred import Supervisor, defer
from deferred.inspector import Inspector
from deferred.integrations.asgi import DeferredMiddleware
from tests.inspector.support import HOME, PREFIX


async def work():
    """Do nothing."""


def starlette(supervisor, inspector):
    """Mount it in Starlette."""
    from starlette.applications import Starlette
    from starlette.responses import PlainTextResponse
    from starlette.routing import Mount, Route

    async def register(request):
        defer(work)
        return PlainTextResponse("ok")

    app = Starlette(routes=[Route("/register", register), Mount(PREFIX, inspector)])
    return DeferredMiddleware(app, supervisor)


def fastapi(supervisor, inspector):
    """Mount it in FastAPI."""
    from fastapi import FastAPI

    app = FastAPI()

    @app.get("/register")
    async def register():
        defer(work)

    app.mount(PREFIX, inspector)
    return DeferredMiddleware(app, supervisor)


def litestar(supervisor, inspector):
    """Mount it in Litestar."""
    from litestar import Litestar, asgi, get
    from litestar.types import Receive, Scope, Send

    from deferred.integrations.litestar import DeferredPlugin

    @get("/register")
    async def register() -> str:
        defer(work)
        return "ok"

    @asgi(PREFIX, is_mount=True, copy_scope=True)
    async def mounted(scope: Scope, receive: Receive, send: Send) -> None:
        await inspector(scope, receive, send)

    return Litestar([register, mounted], plugins=[DeferredPlugin(supervisor)], logging_config=None)


def quart(supervisor, inspector):
    """Put it beside a Quart app."""
    from quart import Quart

    from deferred.integrations.quart import DeferredQuart

    app = Quart("shop")
    DeferredQuart(app, supervisor)

    @app.get("/register")
    async def register():
        defer(work)
        return "ok"

    app.asgi_app = inspector.mount(app.asgi_app)
    return app


def bare(supervisor, inspector):
    """Put it beside any ASGI app, Django's for one."""

    async def app(scope, receive, send):
        defer(work)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})

    return inspector.mount(DeferredMiddleware(app, supervisor))


def below(supervisor, inspector):
    """Put it beside an app that itself is mounted below a prefix."""
    app = bare(supervisor, inspector)

    async def outer(scope, receive, send):
        await app({**scope, "root_path": "/outer", "path": "/outer" + scope["path"]}, receive, send)

    return outer


@pytest.mark.parametrize("make", [starlette, fastapi, litestar, quart, bare, below])
async def test_it_is_mounted(make):
    """G22: The page, its files, its questions and its redirect are all found below the prefix."""
    supervisor = Supervisor()
    inspector = Inspector(supervisor, debug=True)
    app = make(supervisor, inspector)
    transport = httpx.ASGITransport(app)
    async with supervisor, httpx.AsyncClient(transport=transport, base_url=HOME, follow_redirects=True) as client:
        assert (await client.get("/register")).status_code == 200
        while supervisor._launcher.tasks:
            await asyncio.sleep(0)
        page = await client.get(PREFIX)
        assert page.status_code == 200
        assert page.url.path == f"{PREFIX}/"
        assert "deferred · inspector" in page.text
        assert (await client.get(f"{PREFIX}/static/app.js")).status_code == 200
        answer = await client.get(f"{PREFIX}/api/requests")
        assert answer.headers["content-security-policy"].startswith("default-src 'none'")
        request = answer.json()["requests"][-1]  # after which a framework may have redirected on its own
        assert request["route"].endswith("/register")
        assert [row["state"] for row in request["rows"]] == ["succeeded"]
        assert (await client.get("/_deferredly")).status_code in {200, 404}
    inspector.close()


@pytest.mark.parametrize("path", ["_deferred", "", "/"])
def test_a_place_is_below_the_root(path):
    """The path of the inspector begins with a slash and has a name."""
    inspector = Inspector(Supervisor())
    with pytest.raises(ValueError, match="such as '/_deferred'"):
        inspector.mount(starlette, path)
    inspector.close()


async def test_the_lifespan_is_the_apps():
    """What is no request of the inspector's goes through to the app, the lifespan too."""
    scopes = []

    async def app(scope, receive, send):
        scopes.append(scope)

    inspector = Inspector(Supervisor())
    mounted = inspector.mount(app)
    for scope in ({"type": "lifespan"}, {"type": "http", "path": "/"}, {"type": "http", "path": f"{PREFIX}x"}):
        await mounted(scope, None, None)
        assert scopes[-1] is scope
    inspector.close()
