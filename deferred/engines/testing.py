"""The conformance suite: what every engine has to do, asked of yours.

Each check is an async function of a `Bench`; none needs a test framework. With pytest::

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    async def test_engine(check, bench):
        await check(bench)

The store has to be empty, or used by nobody else: the checks refuse to start beside other
people's jobs.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import secrets
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeAlias

import msgspec

from deferred.engines._protocol import Dead, Delivery, Done, Engine, Job, RetryIn, Verdict
from deferred.exceptions import EngineError

__all__ = ["CHECKS", "Bench", "Check"]

PATIENCE = 30.0
"""Seconds after which something that has not happened is taken not to happen."""


class Bench(msgspec.Struct, frozen=True, kw_only=True):
    """Where an engine is tested. Lives as long as the test.

    Attributes:
        factory: ``"package.module:function"``; called with `argument` it makes an engine, in
            this process and in others.
        argument: What the engine is made of, such as a path.
        lease: Seconds after which a dead worker's jobs are delivered again; short, for a test.
        transaction: A context manager that gives a connection with an open transaction; it
            commits, or rolls back where its block raises. None if the engine joins none.
    """

    factory: str
    argument: str
    lease: float
    transaction: Callable[[], AbstractAsyncContextManager[Any]] | None = None

    @contextlib.asynccontextmanager
    async def engine(self) -> AsyncIterator[Engine]:
        """Make an engine on the store, ready for use."""
        engine = _make(self.factory, self.argument)
        await engine.setup()
        try:
            yield engine
        finally:
            await engine.close()


Check: TypeAlias = Callable[[Bench], Awaitable[None]]
Answer: TypeAlias = Callable[[Delivery], Verdict]


def _make(factory: str, argument: str) -> Engine:
    module, _, function = factory.partition(":")
    engine: Engine = getattr(importlib.import_module(module), function)(argument)
    return engine


def _job(name: str = "task", payload: bytes = b"{}", **more: Any) -> Job:
    return Job(id=secrets.token_hex(16), name=name, payload=payload, **more)


def _expect(actual: object, wanted: object, what: str) -> None:
    if actual != wanted:
        message = f"{what}: expected {wanted!r}, got {actual!r}"
        raise AssertionError(message)


async def _within(awaitable: Awaitable[Any], what: str) -> Any:
    try:
        async with asyncio.timeout(PATIENCE):
            return await awaitable
    except TimeoutError:
        message = f"{what}: it has not happened within {PATIENCE:g} s"
        raise AssertionError(message) from None


class _Server:
    """A worker of the test's own, and what was delivered to it."""

    def __init__(self, engine: Engine, answer: Answer | None = None, **options: Any) -> None:
        self._engine = engine
        self._answer = answer or (lambda _: Done())
        self._options = {"queues": ("deferred",), "concurrency": 4, **options}
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.delivered: asyncio.Queue[Delivery] = asyncio.Queue()
        self.hold = asyncio.Event()  # set: deliveries are answered
        self.hold.set()
        self.running = 0
        self.most = 0

    async def _handle(self, delivery: Delivery) -> Verdict:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            self.delivered.put_nowait(delivery)
            await self.hold.wait()
            return self._answer(delivery)
        finally:
            self.running -= 1

    async def __aenter__(self) -> _Server:
        self._task = asyncio.create_task(self._engine.serve(self._handle, stop=self._stop, **self._options))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Stop, and wait for the end."""
        self._stop.set()
        if self._task is not None:
            await _within(self._task, "the end of serve(), once it is told to stop")

    def stopping(self) -> None:
        """Stop, and wait for nothing."""
        self._stop.set()

    async def next(self, what: str = "a delivery") -> Delivery:
        """Return the next delivery."""
        delivery: Delivery = await _within(self.delivered.get(), what)
        return delivery

    async def all(self, number: int) -> list[Delivery]:
        """Return the next deliveries, so many."""
        return [await self.next(f"delivery {index + 1} of {number}") for index in range(number)]


async def _until_settled(engine: Engine) -> None:
    """Wait until nothing waits and nothing runs."""

    async def wait() -> None:
        while (depth := await engine.depth()).waiting or depth.running:
            await asyncio.sleep(0.02)

    await _within(wait(), "the last verdict in the store")


async def _refuse_others(engine: Engine) -> None:
    depth = await engine.depth()
    if depth.waiting or depth.running or depth.dead:
        message = f"the store holds jobs ({depth!r}): these checks need one of their own, and have touched nothing"
        raise AssertionError(message)


# -- the checks -------------------------------------------------------------------------------


async def delivers_what_was_stored(bench: Bench) -> None:
    """A job is delivered once, with all that it was stored with."""
    async with bench.engine() as engine:
        await _refuse_others(engine)
        text = '{"text":"\\u0001 ü 日本 🏃 \\" \\\\","many":[1,2.5,null,true],"deep":{"a":{"b":[{}]}}}'
        job = _job("send_mail", text.encode(), headers={"traceparent": "00-ab-cd-01", "x": "ü"})
        _expect(await engine.enqueue([job]), [job.id], "the ids that enqueue returns")
        async with _Server(engine) as server:
            delivery = await server.next()
            await _until_settled(engine)
        _expect(delivery.payload, job.payload, "the payload")
        _expect((delivery.id, delivery.name, delivery.queue), (job.id, job.name, job.queue), "id, name and queue")
        _expect(delivery.headers, job.headers, "the headers")
        _expect((delivery.number, delivery.note), (1, ""), "number and note of the first delivery")
        if abs(delivery.stored_at - time.time()) > PATIENCE + 60:
            message = f"stored_at is seconds since the epoch, not {delivery.stored_at!r}"
            raise AssertionError(message)
        _expect(server.delivered.qsize(), 0, "further deliveries of a job that is done")


async def keeps_large_payloads(bench: Bench) -> None:
    """256 KiB of arguments arrive byte for byte."""
    async with bench.engine() as engine:
        job = _job(payload=b'"' + b"x" * (256 * 1024 - 2) + b'"')
        await engine.enqueue([job])
        async with _Server(engine) as server:
            _expect((await server.next()).payload, job.payload, "the payload")
            await _until_settled(engine)


async def retries_later(bench: Bench) -> None:
    """A retry comes after its delay, never before, counted, with the note of the last verdict."""
    async with bench.engine() as engine:
        answered: list[float] = []

        def answer(delivery: Delivery) -> Verdict:
            answered.append(time.monotonic())
            return RetryIn(0.4, f"note {delivery.number}", "no \x00 answer") if delivery.number < 3 else Done()

        await engine.enqueue([_job()])
        async with _Server(engine, answer) as server:
            first, second, third = await server.all(3)
            await _until_settled(engine)
        _expect([first.number, second.number, third.number], [1, 2, 3], "the numbers of the deliveries")
        _expect([first.note, second.note, third.note], ["", "note 1", "note 2"], "their notes")
        _expect(first.id == second.id == third.id, True, "the same id on every delivery")
        for earlier, later in zip(answered, answered[1:], strict=False):
            _expect(later - earlier >= 0.39, True, f"a retry in 0.4 s, after {later - earlier:.3f} s, is not early")


async def parks_the_dead(bench: Bench) -> None:
    """A dead letter is kept with its arguments and its error, and is not delivered."""
    async with bench.engine() as engine:
        job = _job("poison", b'{"a":1}', headers={"x": "y"})
        await engine.enqueue([job])
        async with _Server(engine, lambda _: Dead("failed", "ValueError: no \x00 such 🏃")) as server:
            await server.next()
            await _until_settled(engine)
            (letter,) = await engine.dead()
            _expect(server.delivered.qsize(), 0, "deliveries of a dead letter")
        _expect((letter.id, letter.name, letter.payload), (job.id, "poison", b'{"a":1}'), "what is kept")
        _expect((letter.headers, letter.number), ({"x": "y"}, 1), "its headers and number")
        _expect(letter.reason, "failed", "the reason")
        _expect("such 🏃" in letter.error, True, f"the error {letter.error!r} is the one given")
        _expect((await engine.depth()).dead, 1, "how many are dead")
        _expect([found.id for found in await engine.dead(ids=[job.id])], [job.id], "dead letters by id")
        _expect(await engine.dead(ids=["unheard-of"]), [], "dead letters of an unknown id")
        _expect(await engine.delete([job.id]), [job.id], "what delete() says")


async def replays_the_dead_once(bench: Bench) -> None:
    """Requeueing a dead letter twice delivers it once, counted from 1, without its note."""
    async with bench.engine() as engine:
        job = _job()
        await engine.enqueue([job])
        async with _Server(engine, lambda d: RetryIn(0, "note") if d.number < 2 else Dead("failed")) as server:
            await server.all(2)
            await _until_settled(engine)
        both = await asyncio.gather(engine.requeue([job.id, "unheard-of"]), engine.requeue([job.id]))
        _expect(sorted(map(len, both)), [0, 1], "how many letters the two requeues found")
        _expect(await engine.delete([job.id]), [], "what delete() says of a job that is not dead")
        async with _Server(engine) as server:
            delivery = await server.next()
            await _until_settled(engine)
        _expect((delivery.id, delivery.number, delivery.note), (job.id, 1, ""), "the delivery")
        _expect(server.delivered.qsize(), 0, "further deliveries")


async def delays(bench: Bench) -> None:
    """A delayed job is not delivered early; one stored later without delay overtakes it."""
    async with bench.engine() as engine:
        late, soon = _job("late", delay=0.7), _job("soon")
        stored = time.monotonic()
        await engine.enqueue([late])
        await engine.enqueue([soon])
        async with _Server(engine) as server:
            _expect([delivery.name for delivery in await server.all(2)], ["soon", "late"], "the order")
            waited = time.monotonic() - stored
            await _until_settled(engine)
        _expect(waited >= 0.69, True, f"a delay of 0.7 s, delivered after {waited:.3f} s, is not early")


async def dedupes(bench: Bench) -> None:
    """While a job is unfinished no other with its key is stored; afterwards the key is free."""
    async with bench.engine() as engine:
        if not engine.capabilities.dedupes:
            return
        jobs = [_job(key="one runner") for _ in range(12)]
        ids = await asyncio.gather(*(engine.enqueue([job]) for job in jobs))
        _expect(len({found for (found,) in ids}), 1, "how many jobs there are of 12 with one key")
        _expect((await engine.depth()).waiting, 1, "how many wait")
        other, same = _job(key="another"), _job(key="one runner")
        _expect(await engine.enqueue([other, same]), [other.id, ids[0][0]], "the ids of a new and a known key")
        async with _Server(engine) as server:
            await server.all(2)
            await _until_settled(engine)
            _expect(await engine.enqueue([same]), [same.id], "the id of a key that is free again")
            await server.next()
            await _until_settled(engine)


async def joins_transactions(bench: Bench) -> None:
    """A job of the caller's transaction exists when that is committed, and not when it is rolled back."""
    if bench.transaction is None:
        return
    async with bench.engine() as engine, _Server(engine) as server:
        with contextlib.suppress(ZeroDivisionError):
            async with bench.transaction() as connection:
                await engine.enqueue([_job("never"), _job("never", key="k")], connection)
                raise ZeroDivisionError
        _expect(await engine.depth(), type(await engine.depth())(), "what is left of a rollback")
        async with bench.transaction() as connection:
            first, second = _job("first"), _job("second", key="k")
            _expect(await engine.enqueue([first], connection), [first.id], "the id")
            _expect(await engine.enqueue([second], connection), [second.id], "the id, with a key")
            _expect(await engine.enqueue([_job(key="k")], connection), [second.id], "the id of a known key")
        found = {delivery.id for delivery in await server.all(2)}
        _expect(found, {first.id, second.id}, "what was delivered after the commit")
        await _until_settled(engine)
        _expect(server.delivered.qsize(), 0, "further deliveries")


