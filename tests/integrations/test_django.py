"""The promises, and what is particular to it, of Django behind our `get_asgi_application`."""

import asyncio
import gc
import threading

import pytest
from asgiref.sync import iscoroutinefunction, markcoroutinefunction, sync_to_async
from django.conf import settings

from deferred import (
    DeferredContext,
    NoCurrentContextError,
    Retry,
    Supervisor,
    TaskRejectedError,
    current_context,
    defer,
)
from tests.integrations.asgi_client import Client, idle
from tests.integrations.promises import Adapter, Promises
from tests.integrations.raw_app import MARKS
from tests.integrations.script import BoomError

SETTINGS = {
    "ALLOWED_HOSTS": ["*"],
    "ROOT_URLCONF": (),
    "SECRET_KEY": "of the tests",
    "USE_TZ": True,
    "LOGGING_CONFIG": None,
    "DATABASES": {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
}
settings.configure(**SETTINGS)

import django  # noqa: E402  # Django wants its settings first
from django.core.exceptions import PermissionDenied  # noqa: E402  # as above
from django.core.wsgi import get_wsgi_application  # noqa: E402  # as above
from django.db import connection, connections, transaction  # noqa: E402  # as above
from django.http import Http404, HttpResponse, HttpResponseNotAllowed, HttpResponseRedirect, StreamingHttpResponse  # noqa: E402  # as above
from django.test import AsyncRequestFactory, RequestFactory, override_settings  # noqa: E402  # as above
from django.urls import path  # noqa: E402  # as above

from deferred.integrations.django import deferred_from, get_asgi_application  # noqa: E402  # as above

django.setup()

# Django 5.2 and older leave the file of a request's body to the garbage collector when the client has gone.
pytestmark = pytest.mark.filterwarnings("ignore:Unclosed file .tempfile.SpooledTemporaryFile:ResourceWarning")


@pytest.fixture(autouse=True, scope="module")
def no_litter():
    """Collect what the garbage collector would find in the tests of another module."""
    yield
    gc.collect()


class Routes:
    """A middleware that gives each request the routes its server has put in the scope: apps of their own."""

    async_capable = sync_capable = True

    def __init__(self, get_response):
        self.get_response = get_response
        if iscoroutinefunction(get_response):
            markcoroutinefunction(self)

    def __call__(self, request):
        """Choose the routes."""
        request.urlconf = request.scope["test.routes"]
        return self.get_response(request)


class Behind:
    """A middleware as Django users write them, synchronous, which defers as well."""

    def __init__(self, get_response):
        self.get_response = get_response

    def __call__(self, request):
        """Act before the view, in its thread."""
        if request.path == "/behind":
            request.scope["test.act"](request)
        return self.get_response(request)


def serve(application, routes, act=None):
    """Return `application` with these routes."""

    async def app(scope, receive, send):
        if scope["type"] == "http":
            scope["test.routes"], scope["test.act"] = routes, act
        await application(scope, receive, send)

    return app


def views(script, context):  # noqa: C901  # one function a route
    """Return the routes of the promises."""

    async def plain(request):
        if request.method not in {"GET", "HEAD"}:
            return HttpResponseNotAllowed(["GET", "HEAD"])
        await script.handle(context(request))
        return HttpResponse("plain")

    async def body(request):
        assert set(request.body) <= {ord("x")}
        script.act(context(request))
        return HttpResponse("body")

    async def stream(request):
        script.act(context(request))
        return StreamingHttpResponse(script.stream(context(request)))

    async def raises(request):
        await script.handle(context(request))
        raise BoomError

    async def http_error(request):
        await script.handle(context(request))
        raise PermissionDenied

    async def redirect(request):
        await script.handle(context(request))
        return HttpResponseRedirect("/plain")

    async def nothing(request):
        await script.handle(context(request))
        return HttpResponse(status=204)

    async def not_modified(request):
        await script.handle(context(request))
        return HttpResponse(status=304)

    def sync(request):
        script.act(context(request))
        return HttpResponse("sync")

    routes = [
        path("plain", plain),
        path("body", body),
        path("stream", stream),
        path("raises", raises),
        path("http-error", http_error),
        path("redirect", redirect),
        path("nothing", nothing),
        path("not-modified", not_modified),
        path("sync", sync),
        path("behind", plain),
    ]
    for name, mark in MARKS.items():

        @mark
        async def run(request):
            await context(request).run(script.step)
            return HttpResponse("ran")

        routes.append(path(f"run/{name}", run))
    return tuple(routes)


class DjangoAdapter(Adapter):
    """A Django project."""

    # It serves HTTP alone, mounts nothing but by include(), and has no background tasks and no lifespan.
    lacks = frozenset({"/listens", "/own", "/own-raises", "/socket", "/refused", "/mounted/plain", "lifespan"})

    def build(self, script, supervisor):
        """Build the app."""

        def context(request):
            return None if supervisor is None else deferred_from(request)

        middleware = [f"{__name__}.Routes", "django.middleware.common.CommonMiddleware", f"{__name__}.Behind"]
        with override_settings(MIDDLEWARE=middleware):
            if supervisor is None:
                from django.core.asgi import get_asgi_application as django_application

                application = django_application()
            else:
                application = get_asgi_application(supervisor)
        return serve(application, views(script, context), lambda request: script.act(context(request)))


class TestPromises(Promises):
    """The promises of every framework."""

    adapter = DjangoAdapter()


def project(supervisor, *routes, middleware=()):
    """Return a project with these views; each is ``(path, view)``."""
    with override_settings(MIDDLEWARE=[f"{__name__}.Routes", *middleware]):
        application = get_asgi_application(supervisor)
    return serve(application, tuple(path(where, view) for where, view in routes))


class Own:
    """A middleware with an answer of its own to rejected work."""

    def __init__(self, get_response):
        self.get_response = get_response

    def __call__(self, request):
        """Go on."""
        return self.get_response(request)

    def process_exception(self, request, exception):
        """Answer rejections."""
        return HttpResponse("later", status=429) if isinstance(exception, TaskRejectedError) else None


def rejected(request):
    """Be refused the second task."""
    defer(asyncio.sleep, 0)
    defer(asyncio.sleep, 0)


async def rejected_async(request):
    """Be refused the second task."""
    rejected(request)


@pytest.mark.parametrize("view", [rejected, rejected_async])
async def test_the_projects_own_answer_to_a_rejection_wins(view):
    """Rejected work is a 503 from either kind of view, or what ``process_exception`` of the project makes of it."""
    for middleware, status in [((), 503), ((f"{__name__}.Own",), 429)]:
        app = project(Supervisor(max_per_context=1), ("", view), middleware=middleware)
        async with Client(app) as client:
            exchange = await client.get("/")
        assert exchange.status == status
        assert exchange.headers.get("retry-after") == ("1" if status == 503 else None)


async def test_a_missing_object_runs_the_work_for_errors(script):
    """B02: ``Http404`` is an outcome like any other: work for errors runs, work for success does not."""

    def missing(request):
        ctx = deferred_from(request)
        for when in ("always", "success", "error"):
            ctx.with_options(when=when).defer(script.work, when)
        raise Http404

    supervisor = Supervisor()
    async with Client(project(supervisor, ("", missing))) as client:
        assert (await client.get("/")).status == 404
        await idle(supervisor)
    assert script.noted == ["always", "error"]


async def test_a_stream_from_a_thread_finds_its_context(script):
    """A synchronous streaming response runs in a thread; what it defers runs after its last chunk."""
    supervisor = Supervisor()

    def chunks():
        yield b"one"
        defer(script.work)
        yield b"two"

    def stream(request):
        return StreamingHttpResponse(chunks())

    app = project(supervisor, ("", stream))
    async with Client(app) as client:
        with pytest.warns(Warning, match="must consume synchronous iterators"):
            exchange = await client.get("/")
        await idle(supervisor)
    assert exchange.body == b"onetwo"
    assert script.turn_of("work") > exchange.last


# -- databases ------------------------------------------------------------------------------------


@pytest.fixture
def database(tmp_path):
    """Give a database file with an empty table, and see that nobody leaves a connection behind."""
    connections.settings["default"]["NAME"] = str(tmp_path / "test.sqlite3")
    execute("CREATE TABLE runners (name TEXT)")
    connections.close_all()
    yield
    connections.close_all()
    gc.collect()  # a connection left behind warns, and warnings are errors


def execute(statement, *values):
    """Run a statement on this thread's connection; return its rows."""
    with connection.cursor() as cursor:
        cursor.execute(statement, values)
        return cursor.fetchall() if cursor.description else []


def insert(name):
    """Write a row."""
    execute("INSERT INTO runners VALUES (%s)", name)


def names():
    """Read the rows."""
    return [name for (name,) in execute("SELECT name FROM runners")]


async def test_work_deferred_on_commit_sees_the_row(script, database):
    """``transaction.on_commit(lambda: defer(...))``: the work runs after the commit and the answer."""
    supervisor = Supervisor()

    async def mail(name):
        script.note(f"{name} of {await sync_to_async(names)()}")

    def register(request):
        with transaction.atomic():
            insert("ours")
            transaction.on_commit(lambda: defer(mail, "ours"))
            assert not deferred_from(request).tasks
        assert len(deferred_from(request).tasks) == 1
        return HttpResponse("registered")

    async with Client(project(supervisor, ("", register))) as client:
        assert (await client.get("/")).status == 200
        await idle(supervisor)
    assert script.noted == ["ours of ['ours']"]


async def test_work_on_commit_is_dropped_by_a_rollback(script, database):
    """What was to be deferred on commit is never registered when the transaction rolls back."""
    supervisor = Supervisor()

    def register(request):
        with transaction.atomic():
            insert("ours")
            transaction.on_commit(lambda: defer(script.work))
            raise Http404

    async with Client(project(supervisor, ("", register))) as client:
        assert (await client.get("/")).status == 404
        await idle(supervisor)
    assert script.noted == []


@pytest.mark.parametrize("kind", ["async", "sync", "awaitable"])
async def test_work_has_connections_of_its_own_which_are_closed(script, database, kind):
    """A task's connection is not the request's, so not its transaction's either, and is closed when the task ends."""
    supervisor = Supervisor()
    used = {}

    def query(who):
        insert(who)
        used[who] = (connection.connection, threading.get_ident())

    async def work():
        await sync_to_async(query)("task")

    async def view(request):
        await sync_to_async(query)("request")
        ctx = deferred_from(request)
        if kind == "awaitable":
            await ctx.wait_until(work())
        elif kind == "async":
            ctx.defer(work)
        else:
            ctx.defer(query, "task")
        return HttpResponse("now")

    async with Client(project(supervisor, ("", view))) as client:
        assert (await client.get("/")).status == 200
        await idle(supervisor)
    assert supervisor.stats().succeeded == 1
    assert used["task"][0] is not used["request"][0]
    assert used["task"][1] != used["request"][1]
    with pytest.raises(Exception, match="closed database"):
        used["task"][0].cursor()


async def test_each_attempt_has_a_fresh_connection(database):
    """A retried task does not go on with the connection of the attempt that failed."""
    supervisor = Supervisor()
    used = []

    def query():
        insert("task")
        used.append(connection.connection)
        if len(used) == 1:
            raise BoomError

    async def work():
        await sync_to_async(query)()

    async def view(request):
        deferred_from(request).with_options(retry=Retry(on=BoomError, wait_initial=0.001)).defer(work)
        return HttpResponse("now")

    async with Client(project(supervisor, ("", view))) as client:
        await client.get("/")
        await idle(supervisor)
    assert len(set(map(id, used))) == 2


async def test_a_sequential_step_is_part_of_the_requests_transaction(database):
    """A step that the route awaits uses the request's own connection."""
    supervisor = Supervisor()
    used = []

    async def step():
        used.append(await sync_to_async(lambda: execute("SELECT 1") and connection.connection)())

    @MARKS["sequential"]
    async def view(request):
        await step()
        await deferred_from(request).run(step)
        return HttpResponse("now")

    async with Client(project(supervisor, ("", view))) as client:
        assert (await client.get("/")).status == 200
    assert len(used) == 2
    assert used[0] is used[1]


async def test_two_applications_of_one_supervisor_wrap_its_tasks_once():
    """Our `get_asgi_application` may be called again, as test suites do."""
    supervisor = Supervisor()
    project(supervisor)
    once = supervisor._launcher.options.middleware
    project(supervisor)
    assert supervisor._launcher.options.middleware == once
    assert len(once) == 1


class Waits:
    """A synchronous middleware: its thread waits for the view, and runs what that hands to `sync_to_async`."""

    async_capable = False

    def __init__(self, get_response):
        self.get_response = get_response

    def __call__(self, request):
        """Go on."""
        return self.get_response(request)


@pytest.mark.parametrize("engine", ["django.db.backends.sqlite3", "django.db.backends.dummy"])
@pytest.mark.parametrize("early", [False, True])
async def test_work_outlives_a_synchronous_middleware(script, monkeypatch, engine, early):
    """S5: behind a synchronous middleware work has a thread of its own as well, before the answer and after it."""
    monkeypatch.setitem(connections.settings["default"], "ENGINE", engine)
    supervisor = Supervisor()
    threads = []

    async def work():
        for _ in range(2):
            threads.append(await sync_to_async(threading.get_ident)())

    async def view(request):
        threads.append(await sync_to_async(threading.get_ident)())
        if early:
            await current_context().wait_until(work())
        else:
            defer(work)
        return HttpResponse("now")

    async with Client(project(supervisor, ("", view), middleware=[f"{__name__}.Waits"])) as client:
        assert (await client.get("/")).body == b"now"
        await idle(supervisor)
    of_the_request, *of_the_work = threads
    assert len(of_the_work) == 2
    assert len(set(of_the_work)) == 1
    assert of_the_request not in of_the_work


# -- WSGI and tests -------------------------------------------------------------------------------


def test_under_wsgi_the_error_says_how_to_serve():
    """PG-02: deferring under WSGI is refused at the call, and the message says how to serve by ASGI."""
    seen = []

    def view(request):
        for attempt in (lambda: deferred_from(request), lambda: defer(asyncio.sleep, 0)):
            with pytest.raises(NoCurrentContextError, match="ASGI") as caught:
                attempt()
            seen.append(caught.value)
        return HttpResponse("refused")

    routes = (path("", view),)
    with override_settings(MIDDLEWARE=[], ROOT_URLCONF=routes):
        answer = get_wsgi_application()(RequestFactory().get("/").environ, lambda status, headers: None)
    assert list(answer) == [b"refused"]
    assert len(seen) == 2
    assert "uvicorn" in str(seen[0])


async def test_a_request_made_by_a_test_finds_the_context_around_it(script):
    """With a request of Django's factories, a view called inside ``supervisor.context()`` defers to that."""
    async with Supervisor() as supervisor:
        request = AsyncRequestFactory().get("/")
        with pytest.raises(NoCurrentContextError, match=r"asgi\.py"):
            deferred_from(request)
        with supervisor.context() as ctx:
            assert deferred_from(request) is ctx
            assert deferred_from(RequestFactory().get("/")) is ctx


async def test_django_is_served_by_a_stand_in_for_the_lifespan(script):
    """B26: Django knows no lifespan; the wrapper answers it and drains."""

    async def view(request):
        assert isinstance(current_context(), DeferredContext)
        defer(script.work)
        return HttpResponse("now")

    client = Client(project(Supervisor(), ("", view)))
    async with client:
        await client.get("/")
    assert client.lifespan.answers == ["startup.complete", "shutdown.complete"]
    assert script.noted == ["work"]
