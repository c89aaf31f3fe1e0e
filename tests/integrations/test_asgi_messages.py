"""The raw ASGI middleware passes every message through, and sees in them the end of a response."""

import asyncio
import sys

import pytest
import trio

from deferred import (
    ContextClosed,
    ContextSettled,
    EventLoopError,
    Supervisor,
    concurrent,
    current_context,
    defer,
    sequential,
)
from deferred.integrations.asgi import DeferredMiddleware, deferred_from
from tests.integrations.asgi_client import Exchange, idle, turns
from tests.integrations.raw_app import answer, finish, start


async def test_messages_pass_as_the_very_objects():
    """The app's messages reach the server, and the server's the app, as the same objects."""
    given = {"type": "http.request", "body": b"x", "more_body": False, "extra": object()}
    out = [
        {"type": "http.response.debug", "info": {}},
        {"type": "http.response.start", "status": 200, "headers": [], "extra": object()},
        {"type": "http.response.body", "body": b"a", "more_body": True},
        {"type": "http.response.body", "body": b"b", "extra": object()},
    ]
    received = []

    async def app(scope, receive, send):
        received.append(await receive())
        for message in out:
            await send(message)

    exchange = await finish(DeferredMiddleware(app), incoming=[given])
    assert received[0] is given
    assert [id(message) for message in exchange.sent] == [id(message) for message in out]


async def test_an_unknown_scope_passes_through(script):
    """A scope type that nobody knows is the app's, with the server's own receive and send."""
    seen = []

    async def app(*args):
        seen.append(args)

    async def receive():
        raise AssertionError

    async def send(message):
        raise AssertionError

    scope = {"type": "quic.datagram"}
    await DeferredMiddleware(app)(scope, receive, send)
    assert seen == [(scope, receive, send)]
    assert scope == {"type": "quic.datagram"}


async def test_the_scope_is_left_as_it_was():
    """After the call the server's scope holds nothing of ours."""
    scope = {"type": "http", "method": "GET", "path": "/", "headers": []}

    async def app(scope, receive, send):
        assert deferred_from(scope) is current_context()
        await answer(send, 200, b"")

    await finish(DeferredMiddleware(app), scope)
    assert scope == {"type": "http", "method": "GET", "path": "/", "headers": []}


async def test_messages_come_on_the_same_turns():
    """The middleware delays no message by a turn of the loop, with deferred work or without."""

    def app(work):
        async def app(scope, receive, send):
            if work:
                defer(turns, 1)
            await start(send, 200)
            for _ in range(3):
                await turns(1)
                await send({"type": "http.response.body", "body": b"x", "more_body": True})
            await send({"type": "http.response.body", "body": b""})

        return app

    async def timing(app):
        exchange = await finish(app)
        return [at - exchange.at[0] for at in exchange.at]

    supervisor = Supervisor()
    async with supervisor:
        plain = await timing(app(work=False))
        assert await timing(DeferredMiddleware(app(work=False), supervisor)) == plain
        assert await timing(DeferredMiddleware(app(work=True), supervisor)) == plain


def test_under_trio_requests_pass_and_only_registering_raises():
    """Without an asyncio loop everything passes through; `defer` says that asyncio is needed."""
    sent, refused = [], []

    async def app(scope, receive, send):
        try:
            defer(turns, 1)
        except EventLoopError as error:
            refused.append(str(error))
        await answer(send, 200, b"trio")

    async def send(message):
        sent.append(message["type"])

    async def receive():
        return {"type": "http.request"}

    async def main():
        await DeferredMiddleware(app)({"type": "http", "method": "GET", "path": "/", "headers": []}, receive, send)

    trio.run(main)
    assert sent == ["http.response.start", "http.response.body"]
    assert len(refused) == 1
    assert "asyncio" in refused[0]


async def ends_after(script, messages, *, supervisor=None, before_last=None):
    """Send `messages` with work deferred at the start; return what was noted when all but the last was sent."""
    supervisor = supervisor or Supervisor()
    early = []

    async def app(scope, receive, send):
        defer(script.work)
        for message in messages[:-1]:
            await send(message)
        await turns(5)
        early.extend(script.noted)
        await send(messages[-1])
        script.note("sent")
        await turns(5)
        script.note("returned")

    async with supervisor:
        await finish(DeferredMiddleware(app, supervisor))
        await idle(supervisor)
    return early


@pytest.mark.parametrize(
    "tail",
    [
        [{"type": "http.response.body", "body": b"x"}],
        [{"type": "http.response.body", "body": b"x", "more_body": True}, {"type": "http.response.body"}],
        [{"type": "http.response.pathsend", "path": "/etc/hosts"}],
        [{"type": "http.response.zerocopysend", "file": 3, "more_body": True}, {"type": "http.response.zerocopysend"}],
    ],
)
async def test_the_last_part_of_a_response_closes(script, tail):
    """Work starts after the last part, whichever message carries it, and before the app call returns."""
    head = {"type": "http.response.start", "status": 200, "headers": []}
    assert await ends_after(script, [head, *tail]) == []
    assert script.noted == ["sent", "work", "returned"]


