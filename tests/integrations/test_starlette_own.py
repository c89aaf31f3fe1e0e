"""What is particular to Starlette: where the middleware may stand, and its background tasks."""

import asyncio
from contextlib import asynccontextmanager

import pytest
from starlette.applications import Starlette
from starlette.background import BackgroundTask as TheirTask
from starlette.background import BackgroundTasks as TheirTasks
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Mount, Route

from deferred import Supervisor, TaskRejected, TaskRejectedError, current_context, defer
from deferred.integrations import asgi
from deferred.integrations.starlette import BackgroundTask, BackgroundTasks, DeferredMiddleware
from tests.integrations.asgi_client import Client, idle, turns
from tests.integrations.promises_background import BackgroundPromises
from tests.integrations.script import BoomError, late


def app_of(handler, supervisor, **options):
    """Return an app with one route, and the middleware unless `supervisor` is None."""
    middleware = [] if supervisor is None else [Middleware(DeferredMiddleware, supervisor=supervisor)]
    return Starlette(routes=[Route("/", handler)], middleware=middleware, **options)


def with_background(response_class=PlainTextResponse, content=b"now"):
    """Return what builds an app whose response carries our `BackgroundTasks`."""

    @staticmethod
    def app(supervisor, calls):
        async def handler(request):
            tasks = BackgroundTasks()
            for func, args in calls:
                tasks.add_task(func, *args)
            return response_class(content, background=tasks)

        return app_of(handler, supervisor)

    return app


def with_list(supervisor, calls):
    """Build an app whose response carries our `BackgroundTasks`, made of a list."""

    async def handler(request):
        return PlainTextResponse(
            "now", background=BackgroundTasks([BackgroundTask(func, *args) for func, args in calls])
        )

    return app_of(handler, supervisor)


class TestAdded(BackgroundPromises):
    """The promises about background tasks, added one by one."""

    app = staticmethod(with_background())


class TestListed(BackgroundPromises):
    """The promises about background tasks, given as a list."""

    app = staticmethod(with_list)


class TestStreamed(BackgroundPromises):
    """The promises about background tasks, on a stream."""

    app = staticmethod(
        with_background(lambda content, background: StreamingResponse(chunks(content), background=background))
    )


async def chunks(content):
    """Give the body in two parts."""
    yield content[:1]
    yield content[1:]


class TestBehindMiddleware(BackgroundPromises):
    """The promises about background tasks, behind a `BaseHTTPMiddleware`."""

    @staticmethod
    def app(supervisor, calls):
        """Build an app with a `BaseHTTPMiddleware` between the middleware and the handler."""

        async def dispatch(request, call_next):
            return await call_next(request)

        return wrapped(BaseHTTPMiddleware(with_background()(None, calls), dispatch), supervisor)


def wrapped(app, supervisor):
    """Put the middleware around an app, unless `supervisor` is None."""
    return app if supervisor is None else DeferredMiddleware(app, supervisor)


def test_the_faces_are_starlettes():
    """What existing code reads of a background task is there, and it is an instance of Starlette's."""
    task = BackgroundTask(print, 1, sep=" ")
    assert isinstance(task, TheirTask)
    assert (task.func, task.args, task.kwargs, task.is_async) == (print, (1,), {"sep": " "}, False)
    tasks = BackgroundTasks([task])
    tasks.add_task(asyncio.sleep, 0)
    assert isinstance(tasks, TheirTasks)
    assert [one.func for one in tasks.tasks] == [print, asyncio.sleep]
    assert tasks.tasks[1].is_async


async def test_a_single_task_may_serve_many_responses(script):
    """A `BackgroundTask` made once runs for each response that carries it, in the context of that."""
    labels = []

    async def work():
        labels.append(current_context().id)

    task = BackgroundTask(work)
    supervisor = Supervisor()

    async def handler(request):
        return PlainTextResponse("now", background=task)

    async with Client(app_of(handler, supervisor)) as client:
        for _ in range(2):
            await client.get("/")
        await idle(supervisor)
    assert len(set(labels)) == 2


@pytest.mark.parametrize("bare", [False, True])
async def test_tasks_may_add_tasks(bare):
    """A17: what a task adds, from the event loop or a thread, runs behind all that was there, as Starlette has it."""
    supervisor, noted = Supervisor(), []

    async def handler(request):
        tasks = BackgroundTasks()

        async def first():
            tasks.add_task(noted.append, "from the first")
            await turns(3)
            noted.append("first")

        def second():
            noted.append("second")
            tasks.add_task(noted.append, "from the second")

        tasks.add_task(first)
        tasks.add_task(second)
        return PlainTextResponse("now", background=tasks)

    async with Client(app_of(handler, None if bare else supervisor)) as client:
        await client.get("/")
        await idle(supervisor)
    assert noted == ["first", "second", "from the first", "from the second"]


async def test_a_task_that_is_added_when_all_is_over_waits_for_the_next_response(script):
    """As with Starlette's own: the list may be sent with another response."""
    tasks = BackgroundTasks()
    supervisor = Supervisor()

    async def handler(request):
        return PlainTextResponse("now", background=tasks)

    async with Client(app_of(handler, supervisor)) as client:
        await client.get("/")
        tasks.add_task(script.work, "late")
        await turns(3)
        assert script.noted == []
        await client.get("/")
        await idle(supervisor)
    assert script.noted == ["late"]


