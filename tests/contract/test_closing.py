"""CL and H3: when the context closes, seen by an app in an ASGI server."""

import asyncio

import pytest

from deferred import ContextClosed, current_context, defer
from deferred.integrations.asgi import DeferredMiddleware
from tests.integrations.asgi_client import Client, idle, turns
from tests.integrations.raw_app import answer, finish, start


@pytest.fixture
def serve(watched):
    """Give a function that opens a GET request of an app behind the middleware."""

    def serve(app, *, gone="drop"):
        return Client(DeferredMiddleware(app, watched), gone=gone).open("GET", "/")

    return serve


def streaming(script, *, fails=False):
    """Return an app that defers and streams three chunks."""

    async def app(scope, receive, send):
        defer(script.work)
        await start(send, 200)
        for chunk in (b"a", b"b"):
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
            if fails:
                raise ValueError("mid-stream")
        script.note("produced")
        await send({"type": "http.response.body", "body": b"c"})

    return app


async def test_the_end_is_told_once_when_the_last_chunk_is_taken(serve, watched, told, script):
    """CL-01: not when the producer has finished, but when the consumer has the last chunk; once."""
    exchange = serve(streaming(script))
    exchange.hold = lambda message: message.get("body") == b"c"
    exchange.start()
    await exchange.taken(3)
    await turns(10)
    assert script.noted == ["produced"]
    assert told.of(ContextClosed) == []
    exchange.gate.set()
    await exchange.done()
    await idle(watched)
    assert script.noted == ["produced", "work"]
    assert len(told.of(ContextClosed)) == 1


async def test_an_error_of_the_stream_ends_it_once_and_reaches_the_server(serve, watched, told, script):
    """CL-02: the notification comes once, with the error, which the server gets as well."""
    exchange = await serve(streaming(script, fails=True)).start().done()
    await idle(watched)
    assert isinstance(exchange.error, ValueError)
    assert [event.error for event in told.of(ContextClosed)] == [exchange.error]
    assert script.noted == ["work"]


async def test_a_consumer_that_leaves_ends_it_once_and_the_producer_learns_why(serve, watched, told, script):
    """CL-03: the notification comes once, and what the server raises in ``send`` reaches the app as it is."""
    reasons = []

    async def app(scope, receive, send):
        defer(script.work)
        await start(send, 200)
        try:
            while True:
                await send({"type": "http.response.body", "body": b"x", "more_body": True})
        except OSError as error:
            reasons.append(error)
            raise

    exchange = serve(app, gone="raise")
    exchange.on_sent = lambda message: len(exchange.sent) == 5 and exchange.leave()
    await exchange.start().done()
    await idle(watched)
    assert exchange.error is reasons[0]
    assert len(told.of(ContextClosed)) == 1
    assert script.noted == ["work"]


async def test_several_listeners_are_all_told(watched, script):
    """CL-04: every hook hears of the close, and everything deferred runs."""
    seen = []
    watched.add_hook(lambda event: isinstance(event, ContextClosed) and seen.append("one"))
    watched.add_hook(lambda event: isinstance(event, ContextClosed) and seen.append("two"))
    with watched.context() as ctx:
        ctx.defer(script.work, "a")
        ctx.defer(script.work, "b")
    await ctx.drained()
    assert seen == ["one", "two"]
    assert script.noted == ["a", "b"]


async def test_closing_without_any_listener_is_fine(supervisor):
    """CL-07: a context that nobody used closes without ado."""

    async def app(scope, receive, send):
        await answer(send, 200, b"")

    exchange = await finish(DeferredMiddleware(app, supervisor))
    assert exchange.error is None
    with supervisor.context() as ctx:
        pass
    assert ctx.closed


async def test_a_plain_body_ends_after_the_server_could_send_it(serve, watched, script):
    """CL-08: work never starts in the synchronous step that returns the body, but on a later turn."""

    async def app(scope, receive, send):
        defer(script.work)
        await answer(send, 200, b"plain")
        script.note("sent")

    exchange = await serve(app).start().done()
    await idle(watched)
    assert script.noted == ["sent", "work"]
    assert script.turn_of("work") > exchange.last


