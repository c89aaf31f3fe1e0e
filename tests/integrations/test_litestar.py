"""The promises, and what is particular to it, of Litestar with `DeferredPlugin`."""

from contextlib import asynccontextmanager
from typing import Any

import pytest
from litestar import Litestar, Request, Response, WebSocket, asgi, get, post, route, websocket
from litestar.background_tasks import BackgroundTask, BackgroundTasks
from litestar.di import NamedDependency, Provide
from litestar.exceptions import HTTPException
from litestar.middleware import ASGIMiddleware
from litestar.response import Redirect, Stream
from litestar.types import Scope

from deferred import DeferredContext, Supervisor, current_context, defer
from deferred.integrations.litestar import DeferredPlugin, deferred_from
from tests.integrations.asgi_client import Client, idle
from tests.integrations.promises import Adapter, Promises
from tests.integrations.raw_app import MARKS
from tests.integrations.script import BoomError, Script, late

pytestmark = pytest.mark.filterwarnings("ignore:.*asyncio.iscoroutinefunction.*:DeprecationWarning")


def quiet(*args, **options):
    """Build an app that leaves the logging of the test run as it is, and has no documentation."""
    return Litestar(*args, logging_config=None, openapi_config=None, **options)


class Usual(ASGIMiddleware):
    """A middleware as Litestar users write them, which defers as well."""

    def __init__(self, script, *, bare):
        self.script = script
        self.bare = bare

    async def handle(self, scope, receive, send, next_app):
        """Do what the handlers do, then go on."""
        self.script.act(None if self.bare else deferred_from(scope))
        await next_app(scope, receive, send)


def handlers(script, *, bare):  # noqa: C901  # one function a route
    """Return the handlers of the promises' routes."""

    @route("/plain", http_method=["GET", "HEAD"])
    async def plain(ctx: NamedDependency[Any]) -> str:
        await script.handle(ctx)
        return "plain"

    @post("/body", status_code=200)
    async def body(ctx: NamedDependency[Any], request: Request[Any, Any, Any]) -> str:
        await request.body()
        script.act(ctx)
        return "body"

    @get("/stream")
    async def stream(ctx: NamedDependency[Any]) -> Stream:
        script.act(ctx)
        return Stream(script.stream(ctx))

    @get("/raises")
    async def raises(ctx: NamedDependency[Any]) -> str:
        await script.handle(ctx)
        raise BoomError

    @get("/http-error")
    async def http_error(ctx: NamedDependency[Any]) -> str:
        await script.handle(ctx)
        raise HTTPException(status_code=409, detail="no")

    @get("/redirect", status_code=303)
    async def redirect(ctx: NamedDependency[Any]) -> Redirect:
        await script.handle(ctx)
        return Redirect("/plain", status_code=303)

    @get("/nothing", status_code=204)
    async def nothing(ctx: NamedDependency[Any]) -> None:
        await script.handle(ctx)

    @get("/not-modified", status_code=304)
    async def not_modified(ctx: NamedDependency[Any]) -> None:
        await script.handle(ctx)

    @get("/sync", sync_to_thread=True)
    def sync(ctx: NamedDependency[Any]) -> str:
        script.act(ctx)
        return "sync"

    @get("/behind", middleware=[Usual(script, bare=bare)])
    async def behind(ctx: NamedDependency[Any]) -> str:
        await script.handle(ctx)
        return "behind"

    @get("/own")
    async def own(ctx: NamedDependency[Any]) -> Response[str]:
        await script.handle(ctx)

        async def after() -> None:
            script.after(ctx)

        return Response("own", background=BackgroundTasks([BackgroundTask(after), BackgroundTask(script.work, "own")]))

    @get("/own-raises")
    async def own_raises(ctx: NamedDependency[Any]) -> Response[str]:
        async def fails() -> None:
            raise BoomError

        await script.handle(ctx)
        return Response("own", background=BackgroundTask(fails))

    runs = []
    for name, mark in MARKS.items():

        @get(f"/run/{name}")
        @mark
        async def run(ctx: NamedDependency[DeferredContext]) -> str:
            await ctx.run(script.step)
            return "ran"

        runs.append(run)

    @websocket("/socket")
    async def socket(ctx: NamedDependency[Any], socket: WebSocket[Any, Any, Any]) -> None:
        await socket.accept()
        await script.handle(ctx)
        while (text := await socket.receive_text()) != "bye":
            if text == "boom":
                raise BoomError
            await socket.send_text(text)
        await socket.close()

    @websocket("/refused")
    async def refused(ctx: NamedDependency[Any], socket: WebSocket[Any, Any, Any]) -> None:
        await script.handle(ctx)
        await socket.close(code=1008)

    inner = quiet([plain], dependencies={"ctx": provide(bare=bare)})
    mounted = asgi("/mounted", is_mount=True, copy_scope=True)(inner)
    return [plain, body, stream, raises, http_error, redirect, nothing, not_modified, sync, behind, own, own_raises,
            *runs, socket, refused, mounted]  # fmt: skip