async def refuses_other_connections(bench: Bench) -> None:
    """What cannot be joined is refused, and nothing is stored in a transaction of another kind."""
    async with bench.engine() as engine:
        for stranger in (object(), "a connection"):
            try:
                await engine.enqueue([_job()], stranger)
            except EngineError:
                continue
            message = f"enqueue(connection={stranger!r}) must raise EngineError"
            raise AssertionError(message)
        _expect((await engine.depth()).waiting, 0, "how many jobs were stored all the same")


async def keeps_queues_apart(bench: Bench) -> None:
    """A worker is given jobs of its queues alone."""
    async with bench.engine() as engine:
        await engine.enqueue([_job("here", queue="here"), _job("there", queue="there"), _job("else", queue="else")])
        async with _Server(engine, queues=("there", "else")) as server:
            _expect({delivery.name for delivery in await server.all(2)}, {"there", "else"}, "what was delivered")
        _expect((await engine.depth(["here"])).waiting, 1, "what waits in the other queue")
        async with _Server(engine, queues=("here",)) as server:
            _expect((await server.next()).queue, "here", "its queue")
            await _until_settled(engine)


async def bounds_concurrency(bench: Bench) -> None:
    """No more deliveries run at a time than were asked for, and as many as that."""
    async with bench.engine() as engine:
        await engine.enqueue([_job() for _ in range(12)])
        server = _Server(engine, concurrency=3)
        server.hold.clear()
        async with server:
            await server.all(3)
            await asyncio.sleep(0.3)  # the time in which an engine that counts wrongly would deliver more
            server.hold.set()
            await server.all(9)
            await _until_settled(engine)
        _expect(server.most, 3, "the most that ran at a time")


