"""The jobs that a worker holds on lease, and the end of work on those it has lost.

Rules of this file: a lease is counted from before its claim was sent, on the event loop's clock;
what the store no longer counts as this worker's is lost at once; what could not be renewed is
lost before it runs out, so that no other worker finds this one still at it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Hashable, Iterable
from typing import Any

from deferred.engines._support import logger

__all__ = ["Lease", "Leases"]

PARTS = 8
"""Into how many parts a lease is cut: a worker looks after each."""

LATE = 6
"""After so many parts without a renewal the engine's own has failed, twice: it is asked for from here."""

MOST_NAMED = 5
"""How many jobs a line of the log names."""


class Lease:
    """A job that a worker holds: a context manager, cancelled inside when it is lost. Lives as long as a delivery.

    Attributes:
        since: When it was renewed, at the earliest, in seconds of the event loop's clock.
        lost: Whether another worker may have the job by now.
    """

    __slots__ = ("_held", "_key", "lost", "name", "since", "work")

    def __init__(self, held: dict[Hashable, Lease], key: Hashable, since: float, name: str) -> None:
        self._held = held
        self._key = key
        self.name = name
        self.since = since
        self.work = asyncio.current_task()
        self.lost = False

    def __enter__(self) -> None:
        self._held[self._key] = self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._held.get(self._key) is self:
            del self._held[self._key]
        if self.lost and kind is None:  # it came to its end in spite of the cancellation, which nobody is to hear
            raise asyncio.CancelledError(self.because)

    @property
    def because(self) -> str:
        """Why its work is cancelled."""
        return f"the lease of job {self.name} is lost"


class Leases:
    """What one worker holds. Lives as long as it.

    Args:
        duration: Seconds that a lease lasts without being renewed.
        renew: Renews the leases of these jobs; returns those that are still this worker's.
        tell: Told what keeps them from being renewed.
    """

    def __init__(
        self,
        duration: float,
        renew: Callable[[list[Any]], Awaitable[Collection[Any]]],
        tell: Callable[[str, BaseException], None],
    ) -> None:
        self._duration = duration
        self._renew = renew
        self._tell = tell
        self._held: dict[Hashable, Lease] = {}

    def hold(self, key: Hashable, since: float, name: str) -> Lease:
        """Return what holds a job for the current asyncio task.

        Args:
            key: What the store calls the job.
            since: When its claim was sent, in seconds of the event loop's clock.
            name: What the log calls it.
        """
        return Lease(self._held, key, since, name)

    def renewed(self, key: Hashable, since: float) -> bool:
        """Take note of a renewal; say whether the job is held here."""
        lease = self._held.get(key)
        if lease is None:
            return False
        lease.since = since
        return True

    async def beat(self, keys: Iterable[Any]) -> Collection[Any]:
        """Renew the leases of these jobs, and cancel those that are lost; return those that are not."""
        asked = [*dict.fromkeys(keys)]
        before = {key: lease for key in asked if (lease := self._held.get(key)) is not None}
        since = asyncio.get_running_loop().time()
        kept = await self._renew(asked)
        lost: list[Lease] = []
        for key, lease in before.items():
            if self._held.get(key) is not lease:
                continue  # over by now, and perhaps claimed anew
            if key in kept:
                lease.since = since
            else:
                lost.append(lease)
        _give_up(lost, "the store counts them as this worker's no more")
        return kept

    async def watch(self) -> None:
        """See to it that what is held is renewed, or ends in time; until cancelled."""
        loop = asyncio.get_running_loop()
        part = self._duration / PARTS
        while True:
            await asyncio.sleep(part)
            late = [key for key, lease in self._held.items() if loop.time() - lease.since >= LATE * part]
            if not late:
                continue
            try:
                async with asyncio.timeout(part):
                    await self.beat(late)
            except Exception as error:  # noqa: BLE001  # a driver raises what it likes; told, and tried again
                self._tell("renewing a lease", error)
            # The next look would come when it has run out.
            end = loop.time() - self._duration + part
            leases = [lease for key in late if (lease := self._held.get(key)) is not None and lease.since <= end]
            _give_up(leases, "the store could not be asked in time to renew them")


def _give_up(leases: list[Lease], why: str) -> None:
    """Cancel the work on jobs that are lost, and say so once for all of them."""
    lost = [lease for lease in leases if not lease.lost]
    if not lost:
        return
    names = ", ".join([lease.name for lease in lost[:MOST_NAMED]] + ["..."] * (len(lost) > MOST_NAMED))
    logger.warning(
        "%d job(s) whose lease is lost are cancelled here and delivered again (%s): %s", len(lost), why, names
    )
    for lease in lost:
        lease.lost = True
        if lease.work is not None:
            lease.work.cancel(lease.because)
