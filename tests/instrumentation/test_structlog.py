"""Events as structlog's entries, and the task bound to what its work logs."""

import asyncio
import contextlib

import pytest
import structlog
from structlog.testing import capture_logs

from deferred import Retry, Supervisor, TaskRejectedError, current_context, sequential
from deferred.engines.memory import MemoryEngine
from deferred.instrumentation.structlog import StructlogHook

pytestmark = pytest.mark.looptime


class BoomError(Exception):
    """What the tasks raise."""


async def boom():
    """Fail."""
    raise BoomError


async def test_a_task_is_bound_to_its_lines():
    """A61, WD-39: lines of the work carry its task, attempt and request; those of others do not."""
    lines = []

    def keep(_logger, _method, entry):
        lines.append(entry)
        raise structlog.DropEvent

    logger = structlog.wrap_logger(None, processors=[structlog.contextvars.merge_contextvars, keep])

    async def work():
        logger.info("inside")

    async with Supervisor(hooks=[StructlogHook(logger)]) as supervisor:
        with supervisor.context("POST /register") as ctx:
            handle = ctx.with_options(name="mail").defer(work)
            logger.info("in the handler")
    handler, inside, drained = lines
    assert inside["task"] == "mail"
    assert (inside["task_id"], inside["request_id"], inside["attempt"]) == (handle.id, ctx.id, 1)
    assert "task" not in handler
    assert "task" not in drained


@pytest.mark.parametrize("fails", [False, True])
async def test_a_handler_gets_its_variables_back(fails):
    """WD-39: work that a sequential route waits for leaves nothing bound, however often it was tried."""
    seen = []
    left = [BoomError()] * (3 if fails else 1)

    async def work():
        seen.append(structlog.contextvars.get_contextvars())
        if left:
            raise left.pop()

    hook = StructlogHook()

    @sequential
    async def handler():
        structlog.contextvars.bind_contextvars(task="the handler's own")
        retry = Retry(on=BoomError, attempts=2, wait_jitter=0)
        with contextlib.suppress(BoomError):
            await current_context().with_options(name="mail", retry=retry).run(work)
        seen.append(structlog.contextvars.get_contextvars())

    with capture_logs():
        async with Supervisor(hooks=[hook]) as supervisor:
            await supervisor.wrap(handler)()
    *attempts, after = seen
    assert [(each["task"], each["attempt"]) for each in attempts] == [("mail", 1), ("mail", 2)]
    assert after == {"task": "the handler's own"}
    assert hook._inline == {}


async def test_a_dead_letter_is_an_entry():
    """S15: a job that is given up is an entry, with its reason and the first line of its error."""
    with capture_logs() as logs:
        supervisor = Supervisor(hooks=[StructlogHook()], engine=MemoryEngine())

        @supervisor.task("mail")
        async def mail():
            message = "550 no such user\nat all"
            raise BoomError(message)

        async with supervisor:
            with supervisor.context() as ctx:
                job = await ctx.enqueue(mail)
            while not any(entry["event"] == "dead letter" for entry in logs):
                await asyncio.sleep(0.1)
    (dead,) = (entry for entry in logs if entry["event"] == "dead letter")
    assert (dead["task"], dead["task_id"], dead["log_level"]) == ("mail", job, "error")
    assert dead["error"].endswith("550 no such user")


async def test_every_ending_is_an_entry():
    """S16: failures, retries, discards, rejections, cancellations and drains are entries with their fields."""
    with capture_logs() as logs:
        async with Supervisor(
            hooks=[StructlogHook()], max_per_context=3, drain_timeout=20, cancel_grace=0
        ) as supervisor:
            with supervisor.context("GET /") as ctx:
                ctx.status = 200
                ctx.with_options(retry=Retry(on=BoomError, attempts=2, wait_jitter=0)).defer(boom)
                ctx.with_options(when="error").defer(boom)
                ctx.with_options(name="hangs").defer(asyncio.sleep, 100)
                with pytest.raises(TaskRejectedError):
                    ctx.defer(boom)
    entries = {entry["event"]: entry for entry in logs}
    assert set(entries) == {
        "task failed",
        "task retrying",
        "task discarded",
        "task rejected",
        "task cancelled",
        "drained",
    }
    assert entries["task failed"]["outcome"] == "exhausted_attempts"
    assert isinstance(entries["task failed"]["exc_info"], BoomError)
    assert entries["task failed"]["label"] == "GET /"
    assert entries["task retrying"]["delay"] == pytest.approx(0.1)
    assert entries["task cancelled"]["outcome"] == "cancelled_by_drain"
    assert entries["drained"]["unfinished"] == ["hangs"]
    assert entries["drained"]["log_level"] == "warning"


async def test_what_is_abandoned_is_an_error():
    """A12: a task that ignores its cancellation is an entry of its own."""

    async def stubborn():
        while asyncio.get_running_loop().time() < 30:
            try:
                await asyncio.sleep(100)
            except asyncio.CancelledError:
                continue

    with capture_logs() as logs:
        async with Supervisor(hooks=[StructlogHook()], drain_timeout=1, cancel_grace=1) as supervisor:
            with supervisor.context() as ctx:
                ctx.defer(stubborn)
    assert [entry["event"] for entry in logs] == ["task abandoned", "drained"]