async def stops(bench: Bench) -> None:
    """Told to stop, it takes nothing more, waits for what runs, and takes back what is handed back."""
    async with bench.engine() as engine:
        await engine.enqueue([_job("first")])
        server = _Server(engine, lambda _: RetryIn(0.0, "handed back"), concurrency=1)
        server.hold.clear()
        async with server:
            await server.next()
            server.stopping()
            await engine.enqueue([_job("second")])
            await asyncio.sleep(0.2)  # the time in which one that goes on would deliver it
            server.hold.set()
        _expect(server.delivered.qsize(), 0, "deliveries after the stop")
        _expect((await engine.depth()).waiting, 2, "what waits for another worker")
        async with _Server(engine) as server:
            found = sorted((delivery.name, delivery.note) for delivery in await server.all(2))
            _expect(found, [("first", "handed back"), ("second", "")], "what another worker gets")
            await _until_settled(engine)


async def outlives_a_raising_handle(bench: Bench) -> None:
    """A handle that raises loses nothing: the job is delivered again."""
    async with bench.engine() as engine:
        await engine.enqueue([_job()])

        def answer(delivery: Delivery) -> Verdict:
            if delivery.number == 1:
                message = "not a verdict"
                raise RuntimeError(message)
            return Done()

        async with _Server(engine, answer) as server:
            await server.all(2)
            await _until_settled(engine)


