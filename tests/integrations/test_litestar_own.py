"""What is particular to Litestar: its background tasks on the context, and `litestar deferred`."""

import asyncio
import sys
from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner
from litestar import Litestar, Request, Response, WebSocket, asgi, get, post, websocket
from litestar.background_tasks import BackgroundTask as TheirTask
from litestar.background_tasks import BackgroundTasks as TheirTasks
from litestar.cli.main import litestar_group
from litestar.di import NamedDependency, Provide
from litestar.exceptions import HTTPException
from litestar.response import Stream
from litestar.types import Receive, Scope, Send

from deferred import DeferredContext, Limit, Retry, Supervisor, TaskRejectedError, current_context, defer
from deferred.execution import concurrent
from deferred.integrations.asgi import DeferredMiddleware
from deferred.integrations.litestar import BackgroundTask, BackgroundTasks, DeferredPlugin
from tests.integrations.asgi_client import Client, idle, turns
from tests.integrations.promises_background import BackgroundPromises
from tests.integrations.script import BoomError

pytestmark = pytest.mark.filterwarnings("ignore:.*asyncio.iscoroutinefunction.*:DeprecationWarning")


def app_of(supervisor, *handlers, **options):
    """Return an app with the plugin, unless `supervisor` is None."""
    plugins = [] if supervisor is None else [DeferredPlugin(supervisor)]
    return Litestar(list(handlers), plugins=plugins, logging_config=None, openapi_config=None, **options)


class TestOfAResponse(BackgroundPromises):
    """The promises about background tasks, on a response that the handler makes."""

    @staticmethod
    def app(supervisor, calls):
        """Build an app whose handler makes our `BackgroundTasks`."""

        @get("/", media_type="text/plain")
        async def handler() -> Response[str]:
            return Response("now", background=BackgroundTasks(BackgroundTask(func, *args) for func, args in calls))

        return app_of(supervisor, handler)


class TestOfAStream(BackgroundPromises):
    """The promises about background tasks, on a stream."""

    @staticmethod
    def app(supervisor, calls):
        """Build an app whose handler makes our `BackgroundTasks`."""

        @get("/")
        async def handler() -> Stream:
            tasks = BackgroundTasks([BackgroundTask(func, *args) for func, args in calls])
            return Stream(iter(["n", "ow"]), background=tasks)

        return app_of(supervisor, handler)


def test_the_faces_are_litestars():
    """What existing code reads of a background task is there, and it is an instance of Litestar's."""
    task = BackgroundTask(asyncio.sleep, 0, result="done")
    assert isinstance(task, TheirTask)
    assert (task.fn, task.args, task.kwargs) == (asyncio.sleep, (0,), {"result": "done"})
    tasks = BackgroundTasks([task], run_in_task_group=True)
    assert isinstance(tasks, TheirTasks)
    assert (list(tasks.tasks), tasks.run_in_task_group) == ([task], True)


async def test_a_task_of_a_route_runs_for_each_of_its_requests(script):
    """Tasks given to the route itself run for each response, in the context of its request."""
    seen = []

    async def work() -> None:
        seen.append(current_context().id)

    @get("/", background=BackgroundTasks([BackgroundTask(work), BackgroundTask(script.work)]))
    async def handler() -> str:
        return "now"

    supervisor = Supervisor()
    async with Client(app_of(supervisor, handler)) as client:
        for _ in range(2):
            await client.get("/")
        await idle(supervisor)
    assert len(set(seen)) == 2
    assert script.noted == ["work", "work"]


async def test_a_single_task_runs_without_the_plugin_too(script):
    """A `BackgroundTask` without the plugin is called by Litestar as its own is."""

    @get("/", background=BackgroundTask(script.work))
    async def handler() -> str:
        return "now"

    await Client(app_of(None, handler)).get("/")
    assert script.noted == ["work"]


async def test_a_task_group_starts_all_of_them_at_once(script):
    """With `run_in_task_group` tasks run concurrently, and a failure cancels no other."""
    both = asyncio.Barrier(2)

    async def meets() -> None:
        await both.wait()
        script.note("met")

    async def fails() -> None:
        raise BoomError

    @get("/")
    async def handler() -> Response[str]:
        tasks = [BackgroundTask(fails), BackgroundTask(meets), BackgroundTask(meets)]
        return Response("now", background=BackgroundTasks(tasks, run_in_task_group=True))

    supervisor = Supervisor()
    async with Client(app_of(supervisor, handler)) as client:
        await client.get("/")
        await idle(supervisor)
    assert script.noted == ["met", "met"]


