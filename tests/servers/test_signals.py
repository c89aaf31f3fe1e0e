"""What `Served` does to the signal handlers of a process."""

import asyncio
import multiprocessing
import os
import signal
import sys
import threading

import pytest

from deferred import Supervisor
from deferred.integrations._servers import Served
from deferred.integrations.asgi import DeferredMiddleware
from tests.integrations.asgi_client import Client
from tests.integrations.raw_app import answer


@pytest.fixture
def handled():
    """Handle SIGTERM and SIGINT as a server does, for the time of a test; give what has come."""
    came = []

    def handler(signum, frame):
        came.append(signum)

    before = {signum: signal.signal(signum, handler) for signum in (signal.SIGTERM, signal.SIGINT)}
    yield came
    for signum, old in before.items():
        assert signal.getsignal(signum) is handler, "put back"
        signal.signal(signum, old)


async def until(condition):
    """Let the loop turn until a condition holds."""
    while not condition():
        await asyncio.sleep(0)


async def test_the_handler_before_is_called_and_put_back(handled):
    """C24: a signal is noted and passed on to the handler that was there, which is there again afterwards."""
    supervisor = Supervisor()
    async with Served(supervisor):
        assert not supervisor.draining
        os.kill(os.getpid(), signal.SIGTERM)
        await until(lambda: supervisor.draining)
        assert handled == [signal.SIGTERM]


async def test_handlers_of_the_event_loop_are_called_too(handled):
    """C24: what listens by `loop.add_signal_handler` is told as before."""
    loop, supervisor, told = asyncio.get_running_loop(), Supervisor(), asyncio.Event()
    before = signal.getsignal(signal.SIGTERM)
    loop.add_signal_handler(signal.SIGTERM, told.set)
    async with Served(supervisor):
        os.kill(os.getpid(), signal.SIGTERM)
        await told.wait()
        await until(lambda: supervisor.draining)
    loop.remove_signal_handler(signal.SIGTERM)
    signal.signal(signal.SIGTERM, before)


async def test_a_handler_installed_later_stays(handled):
    """C24: what somebody else has installed meanwhile is not replaced."""
    before = signal.getsignal(signal.SIGTERM)

    def later(signum, frame):
        raise AssertionError

    async with Served(Supervisor()):
        signal.signal(signal.SIGTERM, later)
    assert signal.getsignal(signal.SIGTERM) is later
    signal.signal(signal.SIGTERM, before)


async def test_a_signal_that_nobody_handles_is_left_alone(handled):
    """C24: a process that dies of SIGTERM, or that ignores SIGINT, goes on doing so."""
    before = signal.getsignal(signal.SIGTERM)
    for nobody in (signal.SIG_DFL, signal.SIG_IGN):
        signal.signal(signal.SIGTERM, nobody)
        async with Served(Supervisor()):
            assert signal.getsignal(signal.SIGTERM) is nobody
    signal.signal(signal.SIGTERM, before)


async def test_off_the_main_thread_no_handler_is_installed(handled):
    """C24: a server in another thread, as test clients run it, is drained and told of no signal."""
    before = signal.getsignal(signal.SIGTERM)
    found = []

    async def serve():
        async with Served(Supervisor()):
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    await asyncio.to_thread(thread.join)
    assert found == [before]


async def test_a_second_signal_cuts_the_drain_and_a_third_the_grace(handled, caplog):
    """C04, C24: what ends at a cancellation is cancelled by the second, what does not is abandoned by the third."""
    supervisor = Supervisor(drain_timeout=1000, cancel_grace=1000)
    cancelled = asyncio.Event()

    async def endless():
        await asyncio.get_running_loop().create_future()

    async def stubborn():
        while True:
            try:
                await asyncio.get_running_loop().create_future()
            except asyncio.CancelledError:
                cancelled.set()

    async with Served(supervisor) as served:
        with supervisor.context() as ctx:
            ctx.with_options(name="endless").defer(endless)
            ctx.with_options(name="stubborn").defer(stubborn)
        os.kill(os.getpid(), signal.SIGTERM)
        await until(lambda: supervisor.draining)
        closing = asyncio.create_task(served.close())
        await until(lambda: supervisor._launcher.leading)
        os.kill(os.getpid(), signal.SIGTERM)
        await cancelled.wait()
        assert not closing.done()
        os.kill(os.getpid(), signal.SIGINT)
        await closing
    stats = supervisor.stats()
    assert (stats.cancelled, stats.abandoned) == (1, 1)
    assert "SIGTERM cuts the drain, which still waited for 2 unfinished task(s): 'endless', 'stubborn'" in caplog.text
    assert "SIGINT cuts the drain, which still waited for 1 unfinished task(s): 'stubborn'" in caplog.text
    assert handled == [signal.SIGTERM, signal.SIGTERM, signal.SIGINT]


