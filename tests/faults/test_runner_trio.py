"""Under trio everything passes through, and only registering says that asyncio is needed: A69."""

import pytest

from deferred import EventLoopError, Execution, Supervisor, current_task
from deferred.integrations.asgi import DeferredMiddleware, deferred_from
from tests.faults.support import fine

trio = pytest.importorskip("trio")

START = {"type": "http.response.start", "status": 200, "headers": []}
BODY = {"type": "http.response.body", "body": b"answer"}


async def serve(app):
    """Serve one request under trio."""
    sent = []

    async def send(message):
        await trio.lowlevel.checkpoint()
        sent.append(message)

    async def receive():
        raise AssertionError

    await app({"type": "http", "method": "GET", "path": "/"}, receive, send)
    return sent


def test_requests_pass_through():
    """A69: a request that defers nothing is served as without the middleware."""

    async def app(scope, receive, send):
        assert deferred_from(scope).closed is False
        await trio.sleep(0)
        await send(START)
        await send(BODY)

    assert trio.run(serve, DeferredMiddleware(app)) == [START, BODY]


@pytest.mark.parametrize("way", ["defer", "wait_until", "run", "sequential", "thread"])
def test_registering_says_what_is_needed(way):
    """A69: every way to register raises, naming asyncio; the coroutine is closed and the answer is the handler's."""
    errors, coroutines = [], []

    async def app(scope, receive, send):
        ctx = deferred_from(scope)
        try:
            if way == "defer":
                ctx.defer(fine)
            elif way == "wait_until":
                coroutines.append(fine())
                ctx.wait_until(coroutines[0])
            elif way == "thread":
                await trio.to_thread.run_sync(ctx.defer, fine)
            else:
                ctx.route = Execution.SEQUENTIAL if way == "sequential" else None
                await ctx.run(fine)
        except Exception as error:  # noqa: BLE001  # the test looks at it
            errors.append(error)
        await send(START)
        await send(BODY)

    assert trio.run(serve, DeferredMiddleware(app)) == [START, BODY]
    assert "asyncio" in str(errors[0])
    assert type(errors[0]).__name__ == "EventLoopError"
    assert all(coroutine.cr_frame is None for coroutine in coroutines)


def test_lifespan_passes_through():
    """A69: the lifespan of an app under trio works, or says that asyncio is needed."""
    seen = []

    async def app(scope, receive, send):
        seen.append((await receive())["type"])
        await send({"type": "lifespan.startup.complete"})
        seen.append((await receive())["type"])
        await send({"type": "lifespan.shutdown.complete"})

    async def main():
        messages = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])
        sent = []

        async def receive():
            await trio.lowlevel.checkpoint()
            return next(messages)

        async def send(message):
            await trio.lowlevel.checkpoint()
            sent.append(message["type"])

        await DeferredMiddleware(app)({"type": "lifespan"}, receive, send)
        return sent

    assert trio.run(main) == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert seen == ["lifespan.startup", "lifespan.shutdown"]


def test_hooks_that_are_asynchronous():
    """A69: hooks told of contexts under trio leave no coroutine behind that was never awaited."""

    async def hook(event):
        raise AssertionError

    async def app(scope, receive, send):
        await send(START)
        await send(BODY)

    assert trio.run(serve, DeferredMiddleware(app, Supervisor(hooks=[hook]))) == [START, BODY]


def test_there_is_no_task():
    """A69: asking for the current task is allowed anywhere."""

    async def main():
        return current_task()

    assert trio.run(main) is None


def test_an_app_call_that_stays_open_for_work_ends():
    """A69: with ``lifetime="request"`` a request that defers nothing is served as without the middleware."""

    async def app(scope, receive, send):
        await send(START)
        await send(BODY)

    assert trio.run(serve, DeferredMiddleware(app, lifetime="request")) == [START, BODY]


def test_a_wrapped_function_that_defers_nothing_is_itself():
    """A69: its result comes through, and so does its error."""

    @Supervisor().wrap
    async def handle(value):
        await trio.sleep(0)
        return 1 / value

    assert trio.run(handle, 1) == 1
    with pytest.raises(ZeroDivisionError):
        trio.run(handle, 0)


def test_opening_a_supervisor_says_what_is_needed():
    """A69: it has no loop to work on there, and says which it wants."""

    async def serve_nothing():
        async with Supervisor():
            raise AssertionError

    with pytest.raises(EventLoopError, match="asyncio event loop, and none runs here"):
        trio.run(serve_nothing)