async def test_a_single_task_runs_without_the_middleware_too(script):
    """A `BackgroundTask` without the middleware is called by Starlette as its own is."""

    async def handler(request):
        return PlainTextResponse("now", background=BackgroundTask(script.work))

    await Client(app_of(handler, None)).get("/")
    assert script.noted == ["work"]


async def test_a_rejection_in_the_midst_of_a_response_breaks_it_not(script):
    """A48: tasks called before the last byte cannot wait for themselves; the one too many is told, not raised."""
    rejected = []
    supervisor = Supervisor(
        max_per_context=1, hooks=[lambda event: isinstance(event, TaskRejected) and rejected.append(event.name)]
    )

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await BackgroundTasks([BackgroundTask(script.work, "accepted"), BackgroundTask(script.work, "rejected")])()
        await send({"type": "http.response.body", "body": b"now"})

    async with supervisor:
        exchange = await Client(DeferredMiddleware(app, supervisor)).get("/")
        await idle(supervisor)
    assert (exchange.body, exchange.error) == (b"now", None)
    assert (script.noted, rejected) == (["accepted"], ["Script.work"])


async def test_starlettes_own_tasks_among_ours_run_on_the_context(script):
    """Starlette's tasks in our list, lists in lists, and tasks that override their call run in order."""

    class Noting(TheirTask):
        async def __call__(self):
            script.note("before")
            await super().__call__()

    class Ours(BackgroundTask):
        async def __call__(self):
            script.note("handing over")
            await super().__call__()

    async def fails():
        raise BoomError

    async def handler(request):
        inner = BackgroundTasks([BackgroundTask(script.work, "inner")])
        return PlainTextResponse(
            "now",
            background=BackgroundTasks(
                [
                    TheirTask(fails),
                    TheirTask(script.work, "theirs"),
                    inner,
                    Noting(script.work, "noting"),
                    Ours(script.work),
                ]
            ),
        )

    supervisor = Supervisor()
    async with Client(app_of(handler, supervisor)) as client:
        assert (await client.get("/")).error is None
        await idle(supervisor)
    assert script.noted == ["theirs", "inner", "before", "noting", "handing over", "work"]


async def test_a_response_that_is_never_sent_has_no_tasks(script):
    """As with Starlette's own: a handler that raises has no response that could carry tasks."""

    async def handler(request):
        BackgroundTasks().add_task(script.work)
        raise BoomError

    supervisor = Supervisor()
    async with Client(app_of(handler, supervisor)) as client:
        assert (await client.get("/")).status == 500
        await idle(supervisor)
    assert script.noted == []


async def test_a_handler_may_run_them_itself(script):
    """Called by hand before the answer, tasks are deferred; what a limit refuses is a 503 then."""

    async def handler(request):
        await BackgroundTasks([BackgroundTask(script.work, str(number)) for number in range(2)])()
        return PlainTextResponse("now")

    for limit, status, noted in ((2, 200, ["0", "1"]), (1, 503, ["0"])):
        script.journal.clear()
        supervisor = Supervisor(max_per_context=limit)
        async with Client(app_of(handler, supervisor)) as client:
            assert (await client.get("/")).status == status
            await idle(supervisor)
        assert script.noted == noted


@pytest.mark.parametrize("way", ["outermost", "listed", "plain"])
@pytest.mark.parametrize("debug", [False, True])
async def test_rejections_are_answered_wherever_the_middleware_stands(script, way, debug):
    """A48: Starlette's own error page is outside of its middleware, and does not come before the 503."""

    async def handler(request):
        defer(script.work)
        defer(script.work)

    supervisor = Supervisor(max_per_context=1)
    if way == "listed":
        app = app_of(handler, supervisor, debug=debug)
    else:
        kind = DeferredMiddleware if way == "outermost" else asgi.DeferredMiddleware
        app = kind(Starlette(routes=[Mount("/inner", app_of(handler, None))], debug=debug), supervisor)
    async with Client(app) as client:
        exchange = await client.get("/" if way == "listed" else "/inner/")
        await idle(supervisor)
    assert (exchange.status, exchange.headers["retry-after"], exchange.error) == (503, "1", None)
    assert exchange.body == b"the service is overloaded, try again later"
    assert script.noted == ["work"]


@pytest.mark.parametrize("outermost", [False, True])
async def test_the_apps_own_answer_to_a_rejection_wins(script, outermost):
    """An exception handler of the app for rejections replaces ours."""

    async def handler(request):
        defer(script.work)
        defer(script.work)

    def mine(request, error):
        return PlainTextResponse("later", 429)

    supervisor = Supervisor(max_per_context=1)
    app = app_of(handler, None if outermost else supervisor, exception_handlers={TaskRejectedError: mine})
    async with Client(wrapped(app, supervisor) if outermost else app) as client:
        exchange = await client.get("/")
    assert (exchange.status, exchange.body) == (429, b"later")


