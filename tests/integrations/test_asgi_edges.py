"""What the raw ASGI middleware promises beyond the list of every framework."""

import asyncio
import contextlib
import contextvars
import logging

import pytest
import trio

from deferred import (
    ContextClosed,
    ContextClosedError,
    ContextSettled,
    DrainFinished,
    DrainStarted,
    EventLoopError,
    NoCurrentContextError,
    Supervisor,
    current_context,
    defer,
)
from deferred.integrations.asgi import DeferredMiddleware, deferred_from
from tests.integrations.asgi_client import Client, Exchange, idle, raw, serving, turns
from tests.integrations.script import Script
from tests.integrations.test_asgi import RawApp, answer, start


@pytest.fixture
def script():
    return Script()


async def finish(app, scope=None, incoming=()):
    """Serve one HTTP scope to its end."""
    scope = {"type": "http", "method": "GET", "path": "/", "headers": []} if scope is None else scope
    return await Exchange(app, scope, list(incoming)).start().done()


# -- pass-through ---------------------------------------------------------------------------------


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


# -- the end of the response ----------------------------------------------------------------------


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
    """Between the last byte and the end of the app call, deferred work starts on the very next turn."""
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
    assert script.turn_of("work") == script.turn_of("registered") + 1


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


# -- lifespan -------------------------------------------------------------------------------------


async def raises(scope, receive, send):
    """Know no lifespan, as an app with an assertion on the type."""
    if scope["type"] != "http":
        raise AssertionError
    await answer(send, 200, b"")


async def returns(scope, receive, send):
    """Know no lifespan, as an app that returns for what it does not know."""
    if scope["type"] == "http":
        await answer(send, 200, b"")


@pytest.mark.parametrize("app", [raises, returns])
async def test_an_app_without_lifespan_is_drained_all_the_same(app, script, caplog):
    """Where the app knows no lifespan, the middleware plays its part: it opens, drains and warns of nothing."""
    supervisor = Supervisor()
    draining = asyncio.Event()
    supervisor.add_hook(lambda event: draining.set() if isinstance(event, DrainStarted) else None)

    async def slow():
        await draining.wait()
        await turns(5)
        script.note("drained")

    async def with_work(scope, receive, send):
        if scope["type"] == "http":
            defer(slow)
        await app(scope, receive, send)

    client = Client(DeferredMiddleware(with_work, supervisor))
    async with client:
        await client.get("/")
    assert client.lifespan.answers == ["startup.complete", "shutdown.complete"]
    assert client.lifespan.error is None
    assert script.noted == ["drained"]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_an_app_that_fails_at_its_shutdown_says_so_after_the_drain(script):
    """The error of an app's shutdown reaches the server, and the drain has ended before."""
    supervisor = Supervisor()

    async def app(scope, receive, send):
        if scope["type"] == "http":
            defer(script.work)
            await answer(send, 200, b"")
            return
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        script.note("shutdown")
        raise RuntimeError("no")

    client = Client(DeferredMiddleware(app, supervisor))
    async with client:
        await client.get("/")
    assert isinstance(client.lifespan.error, RuntimeError)
    assert script.noted == ["work", "shutdown"]


async def test_a_mounted_app_with_a_supervisor_of_its_own_is_drained_with_the_outer_one(script):
    """A mounted app gets no lifespan: its supervisor is drained by the one around it, each with its context."""
    outer, inner = Supervisor(), Supervisor()
    reports = []
    for name, supervisor in (("outer", outer), ("inner", inner)):
        supervisor.add_hook(
            lambda event, name=name: isinstance(event, DrainFinished) and reports.append((name, event.report.finished))
        )
    gate = asyncio.Event()
    inner.add_hook(lambda event: gate.set() if isinstance(event, DrainStarted) else None)

    async def slow(what):
        await gate.wait()
        script.note(what)

    async def mounted(scope, receive, send):
        defer(slow, "inner")
        contexts.append(current_context())
        await answer(send, 200, b"")

    mounted = DeferredMiddleware(mounted, inner)
    contexts = []

    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            await RawApp(script, bare=True).lifespan(receive, send)
            return
        contexts.append(current_context())
        await mounted(scope, receive, send)
        assert current_context() is contexts[0]
        defer(slow, "outer")

    client = Client(DeferredMiddleware(app, outer))
    async with client:
        await client.get("/")
    assert contexts[0] is not contexts[1]
    assert sorted(script.noted) == ["inner", "outer"]
    assert sorted(reports) == [("inner", 1), ("outer", 1)]


