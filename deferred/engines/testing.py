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
import itertools
import time
from collections.abc import Sequence

from deferred.engines._bench import PATIENCE, TRIES, Bench, Check, Server, crash, expect, job, until_settled
from deferred.engines._protocol import Dead, Delivery, Depth, Done, RetryIn, Verdict
from deferred.exceptions import EngineError

__all__ = ["CHECKS", "Bench", "Check"]

# -- the checks -------------------------------------------------------------------------------


async def delivers_what_was_stored(bench: Bench) -> None:
    """A job is delivered once, with all that it was stored with."""
    async with bench.engine() as engine:
        text = '{"text":"\\u0001 ü 日本 🏃 \\" \\\\","many":[1,2.5,null,true],"deep":{"a":{"b":[{}]}}}'
        stored = job("send_mail", text.encode(), headers={"traceparent": "00-ab-cd-01", "x": "ü"})
        expect(await engine.enqueue([stored]), [stored.id], "the ids that enqueue returns")
        async with Server(engine) as server:
            delivery = await server.next()
            await until_settled(engine)
        expect(delivery.payload, stored.payload, "the payload")
        expect(
            (delivery.id, delivery.name, delivery.queue), (stored.id, stored.name, stored.queue), "id, name and queue"
        )
        expect(delivery.headers, stored.headers, "the headers")
        expect((delivery.number, delivery.note), (1, ""), "number and note of the first delivery")
        if abs(delivery.stored_at - time.time()) > PATIENCE + 60:
            message = f"stored_at is seconds since the epoch, not {delivery.stored_at!r}"
            raise AssertionError(message)
        expect(server.delivered.qsize(), 0, "further deliveries of a job that is done")


async def keeps_large_payloads(bench: Bench) -> None:
    """256 KiB of arguments arrive byte for byte."""
    async with bench.engine() as engine:
        stored = job(payload=b'"' + b"x" * (256 * 1024 - 2) + b'"')
        await engine.enqueue([stored])
        async with Server(engine) as server:
            expect((await server.next()).payload, stored.payload, "the payload")
            await until_settled(engine)


async def retries_later(bench: Bench) -> None:
    """A retry comes after its delay, never before, counted, with the note of the last verdict."""
    async with bench.engine() as engine:
        answered: list[float] = []

        def answer(delivery: Delivery) -> Verdict:
            answered.append(time.monotonic())
            return RetryIn(0.4, f"note {delivery.number}", "no \x00 answer") if delivery.number < 3 else Done()

        await engine.enqueue([job()])
        async with Server(engine, answer) as server:
            first, second, third = await server.all(3)
            await until_settled(engine)
        expect([first.number, second.number, third.number], [1, 2, 3], "the numbers of the deliveries")
        expect([first.note, second.note, third.note], ["", "note 1", "note 2"], "their notes")
        expect(first.id == second.id == third.id, True, "the same id on every delivery")
        for earlier, later in itertools.pairwise(answered):
            expect(later - earlier >= 0.39, True, f"a retry in 0.4 s, after {later - earlier:.3f} s, is not early")


async def parks_the_dead(bench: Bench) -> None:
    """A dead letter is kept with its arguments and its error, and is not delivered."""
    async with bench.engine() as engine:
        stored = job("poison", b'{"a":1}', headers={"x": "y"})
        await engine.enqueue([stored])
        async with Server(engine, lambda _: Dead("failed", "ValueError: no \x00 such 🏃")) as server:
            await server.next()
            await until_settled(engine)
            letters = await engine.dead()
            expect(len(letters), 1, "how many dead letters there are")
            letter = letters[0]
            expect(server.delivered.qsize(), 0, "deliveries of a dead letter")
        expect((letter.id, letter.name, letter.payload), (stored.id, "poison", b'{"a":1}'), "what is kept")
        expect((letter.headers, letter.number), ({"x": "y"}, 1), "its headers and number")
        expect(letter.reason, "failed", "the reason")
        expect("such 🏃" in letter.error, True, f"the error {letter.error!r} is the one given")
        expect((await engine.depth()).dead, 1, "how many are dead")
        expect([found.id for found in await engine.dead(ids=[stored.id])], [stored.id], "dead letters by id")
        expect(await engine.dead(ids=["unheard-of"]), [], "dead letters of an unknown id")
        expect(await engine.delete([stored.id]), [stored.id], "what delete() says")
        expect(await engine.depth(), Depth(), "what is left once the letter is deleted")


