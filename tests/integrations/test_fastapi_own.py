"""What is particular to FastAPI: the context and background tasks that it injects."""

import asyncio
from typing import Annotated

import pytest
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request, WebSocket
from fastapi import BackgroundTasks as TheirTasks
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse

from deferred import DeferredContext, NoCurrentContextError, Supervisor, current_context, defer
from deferred.integrations.fastapi import BackgroundTasks, Deferred, DeferredMiddleware, deferred_from, get_context
from tests.integrations.asgi_client import Client, idle, turns
from tests.integrations.promises_background import BackgroundPromises
from tests.integrations.script import BoomError


def app_of(supervisor, **options):
    """Return an app with the middleware, unless `supervisor` is None."""
    app = FastAPI(openapi_url=None, default_response_class=PlainTextResponse, **options)
    if supervisor is not None:
        app.add_middleware(DeferredMiddleware, supervisor=supervisor)
    return app


class TestInjected(BackgroundPromises):
    """The promises about background tasks, injected."""

    @staticmethod
    def app(supervisor, calls):
        """Build an app whose handler is given our `BackgroundTasks`."""
        app = app_of(supervisor)

        @app.get("/")
        async def handler(background: BackgroundTasks):
            for func, args in calls:
                background.add_task(func, *args)
            return "now"

        return app


class TestInjectedInThreads(BackgroundPromises):
    """The promises about background tasks, injected into a synchronous handler and its dependency."""

    @staticmethod
    def app(supervisor, calls):
        """Build an app whose handler and its dependency share our `BackgroundTasks`."""
        app = app_of(supervisor)

        def dependency(background: BackgroundTasks):
            for func, args in calls[:1]:
                background.add_task(func, *args)

        @app.get("/", dependencies=[Depends(dependency)])
        def handler(background: BackgroundTasks):
            for func, args in calls[1:]:
                background.add_task(func, *args)
            return "now"

        return app


class TestMade(BackgroundPromises):
    """The promises about background tasks, made by the handler and put on its response."""

    @staticmethod
    def app(supervisor, calls):
        """Build an app whose handler makes our `BackgroundTasks`."""
        app = app_of(supervisor)

        @app.get("/")
        async def handler():
            tasks = BackgroundTasks()
            for func, args in calls:
                tasks.add_task(func, *args)
            return StreamingResponse(iter(["n", "ow"]), background=tasks)

        return app


async def test_injected_tasks_are_fastapis_and_ours():
    """What is injected is an instance of FastAPI's class, the same one throughout a request, a new one in the next."""
    seen = []
    app = app_of(Supervisor())

    def dependency(background: BackgroundTasks):
        seen.append(background)

    @app.get("/", dependencies=[Depends(dependency)])
    async def handler(background: BackgroundTasks):
        seen.append(background)

    async with Client(app) as client:
        for _ in range(2):
            assert (await client.get("/")).status == 200
    assert all(isinstance(tasks, TheirTasks) for tasks in seen)
    assert seen[0] is seen[1]
    assert seen[2] is seen[3]
    assert seen[0] is not seen[2]


async def test_ours_and_theirs_may_be_mixed(script):
    """Beside FastAPI's own tasks ours run on the context, also when one of those fails."""
    supervisor = Supervisor()
    app = app_of(supervisor)

    async def fails():
        raise BoomError

    @app.get("/")
    async def handler(theirs: TheirTasks, ours: BackgroundTasks):
        theirs.add_task(fails)
        ours.add_task(script.work)
        return "now"

    async with Client(app) as client:
        exchange = await client.get("/")
        await idle(supervisor)
    assert exchange.status == 200
    assert script.noted == ["work"]


@pytest.mark.parametrize("outcome", ["error", "http error", "own background", "own response"])
async def test_they_belong_to_the_response_as_fastapis_do(script, outcome):
    """Tasks run when FastAPI's own would: with the response that the handler returns, not with an error's."""
    ran = {}
    for kind in (TheirTasks, BackgroundTasks):
        script.journal.clear()
        supervisor = Supervisor()
        app = app_of(supervisor)

        @app.get("/")
        async def handler(background: kind):
            background.add_task(script.work)
            if outcome == "error":
                raise BoomError
            if outcome == "http error":
                raise HTTPException(409)
            if outcome == "own background":
                return PlainTextResponse("now", background=TheirTasks())
            return JSONResponse({}, status_code=422)

        async with Client(app) as client:
            await client.get("/")
            await idle(supervisor)
        ran[kind] = script.noted
    assert ran[TheirTasks] == ran[BackgroundTasks] == (["work"] if outcome == "own response" else [])