async def test_the_drain_of_a_mounted_app_is_cut_too(handled):
    """C04: a supervisor that is drained with another one's is cut with it."""
    outer, inner = (Supervisor(drain_timeout=1000) for _ in range(2))
    outer.adopt(inner)

    async def endless():
        await asyncio.get_running_loop().create_future()

    async with Served(outer) as served:
        with inner.context() as ctx:
            ctx.defer(endless)
        os.kill(os.getpid(), signal.SIGINT)
        closing = asyncio.create_task(served.close())
        await until(lambda: inner._launcher.leading and outer.draining)
        os.kill(os.getpid(), signal.SIGINT)
        await closing
    assert inner.stats().cancelled == 1


@pytest.mark.looptime
async def test_a_shutdown_that_does_not_come_is_told(handled, caplog):
    """C10: when the server has not begun its shutdown within the drain's time, what may be lost is logged by name."""
    supervisor = Supervisor(drain_timeout=20)
    async with Served(supervisor):
        with supervisor.context() as ctx:
            task = ctx.defer(asyncio.get_running_loop().create_future)
        signal.raise_signal(signal.SIGTERM)
        await asyncio.sleep(19)
        assert "has not begun" not in caplog.text
        await asyncio.sleep(2)
        assert "SIGTERM came 20 s ago, and the server has not begun its shutdown" in caplog.text
        assert f"it loses 1 unfinished task(s): {task.name!r}" in caplog.text
        task.cancel()


async def test_opened_again_it_is_not_draining(handled):
    """C26: a supervisor that was told to end is ready again in its next life."""
    supervisor = Supervisor()
    async with Served(supervisor):
        signal.raise_signal(signal.SIGTERM)
        await until(lambda: supervisor.draining)
    async with Served(supervisor):
        assert not supervisor.draining


async def test_mounted_twice_two_handlers_cut_one_drain(handled, caplog):
    """C04, B21: an app wrapped twice hears a signal twice, and each of its handlers is put back."""
    supervisor = Supervisor(drain_timeout=1000)

    async def endless():
        await asyncio.get_running_loop().create_future()

    async def app(scope, receive, send):
        if scope["type"] == "http":
            with supervisor.context() as ctx:
                ctx.defer(endless)
            await answer(send, 200, b"")
            return
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})

    client = Client(DeferredMiddleware(DeferredMiddleware(app, supervisor), supervisor))
    async with client:
        await client.get("/")
        signal.raise_signal(signal.SIGTERM)
        await until(lambda: supervisor.draining)

        async def second():
            await until(lambda: supervisor._launcher.leading)
            signal.raise_signal(signal.SIGTERM)

        cutting = asyncio.create_task(second())
    await cutting
    assert supervisor.stats().cancelled == 1
    assert handled == [signal.SIGTERM] * 2


@pytest.fixture
async def told(handled, monkeypatch):
    """Listen on the loop as a worker process of granian does; give what it was told."""
    monkeypatch.setitem(sys.modules, "granian.server.mp", asyncio)
    monkeypatch.setattr(multiprocessing, "parent_process", object)
    came, loop = [], asyncio.get_running_loop()
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)}
    for signum in before:
        loop.add_signal_handler(signum, came.append, signum)
    yield came
    for signum, old in before.items():
        loop.remove_signal_handler(signum)
        signal.signal(signum, old)


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
async def test_granian_is_told_once(told, first):
    """C06: a worker of it that is told again at once may block for ever, and what its parent repeats is such."""
    supervisor = Supervisor(drain_timeout=1000)

    async def endless():
        await asyncio.get_running_loop().create_future()

    async with Served(supervisor) as served:
        with supervisor.context() as ctx:
            ctx.defer(endless)
        for signum in (first, signal.SIGTERM, signal.SIGTERM):
            signal.raise_signal(signum)
            await until(lambda: told and supervisor.draining)
        closing = asyncio.create_task(served.close())
        await until(lambda: supervisor._launcher.leading)
        signal.raise_signal(signal.SIGTERM)
        told_last = asyncio.Event()
        asyncio.get_running_loop().call_later(0, told_last.set)
        await told_last.wait()  # a whole turn of the loop, which looks for signals
        assert told == [signal.SIGINT]
        assert not closing.done(), "nothing has cut the drain"
        signal.raise_signal(signal.SIGINT)  # Ctrl-C again
        await closing
    assert supervisor.stats().cancelled == 1


@pytest.mark.looptime
async def test_granian_is_told_of_a_sigterm_that_is_logged_as_one(told, caplog):
    """C10: what is logged names the signal that has come, not the one that granian is told by."""
    supervisor = Supervisor(drain_timeout=20)
    async with Served(supervisor):
        signal.raise_signal(signal.SIGTERM)
        await asyncio.sleep(21)
        assert told == [signal.SIGINT]
        assert "SIGTERM came 20 s ago" in caplog.text
        assert "SIGINT" not in caplog.text