async def lists_the_dead(bench: Bench) -> None:
    """Dead letters are listed with the latest first, no more of them than asked for."""
    async with bench.engine() as engine:
        stored = [job(str(number)) for number in range(3)]
        async with Server(engine, lambda _: Dead("failed")) as server:
            for each in stored:
                await engine.enqueue([each])
                await server.next()
                await until_settled(engine)
                await asyncio.sleep(0.01)  # as fine as any store's clock
        expect([letter.name for letter in await engine.dead()], ["2", "1", "0"], "the order of dead letters")
        expect([letter.name for letter in await engine.dead(limit=1)], ["2"], "one dead letter of three")
        expect(await engine.dead(limit=0), [], "no dead letter of three")
        await engine.delete([each.id for each in stored])


async def replays_the_dead_once(bench: Bench) -> None:
    """Requeueing a dead letter twice delivers it once, counted from 1, without its note."""
    async with bench.engine() as engine:
        stored = job()
        await engine.enqueue([stored])
        async with Server(engine, lambda d: RetryIn(0, "note") if d.number < 2 else Dead("failed")) as server:
            await server.all(2)
            await until_settled(engine)
        both = await asyncio.gather(engine.requeue([stored.id, "unheard-of"]), engine.requeue([stored.id]))
        expect(sorted(map(len, both)), [0, 1], "how many letters the two requeues found")
        expect(await engine.delete([stored.id]), [], "what delete() says of a job that is not dead")
        async with Server(engine) as server:
            delivery = await server.next()
            await until_settled(engine)
        expect((delivery.id, delivery.number, delivery.note), (stored.id, 1, ""), "the delivery")
        expect(server.delivered.qsize(), 0, "further deliveries")


async def delays(bench: Bench) -> None:
    """A delayed job is not delivered early; one stored later without delay overtakes it."""
    first = 0.0
    async with bench.engine() as engine:
        for delay in (0.7, 3.0, 12.0):
            late, soon = job("late", delay=delay), job("soon")
            stored = time.monotonic()
            await engine.enqueue([late])
            await engine.enqueue([soon])
            async with Server(engine) as server:
                found = [(await server.next()).name]
                first = time.monotonic() - stored
                found.append((await server.next()).name)
                waited = time.monotonic() - stored
                await until_settled(engine)
            expect(waited >= delay - 0.01, True, f"a delay of {delay} s, delivered after {waited:.3f} s, is not early")
            if first < delay:  # else both were due, and either may be the first
                expect(found, ["soon", "late"], "the order")
                return
    message = f"a job without delay was delivered {first:.3f} s after it was stored"
    raise AssertionError(message)


async def dedupes(bench: Bench) -> None:
    """While a job is unfinished no other with its key is stored; afterwards the key is free."""
    async with bench.engine() as engine:
        if not engine.capabilities.dedupes:
            return
        jobs = [job(key="one runner") for _ in range(12)]
        ids = await asyncio.gather(*(engine.enqueue([each]) for each in jobs))
        expect(len({found for (found,) in ids}), 1, "how many jobs there are of 12 with one key")
        expect((await engine.depth()).waiting, 1, "how many wait")
        other, same = job(key="another"), job(key="one runner")
        expect(await engine.enqueue([other, same]), [other.id, ids[0][0]], "the ids of a new and a known key")
        async with Server(engine) as server:
            await server.all(2)
            await until_settled(engine)
            expect(await engine.enqueue([same]), [same.id], "the id of a key that is free again")
            await server.next()
            await until_settled(engine)
        dying, next_one = job(key="one runner"), job(key="one runner")
        await engine.enqueue([dying])
        async with Server(engine, lambda _: Dead("failed")) as server:
            await server.next()
            await until_settled(engine)
            server.hold.clear()
            await engine.requeue([dying.id])
            expect(await engine.enqueue([next_one]), [dying.id], "the id of a key whose dead letter is retried")
            server.hold.set()
            await server.next()
            await until_settled(engine)
            expect(await engine.enqueue([next_one]), [next_one.id], "the id of a key whose job is dead")
            await server.next()
            await until_settled(engine)
        await engine.delete([dying.id, next_one.id])


