"""Serverless hosts: Vercel's and Cloudflare's own ``wait_until``, by fakes of what they publish."""

import asyncio
import contextvars
import importlib.util
import inspect
import logging
import sys
import types

import pytest

from deferred import EventLoopError, Supervisor, current_context, defer, wait_until
from deferred.integrations.asgi import DeferredMiddleware
from tests.integrations.asgi_client import idle, turns
from tests.integrations.raw_app import RawApp, answer, finish
from tests.integrations.script import BoomError


class Collector:
    """What Vercel's runtime collects in one invocation, and waits for when the app call has returned."""

    def __init__(self):
        self.given = []

    def __call__(self, awaitable):
        """Take one; lazily, as Vercel does."""
        assert inspect.isawaitable(awaitable)
        self.given.append(awaitable)

    async def drain(self):
        """Wait for all; return what they gave."""
        return await asyncio.gather(*self.given, return_exceptions=True)


class Vercel:
    """The package `vercel`, with the callback of the current invocation in a context variable."""

    def __init__(self):
        self.callback = contextvars.ContextVar("vercel_wait_until", default=None)
        self.module = types.ModuleType("vercel.functions")
        self.module.wait_until = self.wait_until

    def wait_until(self, awaitable):
        """Hand it to the runtime, or do nothing outside of an invocation."""
        callback = self.callback.get()
        if callback is not None:
            callback(awaitable)

    async def invoke(self, app, scope=None, incoming=()):
        """Serve one request as the runtime does; return the exchange and the collector."""
        collector = Collector()
        self.callback.set(collector)
        exchange = await finish(app, scope, incoming)
        return exchange, collector


@pytest.fixture
def vercel(monkeypatch):
    """Run on Vercel, with its package installed."""
    monkeypatch.setenv("VERCEL", "1")
    host = Vercel()
    monkeypatch.setitem(sys.modules, "vercel.functions", host.module)
    return host


def app_of(script, act, supervisor=None, **options):
    """Return a wrapped app that acts and answers."""

    async def app(scope, receive, send):
        act()
        await answer(send, 200, b"now")

    return DeferredMiddleware(app, supervisor, **options)


async def test_one_keep_alive_for_a_request(vercel, script):
    """NX-01, NX-02, NX-07: however much is registered, nested too, the host is handed one awaitable, for all of it."""

    async def nested():
        script.note("outer")
        await asyncio.sleep(0)
        defer(script.work, "inner")

    def act():
        defer(nested)
        defer(script.work, "second")
        wait_until(script.work("at once"))

    exchange, collector = await vercel.invoke(app_of(script, act))
    assert exchange.status == 200
    assert len(collector.given) == 1
    assert await collector.drain() == [None]
    assert len(collector.given) == 1
    assert sorted(script.noted) == ["at once", "inner", "outer", "second"]
    assert script.turn_of("second") > exchange.last


async def test_the_app_call_does_not_wait(vercel, script):
    """With a host that waits the app call returns at once, before the work has begun."""
    gate = asyncio.Event()

    async def work():
        await gate.wait()
        script.note("work")

    exchange, collector = await vercel.invoke(app_of(script, lambda: defer(work)))
    assert exchange.returned is not None
    await turns(5)
    assert script.noted == []
    gate.set()
    await collector.drain()
    assert script.noted == ["work"]