async def test_an_app_that_answers_500_to_a_rejection_may(script):
    """A 500 that the app sends as its last word, while it handles the rejection, is passed on as it is."""

    async def app(scope, receive, send):
        try:
            defer(script.work)
            defer(script.work)
        except TaskRejectedError:
            await PlainTextResponse("mine", 500)(scope, receive, send)

    supervisor = Supervisor(max_per_context=1)
    async with supervisor:
        exchange = await Client(DeferredMiddleware(app, supervisor)).get("/")
        await idle(supervisor)
    assert (exchange.status, exchange.body, exchange.error) == (500, b"mine", None)
    assert script.turn_of("work") > exchange.last


@pytest.mark.parametrize("way", ["cors before", "cors after", "cors after, own handler"])
async def test_the_answer_to_a_rejection_passes_middleware_outside_of_ours(way):
    """A browser sees the 503 where CORSMiddleware stands outside of ours, or an exception handler makes it."""

    async def handler(request):
        for _ in range(2):
            defer(turns, 1)

    async def overloaded(request, error):
        return PlainTextResponse("later", 503)

    ours = Middleware(DeferredMiddleware, supervisor=Supervisor(max_per_context=1))
    cors = Middleware(CORSMiddleware, allow_origins=["https://page.example"])
    app = Starlette(
        routes=[Route("/", handler)],
        middleware=[cors, ours] if way == "cors before" else [ours, cors],
        exception_handlers={TaskRejectedError: overloaded} if way.endswith("own handler") else {},
    )
    async with Client(app) as client:
        exchange = await client.get("/", headers=[(b"origin", b"https://page.example")])
    assert exchange.status == 503
    assert ("access-control-allow-origin" in exchange.headers) is (way != "cors after")


async def test_a_500_before_another_error_is_passed_on(script):
    """A 500 that was held back goes out when the app raises something else instead of the rejection."""

    async def app(scope, receive, send):
        try:
            defer(script.work)
            defer(script.work)
        except TaskRejectedError:
            await PlainTextResponse("mine", 500)(scope, receive, send)
        raise BoomError

    supervisor = Supervisor(max_per_context=1)
    async with supervisor:
        exchange = await Client(DeferredMiddleware(app, supervisor)).get("/")
    assert (exchange.status, exchange.body, type(exchange.error)) == (500, b"mine", BoomError)


@pytest.mark.parametrize("way", ["outermost", "listed", "added"])
async def test_the_drain_comes_before_the_lifespan_closes(script, way):
    """B33: wherever the middleware stands, work finds the app's own resources open."""
    supervisor = Supervisor()
    slow = late(supervisor, lambda: script.note("work"))

    async def handler(request):
        defer(slow)
        return PlainTextResponse("now")

    @asynccontextmanager
    async def lifespan(app):
        yield
        script.note("closed")

    app = app_of(handler, supervisor if way == "listed" else None, lifespan=lifespan)
    if way == "added":
        app.add_middleware(DeferredMiddleware, supervisor=supervisor)
    if way == "outermost":
        app = DeferredMiddleware(app, supervisor)
    async with Client(app) as client:
        await client.get("/")
    assert script.noted == ["work", "closed"]


async def test_middleware_may_defer(script):
    """DP-04, PG-01: a `BaseHTTPMiddleware` defers before and after the handler, whatever that does."""

    async def dispatch(request, call_next):
        defer(script.work, "before")
        response = await call_next(request)
        defer(script.work, "after")
        return response

    async def handler(request):
        return PlainTextResponse("now")

    supervisor = Supervisor()
    middleware = [
        Middleware(DeferredMiddleware, supervisor=supervisor),
        Middleware(BaseHTTPMiddleware, dispatch=dispatch),
    ]
    app = Starlette(routes=[Route("/", handler)], middleware=middleware)
    async with Client(app) as client:
        for path in ("/", "/missing"):
            script.journal.clear()
            exchange = await client.get(path)
            await idle(supervisor)
            assert script.noted == ["before", "after"]
            assert script.turn_of("before") > exchange.last


async def test_a_mounted_app_with_a_supervisor_of_its_own_is_drained(script):
    """B22: an app mounted inside another is told of no shutdown; the outer drain waits for its work too."""
    inner, outer = Supervisor(), Supervisor()

    async def slow():
        await turns(20)
        script.note("inner")

    async def handler(request):
        defer(slow)
        return PlainTextResponse("now")

    app = Starlette(routes=[Mount("/inner", app_of(handler, inner))])
    async with Client(DeferredMiddleware(app, outer)) as client:
        await client.get("/inner/")
        assert inner.stats().pending + inner.stats().running == 1
    assert script.noted == ["inner"]


@pytest.mark.parametrize("taker", [BackgroundTask, BackgroundTasks().add_task])
def test_a_refused_coroutine_is_told_of_by_the_name_of_what_was_called(taker):
    """VP-04: whoever adds a background task has called no `defer`, and is told to write what they wrote."""
    name = taker.__name__
    with pytest.raises(TypeError, match=rf"^{name}\(\) takes a function .* write `{name}\(sleep, \.\.\.\)`"):
        taker(asyncio.sleep(0))
