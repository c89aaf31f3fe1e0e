"""What a request's end leaves behind: rejections in groups, channels that are over."""

import asyncio
import gc
import weakref

import pytest

from deferred import DeferredContext, Supervisor, TaskRejectedError, defer
from deferred.integrations.asgi import DeferredMiddleware

HTTP = {"type": "http", "method": "GET", "path": "/", "headers": []}
BODY = {"type": "http.response.body", "body": b"ok"}
START = {"type": "http.response.start", "status": 200, "headers": []}


async def nothing():
    """Do nothing."""


async def call(app, scope=HTTP):
    """Call an ASGI app; return what it has sent."""
    sent = []

    async def send(message):
        sent.append(message)

    async def receive():
        raise AssertionError

    await app(dict(scope), receive, send)
    return sent


async def test_a_rejection_in_a_task_group():
    """F12: a rejection that a task group of the handler wraps is answered 503 like any other."""

    async def app(scope, receive, send):
        async with asyncio.TaskGroup() as group:
            group.create_task(nothing())
            defer(nothing)
            defer(nothing)

    async with Supervisor(max_per_context=1) as supervisor:
        start, body = await call(DeferredMiddleware(app, supervisor))
    assert start["status"] == 503
    assert dict(start["headers"])[b"retry-after"] == b"1"
    assert body["body"] == b"the service is overloaded, try again later"


async def test_a_rejection_beside_another_error():
    """F12: a group with any other error in it is that error's failure, for the server to see."""

    async def app(scope, receive, send):
        async with asyncio.TaskGroup():
            defer(nothing)
            try:
                defer(nothing)
            except TaskRejectedError as error:
                raise ExceptionGroup("both", [error, ExceptionGroup("deep", [ValueError()])]) from None

    async with Supervisor(max_per_context=1) as supervisor:
        with pytest.raises(ExceptionGroup):
            await call(DeferredMiddleware(app, supervisor))


@pytest.mark.parametrize("kind", ["http", "websocket"])
async def test_the_channels_are_over_once_the_app_call_is(kind):
    """B08: a task that kept the channels of its request finds the client gone, and cannot send."""
    kept = []
    last = {"http": BODY, "websocket": {"type": "websocket.close"}}[kind]

    async def late(receive, send):
        kept.append(await receive())
        with pytest.raises(RuntimeError, match=r"'http.response.body'.*the request is over"):
            await send(BODY)

    async def app(scope, receive, send):
        if kind == "http":
            await send(START)
        defer(late, receive, send)
        await send(last)

    async with Supervisor() as supervisor:
        await call(DeferredMiddleware(app, supervisor), {**HTTP, "type": kind})
    assert [message["type"] for message in kept] == [f"{kind}.disconnect"]
    assert supervisor.stats().succeeded == 1


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_waiting_task_does_not_hold_the_connection(method):
    """A46: as long as work of a request is pending, its channels and its scope are free all the same."""
    gate = asyncio.Event()

    class Connection:
        """What a server keeps of a request."""

        async def receive(self):
            """Receive nothing."""

        async def send(self, message):
            """Send it nowhere."""

    handles = []

    async def app(scope, receive, send):
        handles.append(defer(gate.wait))
        await send(START)
        await send(BODY)

    async with Supervisor() as supervisor:
        connection = Connection()
        gone = weakref.ref(connection)
        scope = {**HTTP, "method": method, "state": {"connection": connection}}
        await DeferredMiddleware(app, supervisor)(scope, connection.receive, connection.send)
        await asyncio.sleep(0)
        del connection, scope
        gc.collect()
        assert gone() is None
        assert supervisor.stats().running == 1
        assert handles[0].label == f"{method} /"
        gate.set()


def test_a_context_is_not_made_by_hand():
    """PG-02: a context comes from a supervisor or an integration; the class alone refuses to be called."""
    with pytest.raises(TypeError, match="made by a supervisor"):
        DeferredContext()


async def test_a_context_shows_what_it_is_and_nothing_of_the_request():
    """E20: what `repr` shows of a context is its label, never the headers of its request."""
    seen = []

    async def app(scope, receive, send):
        seen.append(repr(scope["deferred.context"]))

    async with Supervisor() as supervisor:
        await call(DeferredMiddleware(app, supervisor), {**HTTP, "headers": [(b"authorization", b"secret")]})
    assert seen[0].startswith("<Exchange 'GET /' id=")
    assert "secret" not in seen[0]