async def keeps_a_lease(bench: Bench) -> None:
    """A delivery that takes longer than the lease is not delivered to another."""
    async with bench.engine() as engine, bench.engine() as other:
        await engine.enqueue([_job()])
        server = _Server(engine)
        server.hold.clear()
        async with server:
            await server.next()
            async with _Server(other) as rival:
                await asyncio.sleep(2.5 * bench.lease)
                _expect(rival.delivered.qsize(), 0, "deliveries to another worker")
                server.hold.set()
                await _until_settled(engine)
            _expect((server.delivered.qsize(), rival.delivered.qsize()), (0, 0), "further deliveries")


async def survives_a_crash(bench: Bench) -> None:
    """A job whose worker was killed is delivered again, and the killing is counted."""
    async with bench.engine() as engine:
        job = _job()
        await engine.enqueue([job])
        async with _Server(engine, lambda _: RetryIn(0, "before")) as server:
            await server.next()
            await server.stop()
        process = await asyncio.create_subprocess_exec(sys.executable, "-m", __name__, bench.factory, bench.argument)
        _expect(await _within(process.wait(), "the death of the other worker"), -signal.SIGKILL, "its exit code")
        async with _Server(engine) as server:
            delivery = await server.next()
            await _until_settled(engine)
        _expect((delivery.id, delivery.note), (job.id, "before"), "id and note after the crash")
        if engine.capabilities.counts_crashes:
            _expect(delivery.number, 3, "the number of the delivery after one retry and one crash")


async def shares(bench: Bench) -> None:
    """Two workers get each of 200 jobs once between them."""
    async with bench.engine() as engine, bench.engine() as other:
        jobs = [_job(payload=str(number).encode()) for number in range(200)]
        async with _Server(engine, concurrency=20) as one, _Server(other, concurrency=20) as two:
            for start in range(0, 200, 50):
                await engine.enqueue(jobs[start : start + 50])
            await _until_settled(engine)
        found = [server.delivered.get_nowait().id for server in (one, two) for _ in range(server.delivered.qsize())]
        _expect(sorted(found), sorted(job.id for job in jobs), "the ids delivered")


async def opens_again(bench: Bench) -> None:
    """After a close, setup() connects again and finds what was stored; a second setup() does nothing."""
    async with bench.engine() as engine:
        await engine.setup()
        job = _job()
        await engine.enqueue([job])
        await engine.close()
        await engine.setup()
        _expect((await engine.depth()).waiting, 1, "what waits after a close")
        async with _Server(engine) as server:
            _expect((await server.next()).id, job.id, "its id")
            await _until_settled(engine)


CHECKS: Sequence[Check] = (
    delivers_what_was_stored,
    keeps_large_payloads,
    retries_later,
    parks_the_dead,
    replays_the_dead_once,
    delays,
    dedupes,
    joins_transactions,
    refuses_other_connections,
    keeps_queues_apart,
    bounds_concurrency,
    stops,
    outlives_a_raising_handle,
    keeps_a_lease,
    survives_a_crash,
    shares,
    opens_again,
)
"""Every check, to be asked of every engine."""


async def _die(engine: Engine) -> None:
    """Take one job, and be killed with it in hand."""

    async def handle(_: Delivery) -> Verdict:
        os.kill(os.getpid(), signal.SIGKILL)
        return Done()

    await engine.setup()
    await engine.serve(handle, queues=("deferred",), concurrency=1, stop=asyncio.Event())


if __name__ == "__main__":
    asyncio.run(_die(_make(sys.argv[1], sys.argv[2])))
