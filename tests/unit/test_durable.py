"""What durable work does where scenarios come by chance alone."""

import asyncio

import pytest

from deferred import Supervisor, TaskEnqueued, TaskSucceeded
from deferred._delivery import Note, error_text, read_note
from deferred._suspects import HUSH, Suspects
from deferred.engines import Delivery
from deferred.exceptions import EngineError


class MuteError(Exception):
    """Cannot be shown."""

    def __str__(self):
        raise ValueError


def test_errors_as_texts():
    """An error is told by its class, words and traceback; one that cannot be shown by its class alone."""
    assert error_text(None) == ""
    assert error_text(MuteError()) == "MuteError"
    assert error_text(OSError("down")).startswith("OSError: down\n\n")


async def test_a_context_without_durable_work():
    """S15: a context whose owner knows no durable work says so when it is asked to store some."""
    supervisor = Supervisor()
    supervisor._launcher.durable = None
    with supervisor.context() as ctx, pytest.raises(EngineError, match="no supervisor with durable work"):
        ctx._store(None, (), {})


def test_the_next_loop_serves_too():
    """S15: where a loop broke off the serving of durable work, the next that opens the supervisor serves it."""
    supervisor, done = Supervisor(engine="memory://"), []

    @supervisor.task("note")
    async def note(number: int) -> None:
        done.append(number)

    async def break_off(number):
        supervisor.open()
        with supervisor.context() as ctx:
            await ctx.enqueue(note, number)
        while number not in done:
            await asyncio.sleep(0)

    for number in range(2):
        asyncio.run(break_off(number))


async def served(supervisor, task):
    """Store work, and wait until this process has run it."""
    ran = asyncio.Event()
    supervisor.add_hook(lambda event: isinstance(event, TaskSucceeded) and ran.set())
    with supervisor.context() as ctx:
        await ctx.enqueue(task)
    async with asyncio.timeout(60):
        await ran.wait()


async def nothing() -> None:
    """Be a registered task."""


async def test_closed_twice_at_a_time_it_serves_again():
    """S15, S11: two apps that close one supervisor side by side leave it as one would: opened again, it serves."""
    supervisor = Supervisor(engine="memory://")
    supervisor.task("nothing")(nothing)
    for _ in range(2):
        supervisor.open()
        with supervisor.context() as ctx:
            ctx.defer(asyncio.sleep, 0)
        await asyncio.gather(supervisor.close(), supervisor.close())
    async with supervisor:
        await served(supervisor, nothing)


def test_the_next_loop_serves_after_a_closing_that_broke_off():
    """S15, A44: a loop that broke off as the supervisor closed keeps no other from serving."""
    supervisor = Supervisor(engine="memory://", cancel_grace=0)
    supervisor.task("nothing")(nothing)
    loop, kept = asyncio.new_event_loop(), []

    async def begin():
        supervisor.open()
        with supervisor.context() as ctx:
            ctx.defer(asyncio.Event().wait)
        kept.append(asyncio.ensure_future(supervisor.close()))
        await asyncio.sleep(0)

    loop.run_until_complete(begin())
    for task in asyncio.all_tasks(loop):
        task._log_destroy_pending = False
    loop.close()

    async def take_over():
        async with supervisor:
            await served(supervisor, nothing)

    asyncio.run(take_over())


@pytest.mark.parametrize(("since", "now", "elapsed"), [(100.0, 130.0, 30.0), (4_000.0, 130.0, 0.0), (0.0, 130.0, 0.0)])
def test_the_time_since_the_first_attempt(since, now, elapsed):
    """D22: a clock that has been put back counts from where it is now: the policy's total time goes on from there."""
    delivery = Delivery(id="1", name="mail", payload=b"{}", delivered_at=now)
    note = Note(since=since).begun(delivery)
    assert note.redelivery(delivery).elapsed == elapsed
    assert note.since <= now


@pytest.mark.looptime
async def test_a_trial_that_is_broken_off():
    """D25: a suspect that is cancelled before its trial begins keeps nobody out."""
    suspects = Suspects()

    async def trial():
        async with suspects.alone():
            raise AssertionError

    trying = asyncio.ensure_future(trial())
    await asyncio.sleep(0)
    assert suspects.turn_away(suspect=False)
    trying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await trying
    assert not suspects.turn_away(suspect=False)
    assert not suspects.turn_away(suspect=True)


async def test_a_delivery_beside_a_trial():
    """D25: a delivery that a trial turns away comes again, unharmed and uncounted, before anything of it is read."""
    supervisor = Supervisor()

    @supervisor.task(name="mail")
    async def mail(to: str) -> None:
        raise AssertionError

    supervisor._durable._suspects._quiet = True
    verdict = await supervisor._durable._deliver(Delivery(id="1", name="mail", payload=b"{"))
    assert 2 * HUSH <= verdict.delay <= 6 * HUSH
    assert (read_note(verdict.note).settled, read_note(verdict.note).uncounted) == (1, 1)


@pytest.mark.parametrize("watched", [True, False])
async def test_what_was_stored_is_told(watched):
    """S16: work that was stored is told to whoever listens for that; where nobody does no event is made."""
    told = []
    supervisor = Supervisor(hooks=[told.append] if watched else [])
    with supervisor.context() as ctx:
        supervisor._durable._tell_stored("1", "mail", ctx)
    events = [event for event in told if isinstance(event, TaskEnqueued)]
    assert [(event.id, event.name, event.context) for event in events] == [("1", "mail", ctx)] * watched
