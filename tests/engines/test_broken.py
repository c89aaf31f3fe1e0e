"""Engines that break one promise each: the suite finds it, and says which."""

import asyncio

import pytest

from deferred.engines import Dead, Depth, Done, RetryIn, _bench
from deferred.engines.memory import MemoryEngine
from deferred.engines.testing import CHECKS, Bench


class _Deaf(MemoryEngine):
    """Does not do what `delete` says."""

    async def delete(self, ids):
        return self._dead_of(ids)


class _Idle(MemoryEngine):
    """Counts nothing as running."""

    async def depth(self, queues=None):
        depth = await super().depth(queues)
        return Depth(depth.waiting, 0, depth.dead)


class _Blunt(MemoryEngine):
    """Counts all queues, whichever is asked for."""

    async def depth(self, queues=None):  # the point of it
        return await super().depth()


class _Backward(MemoryEngine):
    """Lists the oldest dead letters first."""

    async def dead(self, *, limit=100, ids=None):
        return (await super().dead(limit=limit, ids=ids))[::-1]


class _Grudging(MemoryEngine):
    """Keeps the key of a dead letter from others."""

    def _live(self, key):
        return next((row.job.id for row in self._rows.values() if row.job.key == key), None)


class _Lonely(MemoryEngine):
    """Runs one delivery at a time, however many it may."""

    async def serve(self, handle, *, queues, concurrency, stop):  # the point of it
        await super().serve(handle, queues=queues, concurrency=1, stop=stop)


class _Handling(MemoryEngine):
    """Changes what the handle says, or is given."""

    def change(self, verdict):
        return verdict

    async def serve(self, handle, *, queues, concurrency, stop):
        async def changed(delivery):
            try:
                return self.change(await handle(delivery))
            except (RuntimeError, asyncio.CancelledError) as error:
                return self.change(error)

        await super().serve(changed, queues=queues, concurrency=concurrency, stop=stop)


class _Forgetful(_Handling):
    """Keeps no dead letter."""

    def change(self, verdict):
        return Done() if isinstance(verdict, Dead) else verdict


class _Losing(_Handling):
    """Takes a cancelled handle for a finished job."""

    def change(self, verdict):
        return Done() if isinstance(verdict, asyncio.CancelledError) else verdict


class _Renewing(_Handling):
    """Loses its note where a handle raises."""

    def change(self, verdict):
        return RetryIn(0.0) if isinstance(verdict, RuntimeError) else verdict


class _Twofold(MemoryEngine):
    """Delivers what is still being worked on."""

    async def serve(self, handle, *, queues, concurrency, stop):
        async def twice(delivery):
            return (await asyncio.gather(handle(delivery), handle(delivery)))[0]

        await super().serve(twice, queues=queues, concurrency=concurrency, stop=stop)


class _Lax(MemoryEngine):
    """Never renews a lease."""

    async def serve(self, handle, *, queues, concurrency, stop):
        async def cut(delivery):
            working = asyncio.ensure_future(handle(delivery))
            await asyncio.wait([working], timeout=0.1 if delivery.number == 1 else None)
            working.cancel()
            return await working

        await super().serve(cut, queues=queues, concurrency=concurrency, stop=stop)


BROKEN = {
    _Deaf: ("parks_the_dead", "what is left once the letter is deleted"),
    _Forgetful: ("parks_the_dead", "how many dead letters there are"),
    _Backward: ("lists_the_dead", "the order of dead letters"),
    _Grudging: ("dedupes", "the id of a key whose job is dead"),
    _Blunt: ("keeps_queues_apart", "how many wait in two of three queues"),
    _Lonely: ("bounds_concurrency", "delivery . of 3: it has not happened"),
    _Idle: ("stops", "the depth while a job runs"),
    _Renewing: ("outlives_a_raising_handle", "the notes"),
    _Twofold: ("keeps_a_lease", "deliveries of what was not lost"),
    _Lax: ("keeps_a_lease", "3 times in a row"),
    _Losing: ("outlives_a_cancelled_handle", "delivery . of 2: it has not happened"),
}


def make(name):
    """Return a broken engine."""
    return next(kind for kind in BROKEN if kind.__name__ == name)()


@pytest.mark.parametrize("kind", BROKEN, ids=lambda kind: kind.__name__)
async def test_a_broken_promise_is_found_and_named(kind, monkeypatch):
    """A check of the suite fails on an engine that breaks what it asks for, and says what that is."""
    name, words = BROKEN[kind]
    if "not happened" in words:
        monkeypatch.setattr(_bench, "PATIENCE", 0.5)
    check = next(check for check in CHECKS if check.__name__ == name)
    with pytest.raises(AssertionError, match=words):
        await check(Bench(factory=f"{__name__}:make", argument=kind.__name__, lease=0.1))
