"""What becomes of a delivery: done, retried by our policy, handed back, buried."""

import asyncio
import contextlib
import itertools

import pytest

from deferred import (
    ContextSettled,
    EngineError,
    NonRetryableError,
    Outcome,
    Retry,
    TaskAbandoned,
    TaskCancelled,
    TaskDead,
    TaskFailed,
    TaskRejectedError,
    TaskRetrying,
    TaskState,
    current_task,
)
from deferred._delivery import CRASHES
from deferred.engines import Dead, Delivery, RetryIn

pytestmark = pytest.mark.looptime


async def test_our_policy_computes_every_delay(desk):
    """Failures are retried after the policy's own delays, with the same key; attempts are counted. QU-04 QU-11 D05."""
    desk = desk()
    loop = asyncio.get_running_loop()
    seen = []

    @desk.supervisor.task(
        "task", retry=Retry(on=OSError, attempts=4, wait_initial=10, wait_max=1000, wait_jitter=0, timeout=None)
    )
    async def task():
        seen.append((loop.time(), current_task().attempts, current_task().idempotency_key))
        if len(seen) < 4:
            raise OSError(len(seen))

    async with desk.supervisor:
        job = await desk.enqueue(task)
        await desk.settled()
    times, attempts, keys = zip(*seen, strict=True)
    assert attempts == (1, 2, 3, 4)
    assert set(keys) == {job}
    assert [round(later - earlier) for earlier, later in itertools.pairwise(times)] == [10, 20, 40]
    assert [(event.attempt, event.delay) for event in desk.of(TaskRetrying)] == [(1, 10), (2, 20), (3, 40)]
    assert not desk.of(TaskFailed)
    stats = desk.supervisor.stats()
    assert (stats.succeeded, stats.failed, stats.pending, stats.running) == (1, 0, 0, 0)


async def test_one_bad_job_repeats_no_good_one(desk):
    """Of jobs that run side by side only the one that failed is delivered again. QU-06 QU-23."""
    desk = desk()
    runs = []

    @desk.supervisor.task("task", retry=Retry(on=OSError, attempts=3, wait_jitter=0, timeout=None))
    async def task(number: int):
        runs.append(number)
        if number == 2:
            raise OSError

    async with desk.supervisor:
        for number in range(5):
            await desk.enqueue(task, number)
        await desk.settled()
    assert sorted(runs) == [0, 1, 2, 2, 2, 3, 4]


async def test_the_last_failure_makes_a_dead_letter(desk):
    """When the policy is exhausted, on_error and on_dead are told once, and the letter is kept. QU-07 QU-08 A53."""
    failures, dead = [], []
    desk = desk(on_error=failures.append, on_dead=dead.append)

    @desk.supervisor.task("task", retry=Retry(on=OSError, attempts=3, timeout=None))
    async def task(to: str):
        raise OSError("mailbox full")

    async with desk.supervisor:
        job = await desk.enqueue(task, "ada")
        await desk.settled()
        (letter,) = await desk.engine.dead()
    (failure,), (event,) = failures, dead
    assert (failure.outcome, failure.attempt, str(failure.error)) == (Outcome.EXHAUSTED_ATTEMPTS, 3, "mailbox full")
    assert (event.id, event.name, event.reason, event.attempts) == (job, "task", "exhausted_attempts", 3)
    assert letter.payload == b'{"to":"ada"}'
    assert letter.error.startswith("OSError: mailbox full\n\nTraceback")
    assert "ada" not in letter.error  # no value of any variable. G12
    assert desk.of(TaskDead) == dead


async def test_a_hook_that_stores_again_what_dies(desk):
    """Work that a hook stores for a dead letter may die too, three times in a row and no more. QU-10."""
    refused = []

    async def again(event):
        try:
            with desk.supervisor.context() as ctx:
                await ctx.enqueue(task)
        except TaskRejectedError as error:
            refused.append(str(error))

    desk = desk(on_dead=again)

    @desk.supervisor.task("task")
    async def task():
        raise OSError

    async with desk.supervisor:
        await desk.enqueue(task)
        await desk.settled()
        while not refused:
            await asyncio.sleep(1)
        assert len(await desk.engine.dead()) == 4
    (message,) = refused
    assert "a hook of dead letters stores work that dies in its turn, 4 times in a row" in message