async def test_trailers_are_part_of_the_response(script):
    """Where trailers are announced, the response ends with the last of them."""
    messages = [
        {"type": "http.response.start", "status": 200, "headers": [], "trailers": True},
        {"type": "http.response.body", "body": b"x"},
        {"type": "http.response.trailers", "headers": [], "more_trailers": True},
        {"type": "http.response.trailers", "headers": []},
    ]
    assert await ends_after(script, messages) == []
    assert script.noted == ["sent", "work", "returned"]


async def test_work_registered_while_the_last_chunk_is_being_sent_waits_for_it(script):
    """What another task of the handler defers while the client is slow to take the last chunk starts after it."""
    supervisor = Supervisor()
    sending = asyncio.Event()
    beside = []

    async def helper(ctx):
        await sending.wait()
        ctx.defer(script.work)

    async def app(scope, receive, send):
        beside.append(asyncio.get_running_loop().create_task(helper(current_context())))
        await answer(send, 200, b"slow")

    async with supervisor:
        exchange = Exchange(
            DeferredMiddleware(app, supervisor), {"type": "http", "method": "GET", "path": "/", "headers": []}, []
        )

        def hold(message):
            if message["type"] == "http.response.body":
                sending.set()
                return True
            return False

        exchange.hold = hold
        exchange.start()
        await sending.wait()
        await beside[0]
        await turns(10)
        assert script.noted == []
        exchange.gate.set()
        await exchange.done()
        await idle(supervisor)
    assert script.noted == ["work"]


async def test_a_message_made_but_never_sent_closes_nothing(script):
    """A coroutine of ``send`` that the app drops without awaiting it is no response."""
    supervisor = Supervisor()

    async def app(scope, receive, send):
        defer(script.work)
        await start(send, 200)
        send({"type": "http.response.body", "body": b"never"}).close()
        await turns(5)
        script.note("still open")
        await send({"type": "http.response.body", "body": b"sent"})

    async with supervisor:
        exchange = await finish(DeferredMiddleware(app, supervisor))
        await idle(supervisor)
    assert exchange.body == b"sent"
    assert script.noted == ["still open", "work"]


async def test_work_registered_after_the_last_byte_starts_on_the_next_turn(script):
    """Between the last byte and the end of the app call, deferred work is released on the very next turn."""
    supervisor = Supervisor()

    async def app(scope, receive, send):
        await answer(send, 200, b"")
        defer(script.work)
        script.note("registered")
        await turns(3)
        script.note("returned")

    async with supervisor:
        await finish(DeferredMiddleware(app, supervisor))
    assert script.noted == ["registered", "work", "returned"]
    first_step = 0 if sys.version_info >= (3, 12) else 1  # asyncio starts a task eagerly, or on the turn after
    assert script.turn_of("work") == script.turn_of("registered") + 1 + first_step


@pytest.mark.parametrize("work", [False, True])
async def test_an_app_that_never_answers_is_a_500(work):
    """An app that returns without any response counts as failed: the server answers 500 for it."""
    supervisor = Supervisor()
    statuses, ran = [], []
    supervisor.add_hook(lambda event: isinstance(event, ContextSettled) and statuses.append(event.context.status))

    async def app(scope, receive, send):
        if work:
            current_context().with_options(when="error").defer(ran.append, "error")

    async with supervisor:
        await finish(DeferredMiddleware(app, supervisor))
    assert statuses == [500]
    assert ran == ["error"] * work


async def test_a_client_that_left_an_unanswered_request_leaves_an_error(script):
    """A handler that saw the client go and returned without answering has failed, whenever that is asked."""
    supervisor = Supervisor()

    async def asks_later(ctx):
        await turns(5)
        script.note(f"status {ctx.status}")
        ctx.with_options(when="error").defer(script.work, "error")

    async def app(scope, receive, send):
        ctx = current_context()
        ctx.defer(asks_later, ctx)
        await receive()

    async with supervisor:
        exchange = Exchange(
            DeferredMiddleware(app, supervisor), {"type": "http", "method": "GET", "path": "/", "headers": []}, []
        ).start()
        exchange.leave()
        await exchange.done()
        await idle(supervisor)
    assert script.noted == ["status 500", "error"]


async def test_closing_is_told_once():
    """However a response ends, its hooks are told of it once."""
    supervisor = Supervisor()
    told = []
    supervisor.add_hook(lambda event: isinstance(event, ContextClosed) and told.append(event))

    async def app(scope, receive, send):
        await answer(send, 200, b"")
        await receive()
        raise RuntimeError

    async with supervisor:
        await finish(DeferredMiddleware(app, supervisor))
    assert len(told) == 1


async def test_a_decorated_helper_gives_the_route_back_its_execution(script):
    """A helper with a decorator of its own runs its steps its way, and the route's later steps run the route's."""
    supervisor = Supervisor()

    @concurrent
    async def helper():
        await current_context().run(script.work, "helper")

    @sequential
    async def handler():
        await helper()
        await current_context().run(script.work, "route")
        script.note("answer")

    async def app(scope, receive, send):
        await handler()
        await answer(send, 200, b"")

    async with supervisor:
        await finish(DeferredMiddleware(app, supervisor))
        await idle(supervisor)
    assert script.noted.index("route") < script.noted.index("answer")
    assert "helper" in script.noted
