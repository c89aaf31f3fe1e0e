"""The promises, and what is particular to it, of Quart with `DeferredQuart`."""

import pytest
from quart import Blueprint, Quart, Response, abort, redirect, request, websocket

from deferred import Supervisor, TaskRejectedError, current_context, defer
from deferred.integrations.quart import DeferredQuart, deferred_from
from tests.integrations.asgi_client import Client, idle
from tests.integrations.promises import Adapter, Promises
from tests.integrations.raw_app import MARKS
from tests.integrations.script import BoomError, late


def blueprint(script, context):  # noqa: C901  # one function a route
    """Return the routes of the promises that a plain HTTP handler can serve."""
    routes = Blueprint("routes", __name__)

    @routes.get("/plain")
    async def plain():
        await script.handle(context())
        return "plain"

    @routes.post("/body")
    async def body():
        await request.get_data()
        script.act(context())
        return "body"

    @routes.get("/stream")
    async def stream():
        script.act(context())
        return Response(script.stream(context()))

    @routes.get("/raises")
    async def raises():
        await script.handle(context())
        raise BoomError

    @routes.get("/http-error")
    async def http_error():
        await script.handle(context())
        abort(409)

    @routes.get("/redirect")
    async def to_plain():
        await script.handle(context())
        return redirect("/plain", 303)

    @routes.get("/nothing")
    async def nothing():
        await script.handle(context())
        return "", 204

    @routes.get("/not-modified")
    async def not_modified():
        await script.handle(context())
        return "", 304

    @routes.get("/sync")
    def sync():
        script.act(context())
        return "sync"

    @routes.get("/own")
    async def own():
        ctx = context()

        async def after():  # outside the request, as Quart has it
            script.after(ctx)

        await script.handle(ctx)
        routes.app.add_background_task(after)
        routes.app.add_background_task(script.work, "own")
        return "own"

    @routes.get("/own-raises")
    async def own_raises():
        async def fails():
            raise BoomError

        await script.handle(context())
        routes.app.add_background_task(fails)
        return "own"

    for name, mark in MARKS.items():

        @mark
        async def run():
            await context().run(script.step)
            return "ran"

        routes.add_url_rule(f"/run/{name}", name, run)
    return routes


def behind(script, context):
    """Return ``/behind``: a route with a function before it, which defers as well."""
    routes = Blueprint("behind", __name__)

    @routes.before_request
    async def before():
        script.act(context())

    @routes.get("/behind")
    async def handler():
        await script.handle(context())
        return "behind"

    return routes


def sockets(script, context):
    """Return the websockets of the promises."""
    routes = Blueprint("sockets", __name__)

    @routes.websocket("/socket")
    async def socket():
        await websocket.accept()
        await script.handle(context())
        while (text := await websocket.receive()) != "bye":
            if text == "boom":
                raise BoomError
            await websocket.send(text)
        await websocket.close(1000)

    @routes.websocket("/refused")
    async def refused():
        await script.handle(context())
        await websocket.close(1008)

    return routes


class QuartAdapter(Adapter):
    """A Quart app with the extension."""

    lacks = frozenset({"/listens"})  # Quart itself listens, and cancels the handler

    def build(self, script, supervisor):
        """Build the app, with another one mounted in it."""

        def context():
            if supervisor is None:
                return None
            return deferred_from(request or websocket)

        app, inner = Quart("outer"), Quart("inner")
        for routes in (blueprint(script, context), behind(script, context), sockets(script, context)):
            app.register_blueprint(routes)
        app.blueprints["routes"].app = app
        inner.register_blueprint(blueprint(script, context))

        @app.while_serving
        async def resource():
            script.opening()
            yield
            script.closing()

        outermost = app.asgi_app

        async def dispatch(scope, receive, send):
            if scope.get("path", "").startswith("/mounted/"):
                await inner(scope | {"root_path": "/mounted"}, receive, send)
            else:
                await outermost(scope, receive, send)

        app.asgi_app = dispatch
        if supervisor is not None:
            DeferredQuart(app, supervisor)
        return app

    def wrap_again(self, app, supervisor):
        """Put the extension on the app once more."""
        DeferredQuart(app, supervisor)
        return app


class TestPromises(Promises):
    """The promises of every framework."""

    adapter = QuartAdapter()


def failing(app, script):
    """Give `app` a route that is refused its second task."""

    @app.get("/")
    async def handler():
        defer(script.work)
        defer(script.work)
        return "never"