async def test_what_a_plain_function_returns_is_awaited(desk):
    """A plain function that calls an asynchronous one and forgets to await it loses nothing. QU-22."""
    desk = desk()
    sent = []

    async def send(to):
        await asyncio.sleep(1)
        sent.append(to)

    @desk.supervisor.task("task")
    def task(to: str):
        return send(to)

    async with desk.supervisor:
        await desk.enqueue(task, "ada")
        await desk.settled()
    assert sent == ["ada"]


@pytest.mark.parametrize(
    ("raised", "reason"),
    [
        (ValueError("x"), "failed"),
        (NonRetryableError("x"), "non_retryable"),
        (SystemExit(1), "failed"),
        (asyncio.CancelledError(), "cancelled_by_itself"),
    ],
)
async def test_what_the_policy_does_not_name_is_dead_at_once(desk, raised, reason):
    """One attempt is all there is for an error that the policy does not retry. A02 A56."""
    desk = desk()

    @desk.supervisor.task("task", retry=Retry(on=OSError))
    async def task():
        raise raised

    async with desk.supervisor:
        await desk.enqueue(task)
        await desk.settled()
        (letter,) = await desk.engine.dead()
    assert (letter.reason, letter.number) == (reason, 1)


async def test_without_a_policy_a_failure_is_final(desk):
    """No retry policy, no retry: as in memory. A supervisor's default is taken over."""
    desk = desk(retry=Retry(on=Exception, attempts=2, timeout=None))
    runs = []

    @desk.supervisor.task("default")
    async def default():
        runs.append("default")
        raise OSError

    @desk.supervisor.task("none", retry=None)
    async def none():
        runs.append("none")
        raise OSError

    async with desk.supervisor:
        await desk.enqueue(default)
        await desk.enqueue(none)
        await desk.settled()
    assert sorted(runs) == ["default", "default", "none"]


async def test_an_attempt_has_its_timeout(desk):
    """A timeout ends the attempt, and the policy decides what follows."""
    desk = desk()
    attempts = []

    @desk.supervisor.task("task", timeout=5, retry=Retry(on=OSError, attempts=2, timeout=None))
    async def task():
        attempts.append(current_task().timeout)
        await asyncio.sleep(3600)

    async with desk.supervisor:
        await desk.enqueue(task)
        await desk.settled()
        (letter,) = await desk.engine.dead()
    assert attempts == [5, 5]
    assert letter.reason == "exhausted_attempts"


async def test_the_policys_total_time_spans_deliveries(desk, monkeypatch):
    """No retry begins after the policy's total time, which runs from the first attempt on; a late one is made."""
    desk = desk()
    loop = asyncio.get_running_loop()
    monkeypatch.setattr("time.time", lambda: 1e9 + loop.time())  # the clock that processes share
    attempts = []

    policy = Retry(on=OSError, attempts=None, wait_initial=40, wait_max=40, wait_jitter=0, timeout=100)

    @desk.supervisor.task("task", retry=policy)
    async def task():
        attempts.append(loop.time())
        raise OSError

    async with desk.supervisor:
        await desk.enqueue(task)
        await desk.settled()
        (letter,) = await desk.engine.dead()
    assert len(attempts) == 3
    assert letter.reason == "exhausted_deadline"


async def test_a_job_that_kills_its_workers_is_buried(desk):
    """A job that has taken down four processes is a dead letter; its retries are no crashes. D25."""
    desk = desk(serve=False)

    @desk.supervisor.task("task", retry=Retry(on=OSError, attempts=100, timeout=None))
    async def task():
        raise OSError

    deliver = desk.supervisor._durable._deliver
    async with desk.supervisor:
        note, number = "", 1
        for _ in range(5):  # five failures that were told, each by a live process
            verdict = await deliver(Delivery(id="1", name="task", payload=b"{}", number=number, note=note))
            assert isinstance(verdict, RetryIn)
            note, number = verdict.note, number + 1
        for _ in range(CRASHES - 1):
            number += 1  # a delivery that left nothing behind
            verdict = await deliver(Delivery(id="1", name="task", payload=b"{}", number=number, note=note))
            assert isinstance(verdict, RetryIn)
        verdict = await deliver(Delivery(id="1", name="task", payload=b"{}", number=CRASHES + 1, note=""))
    assert verdict == Dead("crash_loop", "4 processes ended while they ran it")
    assert desk.of(TaskDead)[0].reason == "crash_loop"