async def test_work_follows_a_response_that_is_no_stream(serve, watched, script):
    """H3-01: it runs after a response in one piece."""

    async def app(scope, receive, send):
        defer(script.work)
        await answer(send, 204, b"")

    exchange = await serve(app).start().done()
    await idle(watched)
    assert exchange.status == 204
    assert script.noted == ["work"]


async def test_work_follows_a_stream_only_when_it_is_consumed(serve, watched, script):
    """H3-02: a client that reads slowly holds it back until the last chunk."""
    exchange = serve(streaming(script))
    exchange.hold = lambda message: message["type"] == "http.response.body"
    exchange.start()
    await turns(20)
    assert script.noted == []
    exchange.gate.set()
    await exchange.done()
    await idle(watched)
    assert script.noted == ["produced", "work"]


async def test_a_cancel_without_a_reason_is_a_cancellation(supervisor, gate):
    """H3-04: `TaskHandle.cancel` takes no reason, and the work gets an `asyncio.CancelledError`."""
    reasons = []

    async def work():
        try:
            await gate.wait()
        except asyncio.CancelledError as error:
            reasons.append(error)
            raise

    with supervisor.context() as ctx:
        handle = ctx.wait_until(work())
        await turns(2)
        assert handle.cancel()
        with pytest.raises(asyncio.CancelledError):
            await handle
    assert len(reasons) == 1


async def test_a_disconnect_while_the_handler_runs_closes(serve, watched, script, gate):
    """H3-05: when the app is told of the disconnect, its work starts though it goes on."""

    async def app(scope, receive, send):
        defer(script.work)
        await receive()
        assert (await receive())["type"] == "http.disconnect"
        await gate.wait()

    exchange = serve(app).start()
    await turns(5)
    assert script.noted == []
    exchange.leave()
    await turns(10)
    assert script.noted == ["work"]
    assert exchange.returned is None
    gate.set()
    await exchange.done()


async def test_callbacks_run_in_order_and_their_failures_are_absorbed(supervisor, script, errors):
    """H3-07: a synchronous raise and a failing coroutine stop neither the order nor the others."""

    def raises():
        raise ValueError

    async def fails():
        raise KeyError

    with supervisor.context() as ctx:
        ctx.defer(script.work, "a")
        ctx.defer(raises)
        ctx.defer(script.work, "b")
        ctx.defer(fails)
        ctx.defer(script.work, "c")
    await ctx.drained()
    assert script.noted == ["a", "b", "c"]
    assert {type(event.error) for event in errors} == {ValueError, KeyError}


async def test_work_registered_after_the_close_runs_on_a_later_turn(serve, watched, script):
    """H3-08: registered after the last byte, it starts by itself, on a later turn, not in the call."""

    async def app(scope, receive, send):
        await answer(send, 200, b"")
        defer(script.work)
        script.note("registered")
        await turns(2)
        script.note("returning")

    await serve(app).start().done()
    assert script.noted == ["registered", "work", "returning"]


async def test_a_stream_is_observed_without_being_touched(serve, watched, script):
    """H3-10: the chunks of an observed stream are the app's own objects, on their own turns."""
    chunks = [{"type": "http.response.body", "body": bytes([n]), "more_body": n < 3} for n in range(4)]

    async def app(scope, receive, send):
        defer(script.work)
        await start(send, 200)
        for chunk in chunks:
            await send(chunk)
            await turns(1)

    exchange = await serve(app).start().done()
    await idle(watched)
    assert [id(message) for message in exchange.sent[1:]] == [id(chunk) for chunk in chunks]
    assert script.turn_of("work") > exchange.last


async def test_without_work_the_messages_pass_unaltered(supervisor):
    """H3-11: an app that looks at its context and registers nothing has its messages passed as they are."""
    messages = [
        {"type": "http.response.start", "status": 200, "headers": [(b"x", b"y")]},
        {"type": "http.response.body", "body": b"x"},
    ]

    async def app(scope, receive, send):
        assert current_context().tasks == ()
        for message in messages:
            await send(message)

    exchange = await finish(DeferredMiddleware(app, supervisor))
    assert [id(message) for message in exchange.sent] == [id(message) for message in messages]
    assert messages[0] == {"type": "http.response.start", "status": 200, "headers": [(b"x", b"y")]}