async def test_litestars_own_tasks_among_ours_run_on_the_context(script):
    """Litestar's tasks in our list, and tasks that override their call, run in order."""

    class Noting(TheirTask):
        async def __call__(self) -> None:
            script.note("before")
            await super().__call__()

    class Ours(BackgroundTask):
        async def __call__(self) -> None:
            script.note("handing over")
            await super().__call__()

    async def fails() -> None:
        raise BoomError

    @get("/")
    async def handler() -> Response[str]:
        inner: Any = BackgroundTasks([BackgroundTask(script.work, "inner")])
        tasks = [TheirTask(fails), inner, Noting(script.work, "noting"), Ours(script.work)]
        return Response("now", background=BackgroundTasks(tasks))

    told = []
    supervisor = Supervisor(on_error=told.append)
    async with Client(app_of(supervisor, handler)) as client:
        assert (await client.get("/")).error is None
        await idle(supervisor)
    assert script.noted == ["inner", "before", "noting", "handing over", "work"]
    assert [type(event.error) for event in told] == [BoomError], "not masked"


@pytest.mark.parametrize("where", ["dependency", "sync dependency", "guard", "handler", "thread", "task group"])
async def test_a_rejection_is_answered_with_503_from_wherever_it_comes(script, where):  # noqa: C901  # one branch a place
    """A48: what a limit refuses in a dependency, a guard, a thread or a task group is a 503 with Retry-After."""

    def twice() -> None:
        defer(script.work)
        defer(script.work)

    async def asynchronously() -> None:
        twice()

    async def dependency() -> int:
        if where == "dependency":
            twice()
        return 1

    def sync_dependency() -> int:
        if where == "sync dependency":
            twice()
        return 1

    def guard(connection: Any, handler: Any) -> None:
        if where == "guard":
            twice()

    @get(
        "/",
        guards=[guard],
        dependencies={"one": Provide(dependency), "other": Provide(sync_dependency, sync_to_thread=True)},
    )
    async def handler(one: NamedDependency[int], other: NamedDependency[int]) -> None:
        if where == "handler":
            twice()
        if where == "thread":
            await asyncio.to_thread(twice)
        if where == "task group":
            async with asyncio.TaskGroup() as group:
                group.create_task(asynchronously())

    supervisor = Supervisor(max_per_context=1)
    async with Client(app_of(supervisor, handler)) as client:
        exchange = await client.get("/")
        await idle(supervisor)
    assert (exchange.status, exchange.headers["retry-after"], exchange.error) == (503, "1", None)
    assert script.noted == ["work"]


async def test_the_users_own_answer_to_a_group_wins(script):
    """An exception handler of the app for groups replaces ours, unless it answers 500."""

    def mine(request: Any, error: ExceptionGroup[Exception]) -> Response[str]:
        return Response("later", status_code=429)

    @get("/")
    async def handler(ctx: NamedDependency[DeferredContext]) -> None:
        ctx.defer(script.work)
        try:
            ctx.defer(script.work)
        except TaskRejectedError as error:
            raise ExceptionGroup("group", [error]) from None

    app = app_of(Supervisor(max_per_context=1), handler, exception_handlers={ExceptionGroup: mine})
    async with Client(app) as client:
        assert (await client.get("/")).status == 429


async def test_request_data_is_there_in_deferred_work():
    """AP-01, AP-02, AP-03, AP-05: headers and cookies are readable in work, nested too, also of a POST."""
    read = []

    async def nested(request: Any) -> None:
        read.append((request.headers["x-runner"], request.cookies["session"]))

    async def work(request: Any) -> None:
        await nested(request)
        defer(nested, request)

    @post("/")
    async def handler(request: Request[Any, Any, Any], ctx: NamedDependency[DeferredContext]) -> None:
        ctx.defer(work, request)

    supervisor = Supervisor()
    async with Client(app_of(supervisor, handler)) as client:
        await client.request("POST", "/", headers=((b"x-runner", b"Emil"), (b"cookie", b"session=abc")))
        await idle(supervisor)
    assert read == [("Emil", "abc")] * 2


