"""From `ctx.enqueue` to the running task: what is stored, what is refused, what the task sees."""

import asyncio
import threading

import pytest

from deferred import (
    EngineError,
    PayloadError,
    Supervisor,
    SupervisorClosedError,
    TaskEnqueued,
    TaskState,
    TaskSucceeded,
    TaskUnfinishedError,
    UnknownTaskError,
    current_context,
    current_task,
    durable,
)

pytestmark = pytest.mark.looptime


async def print_nothing():
    """Do nothing, registered."""


async def test_a_stored_call_is_run(desk):
    """A registered function is stored by its name and run with its arguments, as the same function."""
    desk = desk()
    seen = []

    @desk.supervisor.task("send_mail")
    async def send_mail(to: str, *, copies: int = 1):
        seen.append((to, copies, current_task().name, current_context().label))

    async with desk.supervisor:
        job = await desk.enqueue(send_mail, "ada@example.org", copies=2)
        assert await desk.enqueue("send_mail", "bob@example.org") != job
        await desk.settled()
    assert seen == [
        ("ada@example.org", 2, "send_mail", "POST /register"),
        ("bob@example.org", 1, "send_mail", "POST /register"),
    ]
    assert desk.of(TaskEnqueued)[0].id == job
    assert {event.task.id for event in desk.of(TaskSucceeded)} == {event.id for event in desk.of(TaskEnqueued)}
    assert desk.supervisor.stats().succeeded == 2


async def test_a_plain_function_runs_in_a_thread(desk):
    """A synchronous task runs beside the loop, as it does in memory."""
    desk = desk()
    threads = []

    @desk.supervisor.task("task")
    def task():
        threads.append(threading.current_thread())

    async with desk.supervisor:
        await desk.enqueue(task)
        await desk.settled()
    assert threads[0] is not threading.main_thread()


class Carries:
    """A hook that hears nothing, and has these travel beside stored work."""

    events = (TaskEnqueued,)

    def __init__(self, **headers):
        self.headers = headers

    def __call__(self, event):
        """Hear nothing."""

    def carry(self, headers):
        """Write them."""
        headers.update(self.headers)


async def test_the_task_knows_its_key_and_its_headers(desk):
    """Inside it, `current_task()` has the idempotency key, the attempt, and what travelled beside it."""
    desk = desk()
    seen = []
    desk.supervisor.add_hook(Carries(traceparent="00-aa-bb-01"))

    @desk.supervisor.task("task")
    async def task():
        me = current_task()
        seen.append((me.idempotency_key, me.id, me.attempts, me.headers["traceparent"], me.execution.value))

    async with desk.supervisor:
        job = await desk.enqueue(task)
        await desk.settled()
    assert seen == [(job, job, 1, "00-aa-bb-01", "durable")]


async def test_what_a_request_brings_along_can_be_stored(desk):
    """A path or a header with what no database takes, or without end, keeps no job from being stored. D29 F18."""
    desk = desk()
    desk.supervisor.add_hook(Carries(request="1\0\ud8002"))
    seen = []

    @desk.supervisor.task("task")
    async def task():
        seen.append((current_context().label, current_task().headers["request"]))

    async with desk.supervisor:
        for label in ("POST /a\0b", "x" * 100_000):
            with desk.supervisor.context(label) as ctx:
                await ctx.enqueue(task)
        await desk.settled()
    assert seen == [("POST /a\ufffdb", "1\ufffd?2"), ("x" * 500, "1\ufffd?2")]


async def test_work_in_memory_has_no_key(desk):
    """A deferred task runs once and needs no idempotency key; it has no headers."""
    desk = desk()
    seen = []

    async def task():
        seen.append((current_task().idempotency_key, current_task().headers))

    async with desk.supervisor:
        with desk.supervisor.context() as ctx:
            ctx.defer(task)
    assert seen == [(None, {})]


async def test_what_cannot_be_stored_is_refused_at_the_call(desk):
    """Wrong arguments, unknown functions and lambdas fail in the request; nothing is stored. D29 G14."""
    desk = desk(serve=False)

    @desk.supervisor.task("task")
    async def task(number: int): ...

    async def other(): ...

    async with desk.supervisor:
        for call, error in (
            (desk.enqueue(task, "1"), PayloadError),
            (desk.enqueue(task), PayloadError),
            (desk.enqueue(task, 1, number=2), PayloadError),
            (desk.enqueue(other), UnknownTaskError),
            (desk.enqueue("other"), UnknownTaskError),
            (desk.enqueue(lambda: None), TypeError),
            (desk.enqueue(task, 1, delay=-1), ValueError),
            (desk.enqueue(task, 1, delay=1e10), ValueError),
            (desk.enqueue(task, 1, key="a\0"), ValueError),
            (desk.enqueue(task, 1, connection=object()), EngineError),
        ):
            with pytest.raises(error):
                await call
        with desk.supervisor.context() as ctx, pytest.raises(TypeError, match="registered with"):
            await ctx.with_options(timeout=3).enqueue(task, 1)
    assert (await desk.engine.depth()).waiting == 0
    assert not desk.of(TaskEnqueued)