async def test_the_context_is_injected_wherever_fastapi_injects(script):
    """B37, A40: handlers, sync or not, dependencies, their dependencies and clean-ups get the same current context."""
    supervisor = Supervisor()
    app = app_of(supervisor)
    seen = []

    def note(ctx, what):
        seen.append(ctx is current_context())
        ctx.defer(script.work, what)

    def inner(ctx: Deferred):
        note(ctx, "inner")

    async def outer(ctx: Deferred, inner: Annotated[None, Depends(inner)]):
        note(ctx, "outer")
        yield
        ctx.defer(script.work, "clean-up")

    @app.get("/async")
    async def handler(ctx: Deferred, outer: Annotated[None, Depends(outer)]):
        note(ctx, "handler")

    @app.get("/sync")
    def sync(ctx: Deferred, outer: Annotated[None, Depends(outer)]):
        note(ctx, "handler")
        defer(script.work, "imported")

    async with Client(app) as client:
        assert (await client.get("/async")).status == 200
        await idle(supervisor)
        assert sorted(script.noted) == ["clean-up", "handler", "inner", "outer"]
        script.journal.clear()
        assert (await client.get("/sync")).status == 200
        await idle(supervisor)
    assert sorted(script.noted) == ["clean-up", "handler", "imported", "inner", "outer"]
    assert seen == [True] * 6


async def test_a_websocket_is_given_its_context(script):
    """B13: websockets and their dependencies get one context for the life of the connection."""
    supervisor = Supervisor()
    app = app_of(supervisor)
    seen = []

    async def dependency(ctx: Deferred):
        seen.append(ctx)

    @app.websocket("/")
    async def socket(websocket: WebSocket, ctx: Deferred, dependency: Annotated[None, Depends(dependency)]):
        await websocket.accept()
        seen.append(ctx)
        async for text in websocket.iter_text():
            ctx.defer(script.work, text)

    async with Client(app) as client:
        exchange = client.websocket("/", "a", "b").start()
        await turns(30)
        assert script.noted == []
        exchange.leave()
        await exchange.done()
        await idle(supervisor)
    assert script.noted == ["a", "b"]
    assert seen[0] is seen[1]


async def test_without_the_middleware_the_dependency_says_what_is_missing():
    """PG-02: asking for a context that nobody opens fails the request, with the mend, before the handler runs."""
    app = app_of(None)

    @app.get("/")
    async def handler(ctx: Deferred):
        raise AssertionError

    exchange = await Client(app).get("/")
    assert exchange.status == 500
    assert isinstance(exchange.error, NoCurrentContextError)
    assert "DeferredMiddleware" in str(exchange.error)


async def test_a_router_may_depend_on_the_context(script):
    """`get_context` is a dependency like any other: of a router, or overridden in a test."""
    app = app_of(Supervisor())
    router = APIRouter(dependencies=[Depends(get_context)])

    @router.get("/")
    async def handler(ctx: Deferred):
        return type(ctx).__name__

    app.include_router(router)
    async with Client(app) as client:
        assert (await client.get("/")).body.endswith(b"Exchange")
    app.dependency_overrides[get_context] = lambda: script
    assert (await Client(app).get("/")).body == b"Script"


@pytest.mark.parametrize("where", ["dependency", "clean-up", "handler", "thread", "task group"])
async def test_a_rejection_is_answered_with_503_from_wherever_it_comes(script, where):  # noqa: C901  # one branch a place
    """A48: what a limit refuses in a dependency, a thread or a task group is a 503 with Retry-After."""
    supervisor = Supervisor(max_per_context=1)
    app = app_of(supervisor)

    def twice(ctx):
        ctx.defer(script.work)
        ctx.defer(script.work)

    async def asynchronously(ctx):
        twice(ctx)

    async def dependency(ctx: Deferred):
        if where == "dependency":
            twice(ctx)
        try:
            yield
        finally:
            if where == "clean-up":
                twice(ctx)

    @app.get("/", dependencies=[Depends(dependency)])
    async def handler(ctx: Deferred):
        if where == "handler":
            twice(ctx)
        if where == "thread":
            await asyncio.to_thread(twice, ctx)
        if where == "task group":
            async with asyncio.TaskGroup() as group:
                group.create_task(asynchronously(ctx))
        return "now"

    async with Client(app) as client:
        exchange = await client.get("/")
        await idle(supervisor)
    if where == "clean-up" and exchange.status == 200:
        assert exchange.body == b"now"  # since 0.118 it comes after the response
    else:
        assert (exchange.status, exchange.headers["retry-after"], exchange.error) == (503, "1", None)
    assert script.noted == ["work"]


