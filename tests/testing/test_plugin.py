"""The pytest plugin, in test runs of its own."""

import textwrap

import pytest

pytest_plugins = ["pytester"]

OTHERS = ["benchmark", "cacheprovider", "faker", "hypothesispytest", "looptime_plugin", "randomly", "timeout", "xdist"]
"""Plugins of this suite that the runs are to be without: some want pytest-asyncio, some are slow to load."""

ASYNCIO = """
asyncio_mode = {mode}
asyncio_default_fixture_loop_scope = {scope}
asyncio_default_test_loop_scope = {scope}
"""

WORK = """
import asyncio
import pytest
from deferred import Retry, Supervisor, defer
from deferred.testing import create_context, wait_on_context

async def fine():
    pass

async def boom():
    raise OSError("no route")

async def forever():
    await asyncio.get_running_loop().create_future()

supervisor = Supervisor()

def handler(func):
    with supervisor.context("POST /runners") as ctx:
        return ctx.defer(func)
"""


@pytest.fixture
def suite(pytester, monkeypatch):
    """Run a test file in a process of its own; return its result."""
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)

    def run(source, *args, work=WORK, mode="auto", scope="function"):
        asyncio = "" if "no:asyncio" in args else ASYNCIO.format(mode=mode, scope=scope)
        pytester.makeini(f"[pytest]\nfilterwarnings = error\n{asyncio}")
        pytester.makepyfile(work + textwrap.dedent(source))
        without = [f"-pno:{name}" for name in OTHERS if not (name == "xdist" and "-n" in args)]
        return pytester.runpytest_subprocess(*without, *args, timeout=60)

    return run


def test_the_fixture_fails_a_test_for_what_went_wrong_unnoticed(suite):
    """TH-07, A20, B40: errors nobody saw, work without an end, strays; each by name and place."""
    result = suite(
        """
        async def test_unseen_error(deferred):
            handler(boom)

        @pytest.mark.deferred(timeout=0.01)
        async def test_leftover(deferred):
            handler(forever)

        async def test_stray(deferred):
            async def spawn():
                asyncio.create_task(forever(), name="stray")
            handler(spawn)

        async def test_of_the_test_itself(deferred):
            handler(boom)
            await deferred.wait()

        @pytest.mark.deferred
        async def test_marked_only():
            handler(boom)

        @pytest.mark.deferred(timeout=0.01)
        async def test_its_own_failure_goes_first(deferred):
            handler(forever)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            handler(boom)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert "mine" == "first"

        async def test_fine_after_all_these(deferred):
            handler(fine)
        """
    )
    result.assert_outcomes(failed=6, passed=1)
    result.stdout.fnmatch_lines(
        [
            "*deferred work went wrong unnoticed:",
            "*task 'boom' (deferred at *.py:* by POST /runners) raised OSError: no route",
            "*task 'forever' (deferred at *) did not end in time and was cancelled",
            "*spawn' (deferred at *) started forever by create_task*",
            "*AssertionError: assert 'mine' == 'first'",
            "*task 'boom' (deferred at *) raised OSError: no route",
        ]
    )


def test_the_fixture_is_content_with_what_was_dealt_with(suite):
    """TH-07: work is awaited at the end of the test; seen, injected and allowed errors are no surprise."""
    result = suite(
        """
        ran = []

        async def test_work_is_awaited_at_the_end(deferred):
            async def late():
                for _ in range(5):
                    await asyncio.sleep(0)
                ran.append("late")
            handler(late)

        def test_it_was():
            assert ran == ["late"]

        async def test_raised_by_the_wait(deferred):
            handler(boom)
            with pytest.raises(OSError):
                await deferred.wait()

        async def test_raised_by_the_handle(deferred):
            with pytest.raises(OSError):
                await handler(boom)

        async def test_raised_by_a_context(deferred):
            ctx = create_context()
            ctx.defer(boom)
            with pytest.raises(OSError):
                await wait_on_context(ctx)

        async def test_injected(deferred):
            deferred.fail(fine, ValueError)
            handler(fine)

        async def test_allowed(deferred):
            deferred.allow_errors(OSError)
            handler(boom)

        @pytest.mark.deferred(allow_errors=OSError)
        async def test_allowed_by_the_marker():
            handler(boom)

        @pytest.mark.deferred(allow_errors=[KeyError, OSError], allow_leftovers=True, timeout=0.01)
        async def test_all_allowed_by_the_marker():
            handler(boom)
            handler(forever)

        @pytest.mark.deferred(allow_errors=True)
        async def test_any_allowed_by_the_marker():
            handler(boom)

        async def test_cancelled_on_purpose(deferred):
            handler(forever).cancel()

        @pytest.mark.deferred(mode="capture")
        async def test_captured(deferred):
            handler(boom)
            deferred.assert_deferred(boom)
            assert len(deferred.captured) == 1

        @pytest.mark.deferred(mode="inline")
        async def test_inline(deferred):
            assert handler(fine).done()

        @pytest.mark.deferred(backoff="wait")
        async def test_waiting(deferred):
            with create_context(supervisor=Supervisor(retry=Retry(on=ValueError, wait_initial=0))):
                defer(fine)
            deferred.assert_deferred(fine)

        class TestClass:
            async def test_method(self, deferred):
                handler(fine)

            def test_synchronous(self, deferred):
                with create_context():
                    defer(fine)

        @pytest.fixture
        async def served(deferred):
            async with supervisor:
                yield deferred

        async def test_through_a_fixture(served):
            handler(fine)

        def test_skipped(deferred):
            pytest.skip("the reason")
        """
    )
    result.assert_outcomes(passed=17, skipped=1)