@pytest.fixture
def command(monkeypatch):
    """Run `litestar` with these arguments on an app with one marked and one plain route."""

    @get("/plain")
    async def plain() -> None:
        """Have no mark."""

    @post("/marked")
    @concurrent
    async def marked() -> None:
        """Have one."""

    @websocket("/socket")
    async def handler(socket: WebSocket[Any, Any, Any]) -> None:
        """Be a websocket."""

    supervisor = Supervisor(retry=Retry(on=OSError), limits={"mail": Limit(running=4)}, drain_timeout=12.5)
    app = Litestar([plain, marked, handler], plugins=[DeferredPlugin(supervisor)])
    monkeypatch.setenv("LITESTAR_APP", "tests.integrations.app_of_the_command:app")
    module = ModuleType("tests.integrations.app_of_the_command")
    module.app = app
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(litestar_group, "_prepare_done", False)
    monkeypatch.setattr(litestar_group, "commands", dict(litestar_group.commands))

    def run(*arguments):
        answer = CliRunner().invoke(litestar_group, arguments)
        assert answer.exit_code == 0, answer.output
        return answer.output

    return run


def test_the_command_line_shows_how_routes_run(command):
    """``litestar deferred routes`` names each route of the app and its execution, and no other page."""
    lines = [line.split() for line in command("deferred", "routes").splitlines() if line.startswith(("GET", "P", "W"))]
    assert lines == [
        ["POST", "/marked", "concurrent"],
        ["GET", "/plain", "deferred"],
        ["WEBSOCKET", "/socket", "deferred"],
    ]


def test_the_command_line_shows_the_settings(command):
    """``litestar deferred settings`` shows limits and times, in seconds."""
    output = command("deferred", "settings")
    shown = dict(line.split(None, 1) for line in output.splitlines() if line)
    assert shown["drain_timeout"] == "12.5 s"
    assert shown["max_running"] == "1000"
    assert shown["timeout"] == "None"
    assert "OSError" in shown["retry"]
    assert "running=4" in shown["limits['mail']"]


async def test_work_of_a_late_dependency_is_not_lost(script):
    """B01: what a dependency defers when it is cleaned up, after a handler that raised, runs."""

    async def resource(ctx: NamedDependency[DeferredContext]) -> Any:
        try:
            yield 1
        finally:
            ctx.defer(script.work, "clean-up")

    @get("/", dependencies={"resource": Provide(resource)})
    async def handler(resource: NamedDependency[int]) -> None:
        raise BoomError

    supervisor = Supervisor()
    async with Client(app_of(supervisor, handler)) as client:
        assert (await client.get("/")).status == 500
        await idle(supervisor)
        await turns(3)
    assert script.noted == ["clean-up"]


async def test_a_mounted_app_that_serves_both_is_answered_for_in_both():
    """S10: a rejection in a websocket is told to its client, also behind a mount that has served a request before."""

    @asgi("/mounted", is_mount=True, copy_scope=True)
    async def mounted(scope: Scope, receive: Receive, send: Send) -> None:
        for _ in range(2):
            defer(turns, 1)

    supervisor = Supervisor(max_per_context=1)
    async with Client(app_of(supervisor, mounted)) as client:
        assert (await client.get("/mounted")).status == 503
        socket = await client.websocket("/mounted").start().done()
        await idle(supervisor)
    assert (socket.status, socket.error) == (503, None)


async def test_answers_of_the_router_have_a_context_behind_the_middleware(script):
    """S5: an exception handler may defer for a 404 or a 405 where the middleware is around the app with the plugin."""

    @get("/")
    async def index() -> None: ...

    def answer(_request: Request[Any, Any, Any], error: HTTPException) -> Response[str]:
        defer(script.work, error.status_code)
        return Response("no", status_code=error.status_code)

    supervisor = Supervisor()
    app = app_of(supervisor, index, exception_handlers={HTTPException: answer})
    async with Client(DeferredMiddleware(app, supervisor)) as client:
        assert (await client.get("/missing")).status == 404
        assert (await client.open("POST", "/").start().done()).status == 405
    assert script.noted == [404, 405]