async def test_an_unused_context_hands_over_nothing(vercel, script):
    """NX-05: a request that registers nothing costs the host nothing, nor does one whose work is done by its end."""

    async def streams(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        if scope["path"] == "/used":
            await wait_until(script.work())
        await send({"type": "http.response.body", "body": b"two"})

    app = DeferredMiddleware(streams)
    for path in ("/", "/used"):
        _, collector = await vercel.invoke(app, {"type": "http", "method": "GET", "path": path, "headers": []})
        assert collector.given == []
    assert script.noted == ["work"]


async def test_what_a_stream_registers_is_covered(vercel, script):
    """NX-05: work that the body of a response registers midway is in the one keep-alive."""
    script.act = lambda ctx: None
    script.midway = lambda ctx: ctx.defer(script.work)
    app = DeferredMiddleware(RawApp(script, bare=False))
    _, collector = await vercel.invoke(app, {"type": "http", "method": "GET", "path": "/stream", "headers": []})
    assert len(collector.given) == 1
    await collector.drain()
    assert script.noted == ["work"]


async def test_the_keep_alive_has_no_errors_in_it(vercel, script):
    """NX-04, NX-13: neither what the handler raised nor what a task raised is in it; the rest of the work runs."""
    events = []

    async def fails():
        raise BoomError

    async def app(scope, receive, send):
        defer(fails)
        defer(script.work)
        raise BoomError

    exchange, collector = await vercel.invoke(DeferredMiddleware(app, Supervisor(on_error=events.append)))
    assert type(exchange.error) is BoomError
    assert await collector.drain() == [None]
    assert script.noted == ["work"]
    assert [type(event.error) for event in events] == [BoomError]


@pytest.mark.parametrize("value", [{}, lambda: None, test_one_keep_alive_for_a_request, float("nan"), 1, False, None,
                                   object(), [], "x"])  # fmt: skip
async def test_only_awaitables_are_taken(vercel, script, value):
    """VJ-01, NX-22: what is no awaitable is refused at the call, by its type, and the host hears nothing of it."""
    caught = []

    def act():
        with pytest.raises(TypeError) as error:
            wait_until(value)
        caught.append(str(error.value))

    _, collector = await vercel.invoke(app_of(script, act))
    assert collector.given == []
    assert caught
    assert type(value).__name__ in caught[0] or getattr(value, "__name__", "?") in caught[0]


async def test_the_identical_awaitable_is_waited_for(vercel, script):
    """VJ-03: the very awaitable that was given is what the host's keep-alive waits for."""
    future = asyncio.get_running_loop().create_future()
    _, collector = await vercel.invoke(app_of(script, lambda: wait_until(future)))
    (keep_alive,) = collector.given
    await turns(5)
    assert not keep_alive.done()
    future.set_result(None)
    await collector.drain()
    assert keep_alive.done()


@pytest.mark.parametrize("absent", ["no package", "an old package", "a websocket"])
async def test_where_the_host_offers_nothing_the_app_call_stays_open(vercel, script, monkeypatch, absent):
    """VJ-02: without the package, without its function, and for websockets, the call itself waits for the work."""
    collector = Collector()
    scope, incoming = None, ()
    if absent == "no package":
        monkeypatch.setitem(sys.modules, "vercel.functions", None)
    elif absent == "an old package":
        del vercel.module.wait_until
    else:
        vercel.callback.set(collector)
        scope = {"type": "websocket", "path": "/socket"}
        incoming = [{"type": "websocket.connect"}, {"type": "websocket.receive", "text": "bye"}]
    script.act = lambda ctx: ctx.defer(script.work)
    scope = scope or {"type": "http", "method": "GET", "path": "/plain", "headers": []}
    await finish(DeferredMiddleware(RawApp(script, bare=False)), scope, incoming)
    assert script.noted == ["work"]
    assert collector.given == []


async def test_without_a_loop_registering_raises():
    """NX-16: with nothing to keep the work alive, registering raises at the call, and it never runs."""
    called = []

    def outside():
        with Supervisor().context() as ctx:
            with pytest.raises(EventLoopError):
                ctx.defer(called.append, 1)
            with pytest.raises(EventLoopError):
                ctx.wait_until(asyncio.sleep(0))

    await asyncio.to_thread(outside)
    await turns(5)
    assert called == []


async def test_a_host_of_ones_own(script):
    """Any host's ``wait_until`` may be given; it is called once for each request that has deferred something."""
    collector = Collector()
    supervisor = Supervisor()
    app = app_of(script, lambda: defer(script.work), supervisor, wait_until=collector)
    await finish(app)
    await finish(app)
    assert len(collector.given) == 2
    await collector.drain()
    assert script.noted == ["work"] * 2


async def test_a_host_that_fails_is_stood_in_for(script, caplog):
    """When the host's function raises, that is logged, and the app call waits for the work itself."""

    def broken(awaitable):
        raise RuntimeError("the invocation has ended")

    exchange = await finish(app_of(script, lambda: defer(script.work), wait_until=broken))
    assert exchange.error is None
    assert script.noted == ["work"]
    (record,) = caplog.records
    assert "wait_until failed" in record.message
    assert "the invocation has ended" in record.exc_text


@pytest.mark.parametrize("options", [{"lifetime": "request"}, {"wait_until": Collector()}])
async def test_no_lifespan_is_no_danger_there(script, caplog, options):
    """Where each request waits for its own work, nobody is warned that no lifespan was seen."""
    supervisor = Supervisor()
    await finish(app_of(script, lambda: defer(script.work), supervisor, **options))
    await idle(supervisor)
    assert script.noted == ["work"]
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_a_host_that_would_have_nothing_to_wait_for_is_refused(script):
    """``lifetime="request"`` ignored a host's ``wait_until``, and kept the app call open all the same."""
    with pytest.raises(ValueError, match="leaves nothing for the host to wait for"):
        app_of(script, str, lifetime="request", wait_until=Collector())


# -- Cloudflare -----------------------------------------------------------------------------------


class Proxy:
    """A proxy of a Python object, as JavaScript holds it."""

    def __init__(self, target):
        self.target = target
        self.destroyed = False

    def destroy(self):
        """Let go."""
        self.destroyed = True


class Cloudflare:
    """The modules `workers` and `pyodide.ffi`, and the adapter's way with a request: a lifespan for each."""

    def __init__(self):
        self.proxies = []
        self.workers = types.ModuleType("workers")
        self.workers.__spec__ = importlib.util.spec_from_loader("workers", None)
        self.workers.wait_until = self.proxies.append
        self.ffi = types.ModuleType("pyodide.ffi")
        self.ffi.create_proxy = Proxy

    async def fetch(self, app):
        """Serve one request whose answer is collected first, as the adapter does."""
        queue = asyncio.Queue()
        said = []
        heard = asyncio.Event()

        async def send(message):
            said.append(message["type"])
            heard.set()

        async def say(kind):
            heard.clear()
            queue.put_nowait({"type": kind})
            await heard.wait()

        lifespan = asyncio.get_running_loop().create_task(app({"type": "lifespan", "state": {}}, queue.get, send))
        await say("lifespan.startup")
        scope = {"type": "http", "method": "GET", "path": "/plain", "headers": [], "env": object()}
        exchange = await finish(app, scope)
        await say("lifespan.shutdown")
        return exchange, lifespan, said


@pytest.fixture
def cloudflare(monkeypatch):
    """Run in a Python Worker."""
    host = Cloudflare()
    monkeypatch.setattr(sys, "platform", "emscripten")
    monkeypatch.setitem(sys.modules, "workers", host.workers)
    monkeypatch.setitem(sys.modules, "pyodide.ffi", host.ffi)
    return host


async def test_a_worker_is_answered_before_its_work(cloudflare, script):
    """On Cloudflare neither the app call nor its lifespan holds up the answer; the app closes after the work."""
    gate = asyncio.Event()

    async def work():
        await gate.wait()
        script.note(f"open: {script.resource}")

    script.act = lambda ctx: ctx.defer(work)
    exchange, lifespan, said = await cloudflare.fetch(DeferredMiddleware(RawApp(script, bare=False)))
    assert exchange.status == 200
    assert said == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    (proxy,) = cloudflare.proxies
    assert (script.noted, script.resource, proxy.destroyed) == ([], True, False)
    gate.set()
    await proxy.target
    await lifespan
    assert script.noted == ["open: True"]
    assert (script.resource, proxy.destroyed) == (False, True)
    assert len(said) == 2


async def test_requests_of_a_worker_overlap(cloudflare, script):
    """The end of one request's lifespan neither drains nor closes the supervisor under another request."""
    app = DeferredMiddleware(RawApp(script, bare=False))
    first, second = asyncio.Event(), asyncio.Event()
    gates = iter([first, second])

    async def work(gate):
        await gate.wait()
        script.note("first" if gate is first else "second")

    script.act = lambda ctx: ctx.defer(work, next(gates))
    _, one, _ = await cloudflare.fetch(app)
    second.set()
    _, two, _ = await cloudflare.fetch(app)
    first.set()
    await asyncio.gather(*(proxy.target for proxy in cloudflare.proxies))
    await asyncio.gather(one, two)
    assert sorted(script.noted) == ["first", "second"]
    assert not app.supervisor.draining


async def test_an_idle_worker_closes_at_once(cloudflare, script):
    """A request without work has its lifespan passed through, and hands over nothing."""
    _, lifespan, said = await cloudflare.fetch(DeferredMiddleware(RawApp(script, bare=False)))
    await lifespan
    assert said == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert cloudflare.proxies == []
    assert script.resource is False


async def test_a_late_failure_of_the_shutdown_is_logged(cloudflare, script, caplog):
    """Where the shutdown was acknowledged already, a failure in it is logged instead of told."""

    async def app(scope, receive, send):
        if scope["type"] == "http":
            current_context().defer(asyncio.sleep, 0)
            await answer(send, 200, b"now")
            return
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.failed", "message": "the pool is stuck"})

    _, lifespan, said = await cloudflare.fetch(DeferredMiddleware(app))
    await lifespan
    assert said[-1] == "lifespan.shutdown.complete"
    assert ["the pool is stuck" in record.message for record in caplog.records] == [True]


async def test_an_old_worker_stays_open(cloudflare, script):
    """A runtime without an importable ``wait_until`` has the app call itself wait."""
    del cloudflare.workers.wait_until
    script.act = lambda ctx: ctx.defer(script.work)
    await cloudflare.fetch(DeferredMiddleware(RawApp(script, bare=False)))
    assert script.noted == ["work"]
