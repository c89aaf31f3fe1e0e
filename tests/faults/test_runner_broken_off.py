"""Loops that broke off, loops of others, openings that fail: whoever opens the supervisor next is served."""

import asyncio
import gc
import logging
import threading

import pytest

from deferred import EventLoopError, Supervisor, SupervisorClosedError, TaskAbandoned, TaskState
from deferred.engines.memory import MemoryEngine
from deferred.exceptions import EngineError
from tests.faults.support import fine, forever, nothing_left, turns


async def drain_all(supervisor, ctx):
    """Drain the supervisor."""
    await supervisor.drain()


async def drain_one(supervisor, ctx):
    """Drain one unit of work."""
    await ctx.drained()


async def close(supervisor, ctx):
    """Close the supervisor."""
    await supervisor.close()


async def drain_from_a_task(supervisor, ctx):
    """Drain the supervisor by one of its own tasks."""
    with supervisor.context() as other:
        await other.defer(supervisor.drain)


def break_off(supervisor, *waits):
    """Begin these waits for work without an end, on a loop that is closed as they go on."""
    loop = asyncio.new_event_loop()
    waiting = []

    async def begin():
        supervisor.open()
        with supervisor.context() as ctx:
            ctx.defer(forever)
        waiting.extend(asyncio.ensure_future(wait(supervisor, ctx)) for wait in waits)
        await turns(5)

    loop.run_until_complete(begin())
    for task in asyncio.all_tasks(loop):
        task._log_destroy_pending = False
    loop.close()
    return waiting


@pytest.mark.parametrize(
    "waits",
    [
        [drain_all],
        [drain_one],
        [close],
        [drain_from_a_task],
        [drain_all, drain_all, drain_one, close],
    ],
    ids=lambda waits: "+".join(wait.__name__ for wait in waits),
)
@pytest.mark.parametrize("opens", [True, False])
def test_a_drain_that_broke_off(waits, opens):
    """A44: whoever takes over drains anew; what Python lets go of then touches nothing of the new work."""
    supervisor = Supervisor()
    waiting = break_off(supervisor, *waits)

    async def take_over():
        if opens:
            supervisor.open()
        with supervisor.context() as ctx:
            handle = ctx.defer(turns, 20)
        await turns(2)
        assert not supervisor.draining
        waiting.clear()
        gc.collect()
        assert handle.state is TaskState.RUNNING
        assert (await ctx.drained()).finished == 1
        with supervisor.context() as ctx:
            ctx.defer(fine)
        report = await supervisor.drain()
        assert (report.finished, report.abandoned) == (1, ())
        await supervisor.close()

    asyncio.run(take_over())
    assert nothing_left(supervisor)


def test_work_of_a_hook_that_is_told_of_what_a_loop_left():
    """A44, A24: a hook that defers as it is told of what was abandoned is taken at its word: the work runs."""
    ran = []

    async def alert(name):
        ran.append(name)

    def hook(event):
        with supervisor.context() as ctx:
            ctx.wait_until(alert(event.task.name))
            ctx.defer(alert, event.task.name)

    hook.events = (TaskAbandoned,)
    supervisor = Supervisor(hooks=[hook])
    break_off(supervisor, drain_one)

    async def take_over():
        async with supervisor:
            pass

    asyncio.run(take_over())
    assert ran == ["forever"] * 2
    assert nothing_left(supervisor)


@pytest.fixture
def elsewhere():
    """Another event loop, which runs in a thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield lambda coroutine: asyncio.run_coroutine_threadsafe(coroutine, loop).result(30)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


async def open_and_close(supervisor):
    """Serve nothing."""
    async with supervisor:
        pass


def test_an_opening_that_is_refused_changes_nothing(elsewhere):
    """A41, S11: a supervisor that is closed stays closed when its opening on a second loop is refused."""
    supervisor = Supervisor()
    elsewhere(open_and_close(supervisor))
    with pytest.raises(EventLoopError):
        asyncio.run(open_and_close(supervisor))

    async def register():
        with supervisor.context() as ctx, pytest.raises(SupervisorClosedError):
            ctx.defer(fine)

    elsewhere(register())
    assert supervisor.draining
    elsewhere(open_and_close(supervisor))


def test_a_mounted_app_that_was_closed_on_another_loop(caplog):
    """S11, B22: the app around it drains its own work in peace."""
    around, mounted = Supervisor(), Supervisor()
    around.adopt(mounted)
    asyncio.run(open_and_close(mounted))

    async def serve():
        async with around:
            with around.context() as ctx:
                return ctx.defer(turns, 9)

    assert asyncio.run(serve()).state is TaskState.SUCCEEDED
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


def test_a_mounted_app_that_works_on_another_loop(elsewhere, caplog):
    """S11, A41: it cannot be drained from here, which is told, and cuts nobody else's work."""
    around, mounted = Supervisor(), Supervisor()
    around.adopt(mounted)

    async def begin():
        mounted.open()
        with mounted.context() as ctx:
            return ctx.defer(fine)

    elsewhere(begin())

    async def serve():
        async with around:
            with around.context() as ctx:
                return ctx.defer(turns, 9)

    assert asyncio.run(serve()).state is TaskState.SUCCEEDED
    assert "a mounted app is not drained with the one around it" in caplog.text
    elsewhere(mounted.close())


def test_a_context_that_a_thread_opens_on_a_later_loop():
    """S6, A44: it knows the loop that its request runs on, though the supervisor is bound to an earlier one."""
    supervisor = Supervisor()

    async def request():
        def handle():
            with supervisor.context() as inner:
                return inner.defer(fine)

        with supervisor.context():
            return await (await asyncio.to_thread(handle))

    assert asyncio.run(request()) == "fine"
    assert asyncio.run(request()) == "fine"


@pytest.mark.parametrize("error", [EngineError, asyncio.CancelledError])
def test_an_opening_that_fails(error):
    """D32, S11: a supervisor whose store cannot be used is left closed: nobody is in its block to leave it."""

    class Unusable(MemoryEngine):
        async def setup(self):
            raise error("the schema is too new")

    supervisor = Supervisor(engine=Unusable(), watchdog=60)
    supervisor.task("fine")(fine)

    async def serve():
        with pytest.raises(error):
            await open_and_close(supervisor)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert supervisor.draining
        assert supervisor._launcher.watchdog is None

    asyncio.run(serve())