async def joins_transactions(bench: Bench) -> None:
    """A job of the caller's transaction exists when that is committed, and not when it is rolled back."""
    if bench.transaction is None:
        return
    async with bench.engine() as engine, Server(engine) as server:
        with contextlib.suppress(ZeroDivisionError):
            async with bench.transaction() as connection:
                await engine.enqueue([job("never"), job("never", key="k")], connection)
                raise ZeroDivisionError
        expect(await engine.depth(), Depth(), "what is left of a rollback")
        async with bench.transaction() as connection:
            first, second = job("first"), job("second", key="k")
            expect(await engine.enqueue([first], connection), [first.id], "the id")
            expect(await engine.enqueue([second], connection), [second.id], "the id, with a key")
            expect(await engine.enqueue([job(key="k")], connection), [second.id], "the id of a known key")
        found = {delivery.id for delivery in await server.all(2)}
        expect(found, {first.id, second.id}, "what was delivered after the commit")
        await until_settled(engine)
        expect(server.delivered.qsize(), 0, "further deliveries")


async def refuses_other_connections(bench: Bench) -> None:
    """What cannot be joined is refused, and nothing is stored in a transaction of another kind."""
    async with bench.engine() as engine:
        for stranger in (object(), "a connection"):
            try:
                await engine.enqueue([job()], stranger)
            except EngineError:
                continue
            message = f"enqueue(connection={stranger!r}) must raise EngineError"
            raise AssertionError(message)
        expect((await engine.depth()).waiting, 0, "how many jobs were stored all the same")


async def keeps_queues_apart(bench: Bench) -> None:
    """A worker is given jobs of its queues alone."""
    async with bench.engine() as engine:
        await engine.enqueue([job("here", queue="here"), job("there", queue="there"), job("else", queue="else")])
        expect((await engine.depth(["here", "else"])).waiting, 2, "how many wait in two of three queues")
        async with Server(engine, queues=("there", "else")) as server:
            expect({delivery.name for delivery in await server.all(2)}, {"there", "else"}, "what was delivered")
        expect((await engine.depth(["here"])).waiting, 1, "what waits in the other queue")
        async with Server(engine, queues=("here",)) as server:
            expect((await server.next()).queue, "here", "its queue")
            await until_settled(engine)


async def bounds_concurrency(bench: Bench) -> None:
    """No more deliveries run at a time than were asked for, and as many as that."""
    async with bench.engine() as engine:
        await engine.enqueue([job() for _ in range(12)])
        server = Server(engine, concurrency=3)
        server.hold.clear()
        async with server:
            await server.all(3)
            await asyncio.sleep(0.3)  # the time in which an engine that counts wrongly would deliver more
            server.hold.set()
            await server.all(9)
            await until_settled(engine)
        expect(server.most, 3, "the most that ran at a time")


async def stops(bench: Bench) -> None:
    """Told to stop, it takes nothing more, waits for what runs, and takes back what is handed back."""
    async with bench.engine() as engine:
        await engine.enqueue([job("first")])
        server = Server(engine, lambda _: RetryIn(0.0, "handed back"), concurrency=1)
        server.hold.clear()
        async with server:
            await server.next()
            expect(await engine.depth(), Depth(running=1), "the depth while a job runs")
            server.stopping()
            await engine.enqueue([job("second")])
            await asyncio.sleep(0.2)  # the time in which one that goes on would deliver it
            server.hold.set()
        expect(server.delivered.qsize(), 0, "deliveries after the stop")
        expect((await engine.depth()).waiting, 2, "what waits for another worker")
        async with Server(engine) as server:
            found = sorted((delivery.name, delivery.note) for delivery in await server.all(2))
            expect(found, [("first", "handed back"), ("second", "")], "what another worker gets")
            await until_settled(engine)


async def outlives_a_raising_handle(bench: Bench) -> None:
    """A handle that raises loses nothing: the job is delivered again, with the note it had."""
    async with bench.engine() as engine:
        await engine.enqueue([job()])

        def answer(delivery: Delivery) -> Verdict:
            if delivery.number == 1:
                return RetryIn(0, "note")
            if delivery.number == 2:
                message = "not a verdict"
                raise RuntimeError(message)
            return Done()

        async with Server(engine, answer) as server:
            notes = [delivery.note for delivery in await server.all(3)]
            await until_settled(engine)
        expect(notes, ["", "note", "note"], "the notes")