async def test_lifetime_request_keeps_the_app_call_open(script):
    """With ``lifetime="request"`` the call returns when the work of its request is done, nested work too."""

    async def nested():
        script.note("first")
        await turns(3)
        defer(script.work, "second")

    async def app(scope, receive, send):
        defer(nested)
        await answer(send, 200, b"")
        script.note("answered")

    supervisor = Supervisor()
    async with supervisor:
        exchange = await finish(DeferredMiddleware(app, supervisor, lifetime="request"))
        script.note("returned")
    assert script.noted == ["answered", "first", "second", "returned"]
    assert exchange.returned >= script.turn_of("second")


# -- over a socket --------------------------------------------------------------------------------

LARGE = 100_000
GET = b"GET /%s HTTP/1.1\r\nhost: test\r\n\r\n"
POST = b"POST /%s HTTP/1.1\r\nhost: test\r\ncontent-length: %d\r\n\r\n"


async def test_requests_of_one_connection_keep_their_contexts_apart():
    """Over keep-alive, pipelined and after a large body, every request finds its own context and runs its work."""
    supervisor = Supervisor()
    seen, ran = [], []

    async def work(path, ctx):
        ran.append((path, current_context() is ctx))

    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            await RawApp(Script(), bare=True).lifespan(receive, send)
            return
        while (await receive()).get("more_body"):
            pass
        ctx = current_context()
        assert deferred_from(scope) is ctx
        seen.append(ctx)
        defer(work, scope["path"], ctx)
        await answer(send, 200, scope["path"].encode())

    requests = [GET % b"1", GET % b"2", POST % (b"3", LARGE) + b"x" * LARGE, GET % b"4"]
    async with serving(DeferredMiddleware(app, supervisor)) as port:
        read = await raw(port, *requests)
        await idle(supervisor)
    assert [f"/{n}".encode() in read for n in range(1, 5)] == [True] * 4
    assert len({id(ctx) for ctx in seen}) == 4
    assert ran == [(f"/{n}", True) for n in range(1, 5)]


async def test_a_context_leaked_by_the_server_is_closed_and_attaches_to_nothing():
    """Context variables that a server carries over from an ended request lead to an error, never to another's work."""
    supervisor = Supervisor()
    leaked = contextvars.copy_context()
    outcomes = []

    async def app(scope, receive, send):
        await answer(send, 200, b"")
        if scope["path"] == "/first":
            nonlocal leaked
            leaked = contextvars.copy_context()

    async def unwrapped(scope, receive, send):
        try:
            defer(turns, 1)
        except ContextClosedError as error:
            outcomes.append(type(error))
        await answer(send, 200, b"")

    wrapped = DeferredMiddleware(app, supervisor)
    async with supervisor:
        client = Client(wrapped)
        await client.get("/first")
        await client.open("GET", "/second").start(leaked).done()
        await Client(unwrapped).open("GET", "/third").start(leaked).done()
        with pytest.raises(NoCurrentContextError):
            current_context()
    assert outcomes == [ContextClosedError]
    assert supervisor.stats().succeeded == 0


async def test_a_failing_task_leaves_the_connection_open():
    """A task that fails after its 200 does not close the keep-alive connection under the next request."""
    supervisor = Supervisor()
    failed = asyncio.Event()
    supervisor.add_hook(lambda event: failed.set() if type(event).__name__ == "TaskFailed" else None)

    async def fails():
        raise SystemExit(1)

    async def app(scope, receive, send):
        if scope["type"] != "http":
            raise AssertionError
        if scope["path"] == "/1":
            defer(fails)
        else:
            await failed.wait()
        await answer(send, 200, b"fine")

    async with serving(DeferredMiddleware(app, supervisor)) as port:
        read = await raw(port, GET % b"1", GET % b"2")
    assert read.count(b"200 OK") == 2


async def test_uvicorn_waits_for_the_drain_at_its_shutdown(script):
    """A real server's shutdown ends after the work that its requests have left."""
    supervisor = Supervisor()
    draining = asyncio.Event()
    supervisor.add_hook(lambda event: draining.set() if isinstance(event, DrainStarted) else None)

    async def slow():
        await draining.wait()
        await turns(20)
        script.note("done")

    async def app(scope, receive, send):
        if scope["type"] != "http":
            raise AssertionError
        defer(slow)
        await answer(send, 200, b"")

    async with contextlib.AsyncExitStack() as stack:
        port = await stack.enter_async_context(serving(DeferredMiddleware(app, supervisor)))
        await raw(port, GET % b"1")
        assert script.noted == []
    assert script.noted == ["done"]
