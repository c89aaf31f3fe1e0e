"""Work in memory that a drain cannot finish, stored instead of lost."""

import asyncio

import pytest

from deferred import Outcome, Retry, Supervisor, TaskEnqueued, TaskFailed, current_task

pytestmark = pytest.mark.looptime


def short(task):
    """Return the name of a task without the function that it was defined in."""
    return task.name.rpartition(".")[2]


async def test_registered_work_is_handed_over(desk):
    """With on_drain="enqueue" a registered task that is cancelled is stored, and run by whoever serves. C02."""
    one = desk(on_drain="enqueue", drain_timeout=1, serve=False)
    seen = []

    async def task(number: int):
        seen.append((number, current_task().idempotency_key))
        if len(seen) == 1:
            await asyncio.sleep(3600)

    one.supervisor.task("task")(task)
    async with one.supervisor:
        with one.supervisor.context() as ctx:
            handle = ctx.defer(task, 1)
        await asyncio.sleep(0.1)
        report = await one.supervisor.drain()
    assert not report.cancelled
    assert [(short(left), left.id) for left in report.enqueued] == [("task", handle.id)]
    assert [event.id for event in one.of(TaskEnqueued)] == [handle.id]
    assert handle.outcome is Outcome.CANCELLED_BY_DRAIN

    other = desk(engine=one.engine)
    other.supervisor.task("task")(task)
    async with other.supervisor:
        await other.settled()
    assert seen == [(1, None), (1, handle.id)]


async def test_what_waits_between_attempts_is_handed_over(desk):
    """A retry that would come after the deadline is the engine's; without that, it has failed. A54."""
    for on_drain, expected in (("enqueue", 1), ("abandon", 0)):
        made = desk(on_drain=on_drain, drain_timeout=5, serve=False)

        async def task():
            raise OSError

        made.supervisor.task("task")(task)
        async with made.supervisor:
            with made.supervisor.context() as ctx:
                ctx.with_options(retry=Retry(on=OSError, wait_initial=20, wait_max=20, wait_jitter=0)).defer(task)
            await asyncio.sleep(1)
            await made.supervisor.drain()
        assert (await made.engine.depth()).waiting == expected
        assert len(made.of(TaskFailed)) == 1 - expected


async def test_what_cannot_be_stored_is_named_as_before(desk, caplog):
    """Unregistered work, and arguments that are no data, are cancelled and named; the others are stored."""
    desk = desk(on_drain="enqueue", drain_timeout=1, serve=False)

    @desk.supervisor.task("task")
    async def task(anything):
        await asyncio.sleep(3600)

    async def other():
        await asyncio.sleep(3600)

    async with desk.supervisor:
        with desk.supervisor.context() as ctx:
            for argument in (1, object()):
                ctx.defer(task, argument)
            ctx.defer(other)
        report = await desk.supervisor.drain()
    assert [short(left) for left in report.enqueued] == ["task"]
    assert sorted(short(left) for left in report.cancelled) == ["other", "task"]
    assert "could not be handed over: task 'task' was not stored: a builtins.object is no data" in caplog.text
    assert "2 cancelled, 0 abandoned, 1 handed over" in caplog.text


@pytest.mark.parametrize("trouble", [OSError("down"), None])
async def test_a_store_that_is_away_keeps_no_drain(desk, caplog, trouble):
    """If handing over fails, or hangs, it is said, and the drain ends in its time. A28."""
    desk = desk(on_drain="enqueue", drain_timeout=1, cancel_grace=2, serve=False)

    @desk.supervisor.task("task")
    async def task():
        await asyncio.sleep(3600)

    async def enqueue(*_):
        if trouble is not None:
            raise trouble
        await asyncio.sleep(3600)

    desk.engine.enqueue = enqueue
    async with desk.supervisor:
        with desk.supervisor.context() as ctx:
            ctx.defer(task)
        report = await desk.supervisor.drain()
    assert [short(left) for left in report.cancelled] == ["task"]
    assert "could not be handed over, and are lost" in caplog.text


def test_it_needs_an_engine():
    """on_drain="enqueue" without an engine is refused, and so is any other word."""
    with pytest.raises(ValueError, match="needs an engine"):
        Supervisor(on_drain="enqueue")
    with pytest.raises(ValueError, match="on_drain"):
        Supervisor(on_drain="keep")
