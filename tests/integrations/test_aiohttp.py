"""The promises, and what is particular to it, of aiohttp's server after `setup`."""

import asyncio

import pytest
from aiohttp import web

from deferred import ContextClosedError, DrainFinished, DrainStarted, NoCurrentContextError, Supervisor, defer
from deferred.integrations.aiohttp import deferred_from, setup
from tests.integrations.aiohttp_client import Client, serving
from tests.integrations.asgi_client import idle, until
from tests.integrations.promises import Adapter, Promises
from tests.integrations.raw_app import MARKS
from tests.integrations.script import BoomError, late


def routes(script, context):  # noqa: C901  # one function a route
    """Return the routes of the promises."""
    table = web.RouteTableDef()

    @table.get("/plain")
    async def plain(request):
        await script.handle(context(request))
        return web.Response(text="plain")

    @table.post("/body")
    async def body(request):
        await request.read()
        script.act(context(request))
        return web.Response(text="body")

    @table.get("/stream")
    async def stream(request):
        script.act(context(request))
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(request)
        async for chunk in script.stream(context(request)):
            await response.write(chunk)
        return response

    @table.get("/raises")
    async def raises(request):
        await script.handle(context(request))
        raise BoomError

    @table.get("/http-error")
    async def http_error(request):
        await script.handle(context(request))
        raise web.HTTPConflict

    @table.get("/redirect")
    async def redirect(request):
        await script.handle(context(request))
        raise web.HTTPSeeOther("/plain")

    @table.get("/nothing")
    async def nothing(request):
        await script.handle(context(request))
        return web.Response(status=204)

    @table.get("/not-modified")
    async def not_modified(request):
        await script.handle(context(request))
        raise web.HTTPNotModified

    @table.get("/sync")
    async def sync(request):
        await asyncio.to_thread(script.act, context(request))
        return web.Response(text="sync")

    @table.get("/behind")
    async def behind(request):
        await script.handle(context(request))
        return web.Response(text="behind")

    for name, mark in MARKS.items():

        @table.get(f"/run/{name}")
        @mark
        async def run(request):
            await context(request).run(script.step)
            return web.Response(text="ran")

    return table


def sockets(script, context):
    """Return the websockets of the promises."""
    table = web.RouteTableDef()

    @table.get("/socket")
    async def socket(request):
        response = web.WebSocketResponse()
        await response.prepare(request)
        await script.handle(context(request))
        async for message in response:
            if message.data == "boom":
                raise BoomError
            if message.data == "bye":
                break
            await response.send_str(message.data)
        return response

    @table.get("/refused")
    async def refused(request):
        await script.handle(context(request))
        raise web.HTTPForbidden

    return table


class AiohttpAdapter(Adapter):
    """An aiohttp application."""

    # It has no background tasks of its own, no messages, and it is always started.
    lacks = frozenset({"/listens", "/own", "/own-raises", "no lifespan"})

    def build(self, script, supervisor):
        """Build the application, with another one mounted in it."""

        def context(request):
            return None if supervisor is None else deferred_from(request)

        @web.middleware
        async def behind(request, handler):
            if request.path == "/behind":
                script.act(context(request))
            return await handler(request)

        async def resource(_app):
            script.opening()
            yield
            script.closing()

        app, inner = web.Application(middlewares=[behind]), web.Application()
        if supervisor is not None:
            setup(app, supervisor)
        inner.add_routes(routes(script, context))
        app.add_routes([*routes(script, context), *sockets(script, context)])
        app.add_subapp("/mounted", inner)
        app.cleanup_ctx.append(resource)
        return app

    def client(self, app, **options):
        """Return a client of the application."""
        return Client(app, **options)

    def serving(self, app):
        """Serve the application by aiohttp's own runner."""
        return serving(app)

    def wrap_again(self, app, supervisor):
        """Set the application up once more."""
        setup(app, supervisor)
        return app


class TestPromises(Promises):
    """The promises of every framework."""

    adapter = AiohttpAdapter()


def application(supervisor, handler, **options):
    """Return an application with one handler, and no parent."""
    app = web.Application(**options)
    setup(app, supervisor)
    app.router.add_get("/", handler)
    return app