async def test_request_data_is_there_in_deferred_work():
    """AP-01, AP-02, AP-03, AP-05, AP-14: headers and cookies are readable in work, nested too, also of a POST."""
    supervisor = Supervisor()
    app = app_of(supervisor)
    read = []

    async def early():
        return "early"

    async def nested(request: Request):
        read.append((request.headers["x-runner"], request.cookies["session"]))

    async def work(request: Request, promise):
        read.append((request.headers["x-runner"], request.cookies["session"], await promise))
        defer(nested, request)

    @app.post("/")
    async def handler(request: Request, ctx: Deferred):
        ctx.defer(work, request, asyncio.get_running_loop().create_task(early()))

    async with Client(app) as client:
        await client.request("POST", "/", headers=((b"x-runner", b"Emil"), (b"cookie", b"session=abc")))
        await idle(supervisor)
    assert read == [("Emil", "abc", "early"), ("Emil", "abc")]


async def test_a_cancelled_request_leaves_its_work(script):
    """B25, C13: a request that is cancelled while it waits leaves what it has deferred."""
    supervisor = Supervisor()
    app = app_of(supervisor)
    arrived = asyncio.Event()

    @app.get("/")
    async def handler(ctx: Deferred):
        ctx.defer(script.work)
        arrived.set()
        await asyncio.get_running_loop().create_future()

    async with Client(app) as client:
        exchange = client.open("GET", "/").start()
        await arrived.wait()
        exchange._task.cancel()
        await exchange.done()
        await idle(supervisor)
    assert script.noted == ["work"]


async def test_the_body_cannot_be_read_twice(script):
    """B36: a task that reads a body that is gone ends, one way or the other, and hangs nothing."""
    told = []
    supervisor = Supervisor(on_error=told.append)
    app = app_of(supervisor)
    handles = []

    @app.post("/")
    async def handler(request: Request, ctx: Deferred):
        handles.append(ctx.defer(request.body))
        return "now"

    async with Client(app) as client:
        await client.request("POST", "/", body=b"body")
        await idle(supervisor)
    assert handles[0].done()
    assert [event.error for event in told] == ([] if handles[0].error is None else [handles[0].error])


@pytest.mark.parametrize("synchronous", [False, True])
async def test_a_dependency_may_add_tasks_as_it_is_cleaned_up(script, synchronous):
    """S7: when the response is out, and the tasks of the handler are on their way, they go behind those."""
    supervisor = Supervisor()
    app = app_of(supervisor)

    def clean_up(background: BackgroundTasks):
        yield
        background.add_task(script.work, "cleaned up")

    async def clean_up_later(background: BackgroundTasks):
        yield
        background.add_task(script.work, "cleaned up")

    @app.get("/", dependencies=[Depends(clean_up if synchronous else clean_up_later)])
    async def handler(background: BackgroundTasks):
        background.add_task(script.work, "handled")

    async with Client(app) as client:
        await client.get("/")
        await idle(supervisor)
    assert script.noted == ["handled", "cleaned up"]


async def test_responses_are_typed_and_documented_as_before():
    """The annotations add nothing to the OpenAPI schema, and a returned response is the app's own."""
    app = FastAPI()
    plain = FastAPI()

    @app.get("/")
    async def handler(ctx: Deferred, background: BackgroundTasks) -> dict[str, str]:
        return {}

    @plain.get("/", name="handler")
    async def without() -> dict[str, str]:
        return {}

    ours, theirs = app.openapi()["paths"]["/"]["get"], plain.openapi()["paths"]["/"]["get"]
    assert ours["responses"] == theirs["responses"]
    assert "parameters" not in ours
    assert "requestBody" not in ours


def test_the_context_of_a_request_may_be_asked_for():
    """`deferred_from` takes a request, a websocket or a scope, and refuses what has none."""
    with pytest.raises(NoCurrentContextError):
        deferred_from(Request({"type": "http"}))
    assert Deferred.__origin__ is DeferredContext
