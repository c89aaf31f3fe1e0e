"""Rejections that frameworks answer with a page of their own: outside Quart's extension, around Django's views."""

import asyncio

import pytest
from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.http import HttpResponse
from quart import Quart, request
from starlette.applications import Starlette
from starlette.routing import Mount

from deferred import Supervisor, TaskRejectedError, defer
from deferred.integrations.asgi import DeferredMiddleware
from deferred.integrations.quart import DeferredQuart
from tests.integrations.asgi_client import Client, turns
from tests.integrations.script import BoomError
from tests.integrations.test_django import project


def refused(*others):
    """Be refused the second task, in a group of errors; with `others` in it."""
    defer(asyncio.sleep, 0)
    try:
        defer(asyncio.sleep, 0)
    except TaskRejectedError as error:  # a handler that has a task group is given a group
        raise ExceptionGroup("unhandled errors in a TaskGroup", [error, *others]) from None


def quart():
    """Return a Quart app without the extension that is refused in every place."""
    app = Quart(__name__)

    @app.before_request
    async def before():
        if request.path.endswith("/before"):
            refused()

    @app.after_request
    async def after(response):
        if request.path.endswith("/after"):
            refused()
        return response

    @app.get("/handler")
    async def handler():
        refused()

    @app.get("/mixed")
    async def mixed():
        refused(BoomError())

    @app.get("/after")
    async def fine():
        return "fine"

    return app


def wrapped(supervisor):
    """Put the middleware around the app."""
    return DeferredMiddleware(quart(), supervisor)


def mounted(supervisor):
    """Put the middleware around an app that the app is mounted in."""
    return DeferredMiddleware(Starlette(routes=[Mount("/", quart())]), supervisor)


def extended(supervisor):
    """Put the extension on the app."""
    app = quart()
    DeferredQuart(app, supervisor)
    return app


@pytest.mark.parametrize("put", [wrapped, mounted, extended])
@pytest.mark.parametrize(("path", "status"), [("/handler", 503), ("/before", 503), ("/after", 503), ("/mixed", 500)])
async def test_a_rejection_out_of_quart(put, path, status):
    """S10: wherever Quart is refused, and however it is served, the answer is one 503, and other errors are its own."""
    async with Client(put(Supervisor(max_per_context=1))) as client:
        exchange = await client.get(path)
        await turns(2)
    assert exchange.status == status
    assert exchange.headers.get("retry-after") == ("1" if status == 503 else None)
    assert [message["type"] for message in exchange.sent].count("http.response.start") == 1
    assert (b"the service is overloaded" in exchange.body) is (status == 503)


async def test_a_rejection_where_no_middleware_is():
    """S12: an app that is called by hand, in a context of a test, keeps its page."""
    with Supervisor(max_per_context=1).context():
        async with Client(quart()) as client:
            assert (await client.get("/handler")).status == 500


class Refused:
    """A middleware of Django that is refused before the view, in either kind of project."""

    async_capable = sync_capable = True

    def __init__(self, get_response):
        self.get_response = get_response
        if iscoroutinefunction(get_response):
            markcoroutinefunction(self)

    def __call__(self, request):
        """Be refused, alone or with another error."""
        refused(*([BoomError()] if request.path == "/mixed" else []))


class Synchronous:
    """The same in a thread."""

    def __init__(self, get_response):
        self.get_response = get_response

    def __call__(self, request):
        """Be refused, alone or with another error."""
        return Refused.__call__(self, request)


@pytest.mark.parametrize("middleware", [Refused, Synchronous])
@pytest.mark.parametrize(("path", "status"), [("/", 503), ("/mixed", 500)])
async def test_a_rejection_out_of_a_middleware_of_django(middleware, path, status):
    """S10: a middleware of Django that is refused is answered with 503 too, in a group of errors or in a thread."""

    async def view(_request):
        return HttpResponse("never reached")

    app = project(Supervisor(max_per_context=1), (path[1:], view), middleware=(f"{__name__}.{middleware.__name__}",))
    async with Client(app) as client:
        exchange = await client.get(path)
    assert exchange.status == status
    assert exchange.headers.get("retry-after") == ("1" if status == 503 else None)