async def test_without_an_engine_it_says_what_is_missing():
    """A supervisor without an engine stores nothing, and names the mend."""
    async with Supervisor() as supervisor:

        @supervisor.task("task")
        async def task(): ...

        with supervisor.context() as ctx, pytest.raises(EngineError, match=r"Supervisor\(engine="):
            await ctx.enqueue(task)
        assert supervisor.engine is None


async def test_a_closed_supervisor_stores_nothing(desk):
    """After the shutdown nothing is stored, since the engine is closed."""
    desk = desk(serve=False)

    @desk.supervisor.task("task")
    async def task(): ...

    async with desk.supervisor:
        pass
    with pytest.raises(SupervisorClosedError):
        await desk.enqueue(task)


async def test_keys_belong_to_their_task(desk):
    """The same key of two tasks is two keys; of one task it is one job. D24."""
    desk = desk(serve=False)

    @desk.supervisor.task("one")
    async def one(): ...

    @desk.supervisor.task("two")
    async def two(): ...

    async with desk.supervisor:
        first = await desk.enqueue(one, key="ada@example.org")
        assert await desk.enqueue(one, key="ada@example.org") == first
        assert await desk.enqueue(two, key="ada@example.org") != first


async def test_delay_is_kept(desk):
    """A delayed job starts when its time has come. QU-13 QU-14."""
    desk = desk()
    loop = asyncio.get_running_loop()
    started = loop.create_future()

    @desk.supervisor.task("task")
    async def task():
        started.set_result(loop.time())

    async with desk.supervisor:
        asked = loop.time()
        await desk.enqueue(task, delay=3600)
        assert 3600 <= await started - asked < 3601
        await desk.settled()


async def test_a_durable_route_stores_its_steps(desk):
    """Under @durable, `ctx.run` stores the step and returns a handle that has no result here."""
    desk = desk()
    ran = []

    @desk.supervisor.task("step")
    async def step(number: int):
        ran.append(number)

    @durable
    async def handler(ctx):
        return await ctx.run(step, 7)

    async with desk.supervisor:
        with desk.supervisor.context() as ctx:
            handle = await handler(ctx)
        await desk.settled()
    assert ran == [7]
    assert handle.state is TaskState.PENDING
    assert handle.done()
    assert handle.id == desk.of(TaskEnqueued)[0].id
    assert not handle.cancel()
    with pytest.raises(TaskUnfinishedError, match="is stored"):
        handle.result()


async def test_a_view_has_no_durable_options(desk):
    """Under @durable a view's options are refused, since a worker would not know them."""
    desk = desk(serve=False)

    @desk.supervisor.task("step")
    async def step(): ...

    @durable
    async def handler(ctx):
        await ctx.with_options(timeout=3).run(step)

    async with desk.supervisor:
        with desk.supervisor.context() as ctx, pytest.raises(TypeError, match="registered with"):
            await handler(ctx)


async def test_nothing_is_served_without_tasks_or_leave(desk):
    """Without registered tasks, or with serve=False, a process only stores. QU-21."""
    idle, storing = desk(), desk(serve=False)
    storing.supervisor.task("task")(print_nothing)
    async with idle.supervisor, storing.supervisor:
        await storing.enqueue(print_nothing)
        await asyncio.sleep(1)
        assert (await storing.engine.depth()).waiting == 1
        assert idle.supervisor._durable._serving is None


async def test_queues_are_those_of_the_tasks(desk):
    """A worker serves the queues that its tasks are registered for."""
    desk = desk()
    ran = []

    @desk.supervisor.task("fast")
    async def fast():
        ran.append("fast")

    @desk.supervisor.task("slow", queue="slow")
    async def slow():
        ran.append("slow")

    async with desk.supervisor:
        await desk.enqueue(slow)
        await desk.enqueue(fast)
        await desk.settled()
    assert sorted(ran) == ["fast", "slow"]