async def test_work_waits_for_a_body_that_is_generated(script):
    """A body that an async generator gives is written after the middleware; it finds the context all the same."""
    supervisor = Supervisor()

    async def chunks():
        yield b"one"
        defer(script.work)
        assert script.noted == []
        yield b"two"

    async def handler(request):
        return web.Response(body=chunks())

    async with Client(application(supervisor, handler)) as client:
        exchange = await client.get("/")
        await idle(supervisor)
    assert exchange.body == b"onetwo"
    assert script.turn_of("work") > exchange.last


async def test_work_starts_when_the_handler_has_written_the_end_itself(script):
    """Where a handler calls ``write_eof`` itself, work starts then; what it defers later starts at once."""
    supervisor = Supervisor()
    go_on = asyncio.Event()

    async def handler(request):
        ctx = deferred_from(request)
        response = web.StreamResponse()
        await response.prepare(request)
        ctx.defer(script.work, "first")
        await response.write_eof(b"all")
        await go_on.wait()
        ctx.defer(script.work, "second")
        return response

    async with Client(application(supervisor, handler)) as client:
        exchange = client.open("GET", "/").start()
        await until(lambda: script.noted == ["first"])
        assert exchange.body == b"all"
        go_on.set()
        await exchange.done()
        await idle(supervisor)
    assert script.noted == ["first", "second"]


async def test_a_file_response_is_waited_for(script, tmp_path):
    """A file is sent by a response of its own; work starts after it."""
    supervisor = Supervisor()
    tmp_path.joinpath("file").write_bytes(b"file")

    async def handler(request):
        defer(script.work)
        return web.FileResponse(tmp_path / "file")

    async with Client(application(supervisor, handler)) as client:
        exchange = client.open("GET", "/")
        loop = asyncio.get_running_loop()
        loop.sendfile = lambda transport, file, *rest, **options: asyncio.to_thread(
            lambda: loop.call_soon_threadsafe(transport.write, file.read())
        )
        await exchange.start().done()
        await idle(supervisor)
    assert exchange.status == 200
    assert script.noted == ["work"]


async def test_a_stream_that_breaks_ends_its_context(script):
    """When a handler raises in the middle of its stream no error page follows; its work runs, as for an error."""
    supervisor = Supervisor()

    async def handler(request):
        for when in ("success", "error"):
            deferred_from(request).with_options(when=when).defer(script.work, when)
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"one")
        raise BoomError

    async with Client(application(supervisor, handler)) as client:
        await client.get("/")
        await idle(supervisor)
    assert script.noted == ["error"]


async def test_a_handler_that_is_cancelled_keeps_what_it_has_deferred(script):
    """B25: with ``handler_cancellation`` a client that leaves cancels its handler; the work runs."""
    supervisor = Supervisor()

    async def handler(request):
        defer(script.work)
        script.arrived.set()
        await asyncio.Event().wait()

    client = Client(application(supervisor, handler), handler_cancellation=True)
    async with client:
        exchange = client.open("GET", "/").start()
        await script.arrived.wait()
        assert script.noted == []
        exchange.leave()
        await exchange.done()
        await idle(supervisor)
    assert script.noted == ["work"]


async def test_a_client_that_leaves_before_the_first_byte_of_its_answer(script):
    """B06: aiohttp fails to prepare the answer to a client that has gone; the context ends all the same."""
    supervisor = Supervisor()
    contexts = []

    async def fails(request, response):
        raise ConnectionResetError

    async def handler(request):
        contexts.append(deferred_from(request))
        defer(script.work)
        return web.Response()

    app = application(supervisor, handler)
    app.on_response_prepare.append(fails)
    async with Client(app) as client:
        await client.get("/")
        await idle(supervisor)
        with pytest.raises(ContextClosedError):
            contexts[0].defer(script.work)
    assert script.noted == ["work"]


async def test_signals_and_middlewares_of_the_app_may_defer(script):
    """Middlewares of the app and its ``on_response_prepare`` find the context, whoever answers."""
    supervisor = Supervisor()

    @web.middleware
    async def middleware(request, handler):
        defer(script.work, "middleware")
        return await handler(request)

    async def prepare(request, response):
        defer(script.work, "prepare")

    async def handler(request):
        raise web.HTTPGone

    app = application(supervisor, handler, middlewares=[middleware])
    app.on_response_prepare.append(prepare)
    async with Client(app) as client:
        for path, status in [("/", 410), ("/missing", 404)]:
            assert (await client.get(path)).status == status
            await idle(supervisor)
    assert script.noted == ["middleware", "prepare"] * 2


