"""SN and DF: the supervisor's own drain, its deadline, and what it tells apart."""

import asyncio
import contextlib
import logging

import pytest

from deferred import DrainFinished, Outcome, Supervisor, SupervisorClosedError, TaskCancelled, TaskState
from tests.integrations.asgi_client import idle, turns

pytestmark = pytest.mark.looptime


async def fails():
    """Fail."""
    raise ValueError


async def forever():
    """Never end by itself."""
    await asyncio.Event().wait()


async def stubborn():
    """End by nothing at all."""
    while True:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()


async def test_closing_the_supervisor_awaits_its_own_set(script):
    """SN-01: what was registered outside any request is waited for when it closes."""
    async with Supervisor(out_of_scope="run") as supervisor:
        from deferred import defer, wait_until

        async def slow(what):
            await asyncio.sleep(3)
            script.note(what)

        defer(slow, "callable")
        wait_until(slow("awaitable"))
    assert sorted(script.noted) == ["awaitable", "callable"]
    assert supervisor.stats().succeeded == 2


async def test_registrations_of_requests_are_part_of_the_set(script):
    """SN-02: closing the supervisor waits for the work of every context."""
    async with Supervisor() as supervisor:
        for name in ("a", "b"):
            with supervisor.context(name) as ctx:
                ctx.wait_until(asyncio.sleep(3))
                ctx.defer(script.work, name)
    assert script.noted == ["a", "b"]
    assert supervisor.stats().pending == supervisor.stats().running == 0
    with pytest.raises(SupervisorClosedError), supervisor.context() as ctx:
        ctx.defer(script.work)


async def test_failures_are_logged_and_the_set_still_drains(script, caplog):
    """SN-03: a drain with failures in it ends as one without, and each failure has its line."""
    async with Supervisor() as supervisor:
        with supervisor.context() as ctx:
            ctx.defer(fails)
            ctx.defer(script.work)
            ctx.wait_until(fails())
        report = await supervisor.drain()
    assert (report.finished, report.failed) == (1, 2)
    assert len([record for record in caplog.records if "'fails' failed" in record.message]) == 2


@pytest.mark.parametrize("source", ["argument", "environment", "default", "call"])
async def test_the_deadline_of_a_drain_is_configurable_and_bounded(source, monkeypatch):
    """SN-05: from the argument, the environment, or the call; 20 seconds by default."""
    monkeypatch.delenv("DEFERRED_DRAIN_TIMEOUT", raising=False)
    if source == "environment":
        monkeypatch.setenv("DEFERRED_DRAIN_TIMEOUT", "7")
    supervisor = Supervisor(drain_timeout=7) if source == "argument" else Supervisor()
    loop = asyncio.get_running_loop()
    async with supervisor:
        with supervisor.context() as ctx:
            ctx.defer(forever)
        began = loop.time()
        report = await (supervisor.drain(7) if source == "call" else supervisor.drain())
    assert loop.time() - began == pytest.approx(20 if source == "default" else 7)
    assert [task.name for task in report.cancelled] == ["forever"]


async def test_work_that_ignores_its_cancellation_is_abandoned(caplog):
    """SN-05: after the grace period the drain ends without it, and its report names it with all there is to know."""
    loop = asyncio.get_running_loop()
    async with Supervisor(drain_timeout=5, cancel_grace=2) as supervisor:
        with supervisor.context("POST /register") as ctx:
            handle = ctx.defer(stubborn)
        began = loop.time()
        report = await supervisor.drain()
    assert loop.time() - began == pytest.approx(7)
    (left,) = report.abandoned
    assert (left.id, left.name, left.attempt, left.label) == (handle.id, "stubborn", 1, "POST /register")
    assert left.age == pytest.approx(7)
    assert "test_shutdown.py:" in left.site
    assert handle.state is TaskState.ABANDONED
    assert any("'stubborn'" in record.message for record in caplog.records if record.levelno >= logging.WARNING)