def test_a_context_of_a_fixture_is_open_to_the_end(suite):
    """Its work starts as the fixture is torn down, in whatever order they are asked for, and is judged then."""
    result = suite(
        """
        @pytest.fixture
        def current():
            with create_context() as ctx:
                yield ctx

        @pytest.fixture
        async def handed():
            ctx = create_context()
            yield ctx
            await wait_on_context(ctx)

        @pytest.fixture
        async def supervised():
            async with supervisor:
                with supervisor.context() as ctx:
                    yield ctx

        def test_current(current, deferred):
            defer(fine)
            deferred.assert_deferred(fine)

        @pytest.mark.deferred
        async def test_handed(handed):
            handed.defer(fine)

        async def test_failing(supervised, deferred):
            supervised.defer(boom)

        def test_forgotten(deferred):
            async def main():
                create_context().defer(fine)
            asyncio.run(main())
        """
    )
    result.assert_outcomes(passed=3, errors=1, failed=1)
    result.stdout.fnmatch_lines(["*teardown of test_failing*", "*raised OSError: no route", "*FAILURES*", "*closed*"])


STARLETTE = """
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient
from deferred.integrations.asgi import DeferredMiddleware

@pytest.fixture
def app():
    def view(func):
        async def answer(request):
            defer(func)
            return PlainTextResponse("now")
        return answer
    routes = [Route("/" + func.__name__, view(func)) for func in (fine, boom, forever)]
    return DeferredMiddleware(Starlette(routes=routes))
"""


def test_the_fixture_beside_a_synchronous_test_client(suite):
    """B40: with a lifespan the work is awaited, in whatever phase; without one it is reported as lost."""
    result = suite(
        """
        def test_fine(deferred, app):
            with TestClient(app) as client:
                client.get("/fine")
            deferred.assert_deferred(fine)

        def test_open_to_the_end(deferred, client):
            client.get("/fine")

        def test_failing(deferred, app):
            with TestClient(app) as client:
                client.get("/boom")

        def test_failing_while_open(deferred, client):
            client.get("/boom")

        @pytest.fixture
        def client(app):
            with TestClient(app) as client:
                yield client

        def test_without_a_lifespan(deferred, app):
            TestClient(app).get("/forever")

        async def test_asynchronous(deferred, app):
            async with deferred.client(app) as client:
                await client.get("/boom")
                with pytest.raises(OSError):
                    await client.wait()
        """,
        work=WORK + STARLETTE,
    )
    result.assert_outcomes(passed=3, failed=3)
    result.stdout.fnmatch_lines(["*task 'forever' (deferred at * by GET /forever) *event loop*"])


def test_the_fixture_in_strict_mode(suite):
    """pytest-asyncio's strict mode: the marker of the test is what counts."""
    result = suite(
        """
        @pytest.mark.asyncio
        async def test_unseen(deferred):
            handler(boom)

        @pytest.mark.asyncio(loop_scope="module")
        async def test_fine(deferred):
            handler(fine)
        """,
        mode="strict",
    )
    result.assert_outcomes(failed=1, passed=1)