def provide(*, bare):
    """Return what gives handlers of an app without the plugin their context."""

    def context(scope: Scope) -> Any:
        return None if bare else deferred_from(scope)

    return Provide(context, sync_to_thread=False)


class LitestarAdapter(Adapter):
    """A Litestar app with the plugin."""

    lacks = frozenset({"/listens"})

    def build(self, script: Script, supervisor: Supervisor | None) -> Litestar:
        """Build the app."""
        bare = supervisor is None

        @asynccontextmanager
        async def resource(_app: Litestar) -> Any:
            script.opening()
            yield
            script.closing()

        routes = handlers(script, bare=bare)
        if bare:  # these need a context
            routes = [
                handler for handler in routes if not getattr(handler, "paths", {""}) & {f"/run/{m}" for m in MARKS}
            ]
        return quiet(
            routes,
            lifespan=[resource],
            plugins=[] if supervisor is None else [DeferredPlugin(supervisor)],
            dependencies={"ctx": provide(bare=True)} if bare else {},
        )


class TestPromises(Promises):
    """The promises of every framework."""

    adapter = LitestarAdapter()


async def test_the_dependency_may_have_another_name(script):
    """The plugin injects the context under the name it was given."""
    seen = []

    @get("/")
    async def handler(background: NamedDependency[DeferredContext]) -> None:
        seen.append(background is current_context())

    async with Client(quiet([handler], plugins=[DeferredPlugin(dependency="background")])) as client:
        assert (await client.get("/")).status == 200
    assert seen == [True]


async def test_guards_dependencies_and_hooks_of_the_framework_may_defer(script):
    """Whatever of Litestar runs in a request finds its context, the hook after the response included."""
    supervisor = Supervisor()

    def note(what):
        defer(script.work, what)

    @asynccontextmanager
    async def clean_up():
        note("dependency")
        try:
            yield 1
        finally:
            note("clean-up")

    async def dependency() -> Any:
        async with clean_up() as value:
            yield value

    def handle_error(request: Request[Any, Any, Any], error: Exception) -> Response[str]:
        note("exception handler")
        return Response("handled", status_code=418)

    async def after(request: Request[Any, Any, Any]) -> None:
        note("after")

    @get(
        "/",
        guards=[lambda connection, handler: note("guard")],
        dependencies={"value": Provide(dependency)},
        before_request=lambda request: note("before"),
        after_response=after,
    )
    async def handler(value: NamedDependency[int]) -> str:
        raise BoomError

    app = quiet([handler], plugins=[DeferredPlugin(supervisor)], exception_handlers={BoomError: handle_error})
    async with Client(app) as client:
        assert (await client.get("/")).status == 418
        await idle(supervisor)
    assert {"guard", "dependency", "before", "clean-up", "exception handler"} <= set(script.noted)


async def test_the_plugin_drains_before_the_lifespan_managers_of_the_user(script):
    """Lifespan managers of the user close after the drain, wherever the plugin stands, and `on_shutdown` later."""
    supervisor = Supervisor()
    slow = late(supervisor, lambda: script.note("work"))

    @get("/")
    async def handler(ctx: NamedDependency[DeferredContext]) -> None:
        ctx.defer(slow)

    @asynccontextmanager
    async def manager(_app: Litestar) -> Any:
        yield
        script.note("manager")

    app = quiet(
        [handler],
        plugins=[DeferredPlugin(supervisor)],
        lifespan=[manager],
        on_shutdown=[lambda: script.note("on_shutdown")],
    )
    async with Client(app) as client:
        await client.get("/")
    assert script.noted == ["work", "manager", "on_shutdown"]


async def test_the_users_own_answer_to_a_rejection_wins(script):
    """An exception handler of the app for rejections replaces ours."""
    from deferred import TaskRejectedError

    def mine(request: Request[Any, Any, Any], error: TaskRejectedError) -> Response[str]:
        return Response("later", status_code=429)

    @get("/")
    async def handler(ctx: NamedDependency[DeferredContext]) -> None:
        ctx.defer(script.work)
        ctx.defer(script.work)

    plugin = DeferredPlugin(Supervisor(max_per_context=1))
    async with Client(quiet([handler], plugins=[plugin], exception_handlers={TaskRejectedError: mine})) as client:
        assert (await client.get("/")).status == 429