async def test_a_second_signal_ends_the_drain_and_what_is_left_is_recorded(script):
    """SN-06: where the host cancels the drain, it abandons, reports, and lets the cancellation through."""
    told = []
    async with Supervisor(hooks=[told.append]) as supervisor:
        with supervisor.context() as ctx:
            ctx.defer(stubborn)
        drain = asyncio.create_task(supervisor.drain())
        await turns(5)
        drain.cancel()
        with pytest.raises(asyncio.CancelledError):
            await drain
        (finished,) = [event for event in told if isinstance(event, DrainFinished)]
        assert [task.name for task in finished.report.abandoned] == ["stubborn"]


async def test_a_callable_due_after_the_deadline_is_reported(watched):
    """DF-03: one that never got to start is named in the drain's report, not silently dropped."""
    with watched.context("GET /") as ctx:
        ctx.defer(fill_the_grace_period, ctx)
    began = asyncio.get_running_loop().time()
    report = await watched.drain(timeout=1)
    assert asyncio.get_running_loop().time() - began == pytest.approx(1), "nobody waits for what never starts"
    late = next(task for task in report.cancelled if task.name == "forever")
    assert late.attempt == 0
    assert watched.stats().pending == watched.stats().running == 0


async def fill_the_grace_period(ctx):
    """Register more work when cancelled at the deadline."""
    try:
        await forever()
    except asyncio.CancelledError:
        ctx.defer(forever)
        raise


async def test_callables_that_wait_for_a_slot_at_the_deadline_are_reported():
    """DF-03: so are those that were still waiting for their turn."""
    async with Supervisor(max_running=1) as supervisor:
        with supervisor.context() as ctx:
            handles = [ctx.defer(forever) for _ in range(3)]
        report = await supervisor.drain(timeout=1)
    assert sorted(task.id for task in report.cancelled) == sorted(handle.id for handle in handles)
    assert [task.attempt for task in report.cancelled].count(0) == 2
    assert [handle.outcome for handle in handles[1:]] == [Outcome.CANCELLED_AT_DEADLINE] * 2


async def test_a_callable_of_a_late_awaitable_is_covered_by_the_drain(watched, script, gate):
    """DF-04: registered by an awaitable that still runs, when all callables had been done and the drain had begun."""

    async def awaitable():
        await gate.wait()
        ctx.defer(script.work, "late")

    with watched.context() as ctx:
        ctx.defer(script.work, "early")
        ctx.wait_until(awaitable())
    await turns(10)
    assert script.noted == ["early"]
    asyncio.get_running_loop().call_later(2, gate.set)
    report = await watched.drain()
    assert script.noted == ["early", "late"]
    assert report.finished == 2


async def test_ways_of_being_cancelled_are_told_apart(watched, told, errors):
    """DF-08: by the drain, by itself, by its handle, and failed: four outcomes, and one error for the hooks."""

    async def cancels_itself():
        asyncio.current_task().cancel()
        await asyncio.sleep(0)

    with watched.context() as ctx:
        by_itself = ctx.defer(cancels_itself)
        by_drain = ctx.defer(forever)
        by_handle = ctx.defer(forever)
        failed = ctx.defer(fails)
    await turns(5)
    by_handle.cancel()
    await watched.drain(timeout=1)
    assert by_itself.outcome is Outcome.CANCELLED_BY_ITSELF
    assert by_drain.outcome is Outcome.CANCELLED_BY_DRAIN
    assert by_handle.outcome is Outcome.CANCELLED_BY_HANDLE
    assert failed.outcome is Outcome.FAILED
    assert [event.task for event in errors] == [failed]
    assert {event.task.id for event in told.of(TaskCancelled)} == {by_itself.id, by_drain.id, by_handle.id}


async def test_a_drain_that_is_under_way_is_joined(watched, told):
    """SN-06: a second call waits for the first and gets its report; there is one drain."""
    with watched.context() as ctx:
        ctx.wait_until(asyncio.sleep(3))
    first, second = await asyncio.gather(watched.drain(), watched.drain())
    assert first is second or first == second
    assert len(told.of(DrainFinished)) == 1
    await idle(watched)
