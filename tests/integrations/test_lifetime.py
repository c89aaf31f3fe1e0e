"""Frameworks whose integration makes the middleware itself, on hosts that stop after the app call."""

import asyncio

import pytest
from litestar import Litestar, get
from quart import Quart

from deferred import Supervisor, defer
from deferred.integrations.asgi import DeferredMiddleware
from deferred.integrations.litestar import DeferredPlugin
from deferred.integrations.quart import DeferredQuart
from tests.integrations.asgi_client import Client, idle, turns
from tests.integrations.raw_app import answer

pytestmark = pytest.mark.filterwarnings("ignore:.*asyncio.iscoroutinefunction.*:DeprecationWarning")


def litestar_app(handler, supervisor, **options):
    """Return a Litestar app that answers with what `handler` says."""

    @get("/")
    async def index() -> str:
        return handler()

    return Litestar([index], plugins=[DeferredPlugin(supervisor, **options)], logging_config=None, openapi_config=None)


def quart_app(handler, supervisor, **options):
    """Return a Quart app that answers with what `handler` says."""
    app = Quart(__name__)
    app.add_url_rule("/", "index", handler)
    DeferredQuart(app, supervisor, **options)
    return app


APPS = pytest.mark.parametrize("build", [litestar_app, quart_app])


@APPS
async def test_with_lifetime_request_the_call_returns_after_the_work(build, script, caplog):
    """S11: without any lifespan, and with no warning of that; the answer is complete before."""

    async def work():
        await turns(10)
        script.note("work")

    def handler():
        defer(work)
        return "now"

    client = Client(build(handler, Supervisor(), lifetime="request"))
    exchange = client.open("GET", "/").start()
    await exchange.until(lambda: exchange.complete)
    assert script.noted == []
    await exchange.done()
    assert exchange.body == b"now"
    assert script.noted == ["work"]
    assert not caplog.records


@APPS
async def test_by_default_the_call_does_not_wait(build):
    """S4: work never runs inside the app call."""
    gate = asyncio.Event()

    def handler():
        defer(gate.wait)
        return "now"

    supervisor = Supervisor()
    async with Client(build(handler, supervisor)) as client:
        assert (await client.get("/")).body == b"now"
        assert supervisor.stats().running + supervisor.stats().pending == 1
        gate.set()


@APPS
def test_a_lifetime_that_is_none_is_refused(build):
    """Where it is given, with both that there are."""
    with pytest.raises(ValueError, match="lifetime must be one of 'app', 'request', not 'session'"):
        build(str, None, lifetime="session")


async def test_litestar_makes_one_middleware_for_a_handler():
    """S12: what a request costs is its context, not the set-up of a middleware."""
    app = litestar_app(lambda: "now", Supervisor())
    plugin = app.plugins.get(DeferredPlugin)
    async with Client(app) as client:
        for _ in range(3):
            await client.get("/")
    assert len(plugin._middleware._made) == 1


@pytest.mark.parametrize("options", [{"lifetime": "request"}, {"wait_until": None}])
async def test_a_timeout_around_the_app_cuts_no_work(script, options, monkeypatch):
    """B25: the answer is out, and the call is cancelled while it stays open: the work goes on to its end."""
    if "wait_until" in options:  # a host that has none to offer here
        monkeypatch.setenv("VERCEL", "1")
    supervisor = Supervisor()
    go_on = asyncio.Event()

    async def work():
        await go_on.wait()
        script.note("work")

    async def app(scope, receive, send):
        defer(work)
        await answer(send, 200, b"now")

    wrapped, late = DeferredMiddleware(app, supervisor, **options), asyncio.Event()

    async def around(scope, receive, send):
        call = asyncio.create_task(wrapped(scope, receive, send))
        await late.wait()
        call.cancel()
        await asyncio.wait([call])

    exchange = Client(around).open("GET", "/").start()
    await exchange.until(lambda: exchange.complete)
    await turns(3)
    late.set()
    await exchange.done()
    go_on.set()
    await idle(supervisor)
    assert script.noted == ["work"]
    assert supervisor.stats().succeeded == 1