@pytest.mark.parametrize("first", ["setup", "resource"])
async def test_the_drain_comes_before_everything_the_app_closes(script, first):
    """B34: draining begins at ``on_shutdown``; the drain ends before any cleanup context or ``on_cleanup``."""
    supervisor = Supervisor()
    slow = late(supervisor, lambda: script.note("work"))

    async def handler(request):
        defer(slow)
        return web.Response()

    async def resource(_app):
        yield
        script.note("cleanup_ctx")

    async def on_shutdown(_app):
        script.note(f"draining: {supervisor.draining}, at work: {len(supervisor._launcher.tasks)}")

    async def on_cleanup(_app):
        script.note("on_cleanup")

    app = web.Application()
    app.router.add_get("/", handler)
    if first == "setup":
        setup(app, supervisor)
    app.cleanup_ctx.append(resource)
    app.on_shutdown.append(on_shutdown)
    app.on_cleanup.append(on_cleanup)
    if first == "resource":
        setup(app, supervisor)
    async with Client(app) as client:
        await client.get("/")
        assert not supervisor.draining
    assert script.noted == ["draining: True, at work: 1", "work", "cleanup_ctx", "on_cleanup"]


async def test_a_drain_that_is_cancelled_records_what_it_leaves(script):
    """C22: a second signal cancels the cleanup: the rest is reported, the app closes, and the cancellation goes on."""
    supervisor = Supervisor()
    told = []
    supervisor.add_hook(lambda event: told.append(event) if isinstance(event, DrainFinished) else None)
    drain_started = asyncio.Event()
    supervisor.add_hook(lambda event: drain_started.set() if isinstance(event, DrainStarted) else None)

    async def never():
        await asyncio.Event().wait()

    async def handler(request):
        defer(never)
        return web.Response()

    async def resource(_app):
        yield
        script.note("closed")

    app = application(supervisor, handler)
    app.cleanup_ctx.append(resource)
    client = Client(app)
    await client.__aenter__()
    await client.get("/")
    stopping = asyncio.get_running_loop().create_task(client.lifespan.shutdown())
    await drain_started.wait()
    stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping
    assert [[task.name.rpartition(".")[2] for task in event.report.abandoned] for event in told] == [["never"]]
    assert script.noted == ["closed"]


async def test_a_sub_application_may_be_set_up_as_well(script):
    """B22: a request has one context, that of the outermost application; one set up alone serves its own routes."""
    outer, inner = Supervisor(), Supervisor()
    seen = []

    async def handler(request):
        seen.append(deferred_from(request).belongs_to(outer._launcher))
        defer(script.work)
        return web.Response()

    for supervisor, expected in [(outer, True), (None, False)]:
        app, sub = web.Application(), web.Application()
        if supervisor is not None:
            setup(app, supervisor)
        assert setup(sub, inner) is inner
        sub.router.add_get("/", handler)
        app.add_subapp("/sub", sub)
        async with Client(app) as client:
            assert (await client.get("/sub/")).status == 200
        assert seen.pop() is expected
    assert script.noted == ["work"] * 2


async def test_a_request_of_an_app_that_was_not_set_up(script):
    """Without `setup` there is no context, and the error says what to call; one around it is found."""

    async def handler(request):
        with pytest.raises(NoCurrentContextError, match=r"setup\(app\)"):
            deferred_from(request)
        async with Supervisor() as supervisor:
            with supervisor.context() as ctx:
                assert deferred_from(request) is ctx
        return web.Response()

    app = web.Application()
    app.router.add_get("/", handler)
    async with Client(app) as client:
        assert (await client.get("/")).status == 200


async def test_a_response_to_nobody_we_know_passes(script):
    """A response prepared for a request that never came to the middleware is left alone."""
    supervisor = Supervisor()

    async def never(request):
        raise AssertionError

    async def refuse(request):
        return web.Response(status=417)

    app = application(supervisor, never)
    app.router.add_get("/expect", never, expect_handler=refuse)
    async with Client(app) as client:
        assert (await client.get("/expect", headers=((b"Expect", b"100-continue"),))).status == 417


def test_a_second_supervisor_is_refused():
    """An application with two supervisors would drain one of them: the second is refused, with the mend."""
    app = web.Application()
    first = setup(app)
    assert setup(app) is first
    with pytest.raises(ValueError, match="has another supervisor already"):
        setup(app, Supervisor())
