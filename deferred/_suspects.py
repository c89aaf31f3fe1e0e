"""Jobs that may have killed their process: tried one at a time, and alone.

A process that dies takes the innocent along with the guilty. So a job that was there at two
deaths is tried alone from then on: what else is delivered meanwhile is turned away, unharmed
and uncounted, so that nobody is buried for another's deed.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator

__all__ = ["Suspects"]

HUSH = 1.0
"""Seconds before a trial, in which the store learns of those that were turned away or are done."""

PATIENCE = 5.0
"""Seconds to wait for others to end; those that take longer have a crash to spare."""

QUIET = 10.0
"""Seconds after which a trial no longer keeps others out: what kills at once would have."""


class Suspects:
    """Who is tried in this process. Lives as long as the supervisor."""

    def __init__(self) -> None:
        self._running = 0
        self._over: asyncio.Event | None = None
        self._trial = False
        self._quiet = False

    def turn_away(self, *, suspect: bool) -> float:
        """Return after how many seconds a delivery is to come again; 0 to let it in."""
        if self._trial if suspect else self._quiet:
            # Later than a trial begins, and not all at once.
            return random.uniform(2 * HUSH, 6 * HUSH)  # noqa: S311  # no secret
        return 0.0

    def begin(self) -> None:
        """Count a delivery of no suspect, as long as it runs."""
        self._running += 1

    def end(self) -> None:
        """Take back `begin`."""
        self._running -= 1
        if self._over is not None and not self._running:
            self._over.set()

    @contextlib.asynccontextmanager
    async def alone(self) -> AsyncGenerator[None]:
        """Begin when nobody else runs, and keep others out for a while."""
        self._trial = self._quiet = True
        timer: asyncio.TimerHandle | None = None
        try:
            await self._alone()
            timer = asyncio.get_running_loop().call_later(QUIET, self._let_in)
            yield
        finally:
            if timer is not None:
                timer.cancel()
            self._trial = self._quiet = False

    async def _alone(self) -> None:
        self._over = asyncio.Event()
        if self._running:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PATIENCE):
                    await self._over.wait()
        self._over = None
        await asyncio.sleep(HUSH)

    def _let_in(self) -> None:
        self._quiet = False