async def test_a_crash_counts_as_an_attempt(desk):
    """The attempt that ended with its process is one of those that the policy allows. D04."""
    desk = desk(serve=False)
    attempts = []

    @desk.supervisor.task("task", retry=Retry(on=OSError, attempts=3, timeout=None))
    async def task():
        attempts.append(current_task().attempts)
        raise OSError

    async with desk.supervisor:
        deliver = desk.supervisor._durable._deliver
        verdict = await deliver(Delivery(id="1", name="task", payload=b"{}", number=3, note=""))
    assert attempts == [3]
    assert verdict.reason == "exhausted_attempts"


async def test_an_unknown_name_waits_for_a_deployment(desk, monkeypatch):
    """A name that nobody knows is asked again for an hour, uncounted, and then buried. C17."""
    desk = desk(serve=False)
    now = 1000.0
    monkeypatch.setattr("time.time", lambda: now)
    deliver = desk.supervisor._durable._deliver
    async with desk.supervisor:
        first = await deliver(Delivery(id="1", name="task", payload=b"{}"))
        assert 5 <= first.delay <= 10
        now += 3599
        second = await deliver(Delivery(id="1", name="task", payload=b"{}", number=2, note=first.note))
        assert isinstance(second, RetryIn)

        @desk.supervisor.task("other")
        async def other(): ...

        now += 2
        buried = await deliver(Delivery(id="1", name="task", payload=b"{}", number=3, note=second.note))
        assert buried == Dead("unknown_task", "no task of that name is registered; the last worker asked knows other")

        @desk.supervisor.task("task")
        async def task():
            attempts.append(current_task().attempts)

        attempts = []
        await deliver(Delivery(id="1", name="task", payload=b"{}", number=3, note=second.note))
    assert attempts == [1]


async def test_what_newer_code_stored_waits_for_it(desk):
    """Arguments of a newer version are left to newer workers. D28 C17."""
    desk = desk(serve=False)

    @desk.supervisor.task("task")
    async def task(): ...

    async with desk.supervisor:
        headers = {"deferred-version": "2"}
        verdict = await desk.supervisor._durable._deliver(Delivery(id="1", name="task", payload=b"?", headers=headers))
    assert isinstance(verdict, RetryIn)


async def test_a_payload_that_does_not_fit_is_buried_unread(desk):
    """What cannot be decoded is a dead letter at its first delivery, and runs nothing. D26."""
    desk = desk(serve=False)
    ran = []

    @desk.supervisor.task("task")
    async def task(number: int):
        ran.append(number)

    async with desk.supervisor:
        for payload in (b"\xff", b'{"number":"x"}'):
            verdict = await desk.supervisor._durable._deliver(Delivery(id="1", name="task", payload=payload))
            assert verdict.reason == "payload"
    assert not ran


async def test_a_note_that_cannot_be_read_is_as_good_as_none(desk):
    """A broken note delays nothing."""
    desk = desk(serve=False)

    @desk.supervisor.task("task")
    async def task(): ...

    async with desk.supervisor:
        for note in ("?", "[]"):
            await desk.supervisor._durable._deliver(Delivery(id="1", name="task", payload=b"{}", note=note))
    assert desk.supervisor.stats().succeeded == 2


async def test_an_error_that_cannot_be_shown_is_buried_by_its_name(desk):
    """An exception whose text raises is recorded with its type. A09."""
    desk = desk()

    class Shy(Exception):
        def __str__(self):
            raise RuntimeError

    @desk.supervisor.task("task")
    async def task():
        raise Shy

    async with desk.supervisor:
        await desk.enqueue(task)
        await desk.settled()
        (letter,) = await desk.engine.dead()
    assert letter.error == "Shy"


async def test_middleware_and_scope_are_around_every_delivery(desk):
    """Middleware and task_scope surround durable attempts as they do all others."""
    order = []

    @contextlib.asynccontextmanager
    async def scope():
        order.append("enter")
        yield "session"
        order.append("exit")

    async def middleware(task, call_next):
        order.append(task.name)
        return await call_next()

    desk = desk(middleware=[middleware], task_scope=scope)

    @desk.supervisor.task("task")
    async def task():
        order.append(current_task().scope)

    async with desk.supervisor:
        await desk.enqueue(task)
        await desk.settled()
    assert order == ["task", "enter", "session", "exit"]


async def test_a_durable_task_may_defer(desk):
    """What a durable task defers in memory runs after it, in its context. A17."""
    desk = desk()
    order = []

    @desk.supervisor.task("task")
    async def task():
        from deferred import defer

        defer(child)
        order.append("task")

    async def child():
        order.append("child")

    async with desk.supervisor:
        await desk.enqueue(task)
        await desk.settled()
    assert order == ["task", "child"]