async def outlives_a_cancelled_handle(bench: Bench) -> None:
    """A handle that is cancelled leaves its job, to be delivered again."""
    async with bench.engine() as engine:
        stored = job()
        await engine.enqueue([stored])

        def answer(delivery: Delivery) -> Verdict:
            if delivery.number == 1:
                raise asyncio.CancelledError
            return Done()

        async with Server(engine, answer) as server:
            expect({delivery.id for delivery in await server.all(2)}, {stored.id}, "the ids delivered")
            await until_settled(engine)


async def keeps_a_lease(bench: Bench) -> None:
    """A delivery that takes longer than the lease is not delivered to another.

    On a machine that is too busy to renew a lease in time, or stands still, the engine cancels what it
    holds, or its verdict comes too late, and the job is delivered again: then it is tried anew.
    """
    loop = asyncio.get_running_loop()
    for _ in range(TRIES):
        async with bench.engine() as engine, bench.engine() as other:
            await engine.enqueue([job()])
            server = Server(engine)
            server.hold.clear()
            async with server:
                await server.next()
                async with Server(other) as rival:
                    began = loop.time()
                    await asyncio.sleep(2.5 * bench.lease)
                    stood_still = loop.time() - began > 2.75 * bench.lease
                    if not server.lost and not stood_still:
                        expect(rival.delivered.qsize(), 0, "deliveries to another worker")
                    server.hold.set()
                    await until_settled(engine)
            lost = server.lost + rival.lost
            if not stood_still:
                expect(server.delivered.qsize() + rival.delivered.qsize(), lost, "deliveries of what was not lost")
        if not lost and not stood_still:
            return
    message = f"a delivery that takes longer than the lease was cancelled, or came too late, {TRIES} times in a row"
    raise AssertionError(message)


async def survives_a_crash(bench: Bench) -> None:
    """A job whose worker was killed is delivered again, and the killing is counted."""
    async with bench.engine() as engine:
        if not engine.capabilities.durable:
            return
        stored = job()
        await engine.enqueue([stored])
        async with Server(engine, lambda _: RetryIn(0, "before")) as server:
            await server.next()
            await server.stop()
        await crash(bench)
        async with Server(engine) as server:
            delivery = await server.next()
            await until_settled(engine)
        expect((delivery.id, delivery.note), (stored.id, "before"), "id and note after the crash")
        if engine.capabilities.counts_crashes:
            expect(delivery.number, 3, "the number of the delivery after one retry and one crash")


async def shares(bench: Bench) -> None:
    """Two workers get each of 200 jobs once between them."""
    async with bench.engine() as engine, bench.engine() as other:
        if not engine.capabilities.durable:
            return
        jobs = [job(payload=str(number).encode()) for number in range(200)]
        async with Server(engine, concurrency=20) as one, Server(other, concurrency=20) as two:
            for start in range(0, 200, 50):
                await engine.enqueue(jobs[start : start + 50])
            await until_settled(engine)
        found = [server.delivered.get_nowait().id for server in (one, two) for _ in range(server.delivered.qsize())]
        expect(sorted(found), sorted(each.id for each in jobs), "the ids delivered")


async def opens_again(bench: Bench) -> None:
    """After a close, setup() connects again and finds what was stored; a second setup() does nothing."""
    async with bench.engine() as engine:
        await engine.setup()
        stored = job()
        await engine.enqueue([stored])
        await engine.close()
        await engine.setup()
        expect((await engine.depth()).waiting, 1, "what waits after a close")
        async with Server(engine) as server:
            expect((await server.next()).id, stored.id, "its id")
            await until_settled(engine)


CHECKS: Sequence[Check] = (
    delivers_what_was_stored,
    keeps_large_payloads,
    retries_later,
    parks_the_dead,
    lists_the_dead,
    replays_the_dead_once,
    delays,
    dedupes,
    joins_transactions,
    refuses_other_connections,
    keeps_queues_apart,
    bounds_concurrency,
    stops,
    outlives_a_raising_handle,
    outlives_a_cancelled_handle,
    keeps_a_lease,
    survives_a_crash,
    shares,
    opens_again,
)
"""Every check, to be asked of every engine."""