async def test_the_context_is_found_by_the_proxy_and_by_the_request_itself(script):
    """`deferred_from` takes Quart's `request` proxy, the request behind it, and the scope."""
    app = Quart("app")
    DeferredQuart().init_app(app)
    found = []

    @app.get("/")
    async def handler():
        found.extend(map(deferred_from, (request, request._get_current_object(), request.scope)))
        return "found"

    async with Client(app) as client:
        assert (await client.get("/")).status == 200
    assert len(found) == 3
    assert len(set(map(id, found))) == 1


async def test_deferred_work_reads_the_request_it_came_from(script):
    """AP-01, AP-03: Quart's proxies give the headers and cookies of the request inside its deferred work."""
    supervisor = Supervisor()
    app = Quart("app")
    DeferredQuart(app, supervisor)

    async def work():
        script.note(request.headers["x-name"])
        script.note(request.cookies["flavour"])

    @app.get("/")
    async def handler():
        defer(work)
        return "read"

    async with Client(app) as client:
        await client.get("/", headers=((b"x-name", b"ours"), (b"cookie", b"flavour=plain")))
        await idle(supervisor)
    assert script.noted == ["ours", "plain"]


async def test_hooks_of_the_framework_may_defer(script):
    """Functions before, after and at the teardown of a request find its context, error handlers as well."""
    supervisor = Supervisor()
    app = Quart("app")
    DeferredQuart(app, supervisor)

    @app.before_request
    async def before():
        defer(script.work, "before")

    @app.after_request
    async def after(response):
        defer(script.work, "after")
        return response

    @app.teardown_request
    async def teardown(error):
        defer(script.work, "teardown")

    @app.errorhandler(BoomError)
    async def handle_error(error):
        defer(script.work, "error handler")
        return "handled", 418

    @app.get("/")
    async def handler():
        raise BoomError

    async with Client(app) as client:
        assert (await client.get("/")).status == 418
        await idle(supervisor)
    assert sorted(script.noted) == ["after", "before", "error handler", "teardown"]


async def test_the_drain_comes_before_after_serving(script):
    """Work ends before ``after_serving`` functions are called and before ``while_serving`` generators go on."""
    supervisor = Supervisor()
    app = Quart("app")
    DeferredQuart(app, supervisor)
    slow = late(supervisor, lambda: script.note("work"))

    @app.get("/")
    async def handler():
        defer(slow)
        return "slow"

    @app.while_serving
    async def serving():
        yield
        script.note("while_serving")

    @app.after_serving
    async def after():
        script.note("after_serving")

    async with Client(app) as client:
        await client.get("/")
    assert script.noted[0] == "work"
    assert sorted(script.noted[1:]) == ["after_serving", "while_serving"]


@pytest.mark.parametrize("first", ["extension", "handler"])
async def test_the_users_own_answer_to_a_rejection_wins(script, first):
    """An error handler of the app for rejections replaces ours, whichever was there first."""
    app = Quart("app")

    async def mine(error):
        return "later", 429

    if first == "handler":
        app.register_error_handler(TaskRejectedError, mine)
    DeferredQuart(app, Supervisor(max_per_context=1))
    if first == "extension":
        app.register_error_handler(TaskRejectedError, mine)
    failing(app, script)
    async with Client(app) as client:
        assert (await client.get("/")).status == 429


async def test_a_rejection_is_answered_also_while_testing(script):
    """With ``app.testing``, where Quart lets exceptions through, a rejection is a 503 all the same."""
    app = Quart("app")
    app.testing = True
    DeferredQuart(app, Supervisor(max_per_context=1))
    failing(app, script)
    async with app.test_app() as test_app:
        response = await test_app.test_client().get("/")
        assert response.status_code == 503
        assert response.headers["Retry-After"] == "1"
        assert await response.get_data(as_text=True) == "the service is overloaded, try again later"


async def test_quarts_own_test_client_runs_the_work(script):
    """``app.test_client()`` goes through the extension, and ``test_app()`` drains when it is left."""
    app = Quart("app")
    background = DeferredQuart(app)

    @app.get("/")
    async def handler():
        assert current_context() is deferred_from(request)
        defer(script.work)
        return "now"

    async with app.test_app() as test_app:
        response = await test_app.test_client().get("/")
        assert await response.get_data(as_text=True) == "now"
    assert script.noted == ["work"]
    assert background.supervisor.stats().succeeded == 1


def test_a_second_extension_with_another_supervisor_is_refused():
    """An app with two supervisors would drain one of them: the second is refused, naming the first."""
    app = Quart("app")
    first = DeferredQuart(app)
    first.init_app(app)
    with pytest.raises(ValueError, match=r"'app' has a DeferredQuart already.*extensions"):
        DeferredQuart(app)
    assert app.extensions["deferred"] is first