async def test_a_drain_takes_nothing_more_and_finishes_what_runs(desk):
    """At shutdown what runs is finished, what waits stays stored. C01."""
    desk = desk(max_serving=1, drain_timeout=30)
    order = []
    started = asyncio.Event()

    @desk.supervisor.task("task")
    async def task(number: int):
        started.set()
        await asyncio.sleep(10)
        order.append(number)

    async with desk.supervisor:
        await desk.enqueue(task, 1)
        await desk.enqueue(task, 2)
        await started.wait()
    assert order == [1]
    assert await desk.engine.depth() == type(await desk.engine.depth())(waiting=1)


async def test_a_drain_hands_back_what_it_cannot_finish(desk):
    """What the deadline cancels is delivered again, and has had no attempt. D12."""
    desk = desk(drain_timeout=5)
    attempts = []
    started = asyncio.Event()

    @desk.supervisor.task("task", retry=Retry(on=OSError, attempts=1))
    async def task():
        attempts.append(current_task().attempts)
        started.set()
        if len(attempts) == 1:
            await asyncio.sleep(3600)

    async with desk.supervisor:
        await desk.enqueue(task)
        await started.wait()
        report = await desk.supervisor.drain()
        assert [task.name for task in report.cancelled] == ["task"]
        await desk.settled()  # the drain is over, and it serves again
    assert attempts == [1, 1]
    assert [event.outcome for event in desk.of(TaskCancelled)] == [Outcome.CANCELLED_BY_DRAIN]


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("stored", [True, False])
async def test_a_drain_by_a_task_ends_no_serving(desk, stored, times):
    """Once a task, or a job, has drained the supervisor it serves again, as after any drain. S11."""
    desk = desk()
    drained, ran = asyncio.Event(), asyncio.Event()

    @desk.supervisor.task("drain")
    async def drain():
        for _ in range(times):
            await desk.supervisor.drain()
        drained.set()

    @desk.supervisor.task("task")
    async def task():
        ran.set()

    async with desk.supervisor:
        if stored:
            await desk.enqueue(drain)
        else:
            with desk.supervisor.context() as ctx:
                ctx.defer(drain)
        await drained.wait()
        await desk.enqueue(task)
        async with asyncio.timeout(60):
            await ran.wait()


async def test_a_task_that_does_not_end_is_left_alone_for_a_while(desk):
    """One that ignores its cancellation is delivered again later, when its process has ended. A12."""
    desk = desk(drain_timeout=1, cancel_grace=1)
    started, release = asyncio.Event(), asyncio.Event()

    @desk.supervisor.task("task")
    async def task():
        started.set()
        while not release.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await release.wait()

    async with desk.supervisor:
        await desk.enqueue(task)
        await started.wait()
        await desk.supervisor.drain()
        assert len(desk.of(TaskAbandoned)) == 1
        assert (await desk.engine.depth()).waiting == 1
        release.set()


async def test_a_task_cancelled_by_its_handle_is_dead(desk):
    """An operator's cancellation is recorded and not undone by a retry. D38."""
    desk = desk()
    handles = []

    @desk.supervisor.task("task", retry=Retry(on=Exception))
    async def task():
        handles.append(current_task())
        await asyncio.sleep(3600)

    async with desk.supervisor:
        await desk.enqueue(task)
        while not handles:
            await asyncio.sleep(0.01)
        assert handles[0].cancel()
        await desk.settled()
        (letter,) = await desk.engine.dead()
    assert letter.reason == "cancelled_by_handle"
    assert handles[0].state is TaskState.CANCELLED


