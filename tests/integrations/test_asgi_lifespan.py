"""The raw ASGI middleware in the lifespan: apps that know none, that fail, that are mounted."""

import asyncio
import logging

import pytest

from deferred import (
    DrainFinished,
    DrainStarted,
    Supervisor,
    current_context,
    defer,
)
from deferred.integrations.asgi import DeferredMiddleware
from tests.integrations.asgi_client import Client, turns
from tests.integrations.raw_app import RawApp, answer, finish
from tests.integrations.script import late


async def raises(scope, receive, send):
    """Know no lifespan, as an app with an assertion on the type."""
    if scope["type"] != "http":
        raise AssertionError
    await answer(send, 200, b"")


async def returns(scope, receive, send):
    """Know no lifespan, as an app that returns for what it does not know."""
    if scope["type"] == "http":
        await answer(send, 200, b"")


async def defers(scope, receive, send):
    """Know no lifespan, as an app that takes every scope for a request."""
    defer(asyncio.sleep, 0)
    await answer(send, 200, b"")


@pytest.mark.parametrize("app", [raises, returns, defers])
async def test_an_app_without_lifespan_is_drained_all_the_same(app, script, caplog):
    """Where the app knows no lifespan, the middleware plays its part: it opens, drains and warns of nothing."""
    supervisor = Supervisor()
    slow = late(supervisor, lambda: script.note("drained"))

    async def with_work(scope, receive, send):
        if scope["type"] == "http":
            defer(slow)
        await app(scope, receive, send)

    client = Client(DeferredMiddleware(with_work, supervisor))
    async with client:
        await client.get("/")
    assert client.lifespan.answers == ["startup.complete", "shutdown.complete"]
    assert client.lifespan.error is None
    assert script.noted == ["drained"]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_a_failure_of_the_apps_own_in_the_lifespan_is_left_to_the_server(script):
    """An error that is the app's own, not Python's, is no sign of ignorance: it is raised as without us."""

    class BrokenError(Exception):
        pass

    async def broken(scope, receive, send):
        if scope["type"] != "http":
            raise BrokenError
        defer(script.work)
        await answer(send, 200, b"")

    client = Client(DeferredMiddleware(broken))
    async with client:
        await client.get("/")
        await turns(2)
    assert client.lifespan.answers == []
    assert isinstance(client.lifespan.error, BrokenError)
    assert script.noted == ["work"]


async def test_an_app_that_fails_at_its_shutdown_says_so_after_the_drain(script):
    """B29: the error of an app's shutdown reaches the server, and the drain has ended before."""
    supervisor = Supervisor()

    async def app(scope, receive, send):
        if scope["type"] == "http":
            defer(script.work)
            await answer(send, 200, b"")
            return
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        script.note("shutdown")
        raise RuntimeError("no")

    client = Client(DeferredMiddleware(app, supervisor))
    async with client:
        await client.get("/")
    assert isinstance(client.lifespan.error, RuntimeError)
    assert script.noted == ["work", "shutdown"]


async def test_a_mounted_app_with_a_supervisor_of_its_own_is_drained_with_the_outer_one(script):
    """A mounted app gets no lifespan: its supervisor is drained by the one around it, each with its context."""
    outer, inner = Supervisor(), Supervisor()
    reports = []
    for name, supervisor in (("outer", outer), ("inner", inner)):
        supervisor.add_hook(
            lambda event, name=name: isinstance(event, DrainFinished) and reports.append((name, event.report.finished))
        )
    gate = asyncio.Event()
    inner.add_hook(lambda event: gate.set() if isinstance(event, DrainStarted) else None)

    async def slow(what):
        await gate.wait()
        script.note(what)

    async def mounted(scope, receive, send):
        defer(slow, "inner")
        contexts.append(current_context())
        await answer(send, 200, b"")

    mounted = DeferredMiddleware(mounted, inner)
    contexts = []

    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            await RawApp(script, bare=True).lifespan(receive, send)
            return
        contexts.append(current_context())
        await mounted(scope, receive, send)
        assert current_context() is contexts[0]
        defer(slow, "outer")

    client = Client(DeferredMiddleware(app, outer))
    async with client:
        await client.get("/")
    assert contexts[0] is not contexts[1]
    assert sorted(script.noted) == ["inner", "outer"]
    assert sorted(reports) == [("inner", 1), ("outer", 1)]


async def test_lifetime_request_keeps_the_app_call_open(script):
    """With ``lifetime="request"`` the call returns when the work of its request is done, nested work too."""

    async def nested():
        script.note("first")
        await turns(3)
        defer(script.work, "second")

    async def app(scope, receive, send):
        defer(nested)
        await answer(send, 200, b"")
        script.note("answered")

    supervisor = Supervisor()
    async with supervisor:
        exchange = await finish(DeferredMiddleware(app, supervisor, lifetime="request"))
        script.note("returned")
    assert script.noted == ["answered", "first", "second", "returned"]
    assert exchange.returned >= script.turn_of("second")