def test_the_fixture_under_anyio(suite):
    """Anyio's plugin runs the test, on asyncio and, where nothing can be deferred, on trio."""
    result = suite(
        """
        @pytest.fixture(params=["asyncio", "trio"])
        def anyio_backend(request):
            return request.param

        @pytest.mark.anyio
        async def test_unseen(deferred, anyio_backend_name):
            if anyio_backend_name == "asyncio":
                handler(boom)

        @pytest.mark.anyio
        @pytest.mark.deferred(timeout=0.01)
        async def test_leftover(anyio_backend_name):
            if anyio_backend_name == "asyncio":
                handler(forever)

        @pytest.mark.anyio
        async def test_fine(deferred, anyio_backend_name):
            if anyio_backend_name == "asyncio":
                handler(fine)
                await deferred.wait()

        @pytest.mark.anyio
        async def test_client(deferred):
            async def app(scope, receive, send):
                raise AssertionError("knows no lifespan")

            async with deferred.client(app):
                pass
        """,
        mode="strict",
    )
    result.assert_outcomes(failed=3, passed=5)
    result.stdout.fnmatch_lines(["*EventLoopError: the client serves its app on asyncio*"])


def test_a_project_without_any_of_it(suite):
    """The plugin imports nothing where nobody asks for it, and needs neither pytest-asyncio nor anyio."""
    result = suite(
        """
        import sys

        def test_nothing_is_loaded(pytestconfig):
            assert pytestconfig.pluginmanager.hasplugin("deferred")
            assert "deferred" not in sys.modules

        def test_a_synchronous_test_needs_no_other_plugin(deferred):
            from deferred import defer
            with deferred.context():
                defer(print, "hello")
            deferred.assert_deferred(print, "hello")
            assert not {"starlette", "litestar", "fastapi", "httpx", "aiohttp"} & sys.modules.keys()
        """,
        "-p",
        "no:asyncio",
        "-p",
        "no:anyio",
        work="",
    )
    result.assert_outcomes(passed=2)


def test_a_marker_that_says_nothing_known_is_refused(suite):
    """By name, with what there is."""
    result = suite(
        """
        @pytest.mark.deferred(color="red")
        def test_colour():
            pass

        @pytest.mark.deferred("capture")
        def test_position():
            pass

        @pytest.mark.deferred(allow_errors="ValueError")
        def test_errors():
            pass

        @pytest.mark.deferred(mode="eager")
        def test_mode():
            pass
        """,
        "--strict-markers",
    )
    result.assert_outcomes(errors=4)
    known = "*takes allow_errors, allow_leftovers, backoff, mode, timeout, by name, not"
    told = [f"{known} color*", f"{known} 'capture'*", "*by their classes*not by 'ValueError'*", "*mode must be one of*"]
    result.stdout.fnmatch_lines(told)


def test_the_markers_are_listed(suite):
    """``pytest --markers`` tells what there is."""
    result = suite("", "--markers")
    result.stdout.fnmatch_lines(["@pytest.mark.deferred(mode=*"])


def test_work_of_one_test_is_not_the_next_ones(suite):
    """TH-07: a session's app and loop, one test after the other: each has its own events, mode and faults."""
    result = suite(
        """
        @pytest.mark.deferred(mode="capture")
        async def test_captures(deferred):
            deferred.fail(fine, OSError)
            handler(fine)

        async def test_runs(deferred):
            deferred.assert_nothing_deferred()
            handle = handler(fine)
            await deferred.wait()
            assert handle.attempts == 1
            assert handle.error is None

        @pytest.fixture(scope="module", autouse=True)
        async def opened():
            async with supervisor:
                yield

        async def test_without_the_fixture():
            handler(forever)
            await asyncio.sleep(0)

        async def test_is_not_blamed(deferred):
            handler(fine)

        @pytest.fixture(scope="module", autouse=True)
        def cut():
            supervisor._launcher.timeout = 0.01
            supervisor._launcher.grace = 0.01
            yield
        """,
        scope="module",
    )
    result.assert_outcomes(passed=4)


def test_in_parallel_processes(suite):
    """Nothing is shared between test runs: two at a time see their own work alone."""
    source = """
        @pytest.mark.parametrize("number", range(20))
        async def test_each(deferred, number):
            handler(fine)
            await deferred.wait()
            assert len(deferred.tasks) == 1
        """
    suite(source, "-n", "2").assert_outcomes(passed=20)