@pytest.mark.parametrize("stubborn", [False, True])
async def test_a_lost_lease_is_no_failure(desk, stubborn):
    """An engine that has lost a job has its task cancelled, with that outcome; there is no verdict. D38 D41."""
    desk = desk(retry=Retry(on=Exception))
    ended, handles = asyncio.Event(), []

    @desk.supervisor.task("task")
    async def task():
        handles.append(current_task())
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            await asyncio.sleep(1)
            ended.set()
            if not stubborn:
                raise

    async def serve(handle, *, stop, **_):
        running = asyncio.create_task(handle(Delivery(id="1", name="task", payload=b"{}")))
        await asyncio.sleep(5)
        running.cancel()
        await asyncio.wait({running})
        assert running.cancelled()
        assert ended.is_set()
        await stop.wait()

    desk.engine.serve = serve
    async with desk.supervisor:
        await asyncio.sleep(10)
        assert handles[0].done()
        assert desk.supervisor.stats().running == 0
    assert not [*desk.of(TaskFailed), *desk.of(TaskDead), *desk.of(TaskRetrying)]
    if stubborn:
        assert handles[0].state is TaskState.SUCCEEDED
    else:
        (event,) = desk.of(TaskCancelled)
        assert event.outcome is handles[0].outcome is Outcome.CANCELLED_LEASE_LOST
    (settled,) = desk.of(ContextSettled)
    assert settled.context.id == handles[0].context_id


async def test_a_job_lost_before_it_began_never_runs(desk):
    """A delivery that waits for a slot when its lease is lost is not started. D41."""
    desk = desk(max_running=1)
    begun = []

    @desk.supervisor.task("task")
    async def task(number: int):
        begun.append(number)
        await asyncio.sleep(60)

    async def serve(handle, *, stop, **_):
        deliveries = [Delivery(id=str(n), name="task", payload=b'{"number":%d}' % n) for n in range(2)]
        running = [asyncio.create_task(handle(delivery)) for delivery in deliveries]
        await asyncio.sleep(1)
        running[1].cancel()
        await asyncio.wait(running)
        await stop.wait()

    desk.engine.serve = serve
    async with desk.supervisor:
        await asyncio.sleep(100)
    assert begun == [0]
    assert [event.outcome for event in desk.of(TaskCancelled)] == [Outcome.CANCELLED_LEASE_LOST]


async def test_a_durable_task_may_drain(desk):
    """A task that drains does not wait for itself, nor for its own verdict."""
    desk = desk()
    reports = []

    @desk.supervisor.task("task")
    async def task():
        reports.append(await desk.supervisor.drain(timeout=5))

    async with desk.supervisor:
        await desk.enqueue(task)
        await desk.settled()
    assert len(reports) == 1


async def test_an_engine_that_does_not_stop_is_left(desk, caplog):
    """An engine that hangs in its stop is cancelled after the grace period, and that is said. C22."""
    desk = desk(cancel_grace=1)

    async def serve(*_, stop, **__):
        await stop.wait()
        await asyncio.sleep(3600)

    desk.engine.serve = serve

    @desk.supervisor.task("task")
    async def task(): ...

    async with desk.supervisor:
        pass
    assert "did not stop within 1 s" in caplog.text


async def test_an_engine_that_gives_up_is_told(desk, caplog):
    """An engine whose serve() raises is an error in the log, with its text. C25."""
    desk = desk()

    async def serve(*_, **__):
        message = "run `pgq upgrade`"
        raise RuntimeError(message)

    desk.engine.serve = serve

    @desk.supervisor.task("task")
    async def task(): ...

    async with desk.supervisor:
        await asyncio.sleep(0.1)
    assert "no longer served by this process: run `pgq upgrade`" in caplog.text


async def test_a_store_that_is_away_does_not_keep_the_app_from_starting(desk, caplog):
    """What cannot be reached yet is waited for by whoever needs it; what waiting cannot mend ends the start. C30."""
    desk = desk()
    errors = [OSError("connection refused"), EngineError("run `pgq upgrade`")]

    async def setup():
        raise errors.pop(0)

    desk.engine.setup = setup
    async with desk.supervisor:
        assert "cannot be reached yet: OSError: connection refused" in caplog.text
    with pytest.raises(EngineError, match="pgq upgrade"):
        async with desk.supervisor:
            pass
    await desk.supervisor.close()


@pytest.mark.parametrize("trouble", ["raises", "hangs"])
@pytest.mark.looptime
async def test_an_engine_that_cannot_be_closed_keeps_no_app_from_its_end(desk, caplog, trouble):
    """An engine that raises or hangs as it is closed is an error in the log; the app's own shutdown goes on. S4 S11."""
    desk, closed = desk(), []

    async def close():
        closed.append(trouble)
        if trouble == "hangs":
            await asyncio.sleep(3600)
        raise OSError("the disk is gone")

    desk.engine.close = close
    async with asyncio.timeout(60), desk.supervisor:
        pass
    assert closed == [trouble]
    assert f"could not be closed: {'OSError' if trouble == 'raises' else 'TimeoutError'}" in caplog.text
