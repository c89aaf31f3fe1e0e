"""How much happened in each second."""

from __future__ import annotations

from collections import deque
from typing import Any

__all__ = ["Counts"]

_SECONDS = 180


class Counts:
    """The throughput of one supervisor, second by second. Lives as long as its recorder.

    A second's account is closed by the first event after it: in the next second or much later,
    everything counted until then happened in the second of the last event.

    Attributes:
        requests: How many units of work began, ever.
        next: When the present second is over, on the loop's clock.
    """

    def __init__(self, launcher: Any) -> None:
        self.requests = 0
        self.next = 0.0
        self._launcher = launcher
        self._second = 0
        self._counted = (0, 0, 0)
        self._seconds: deque[tuple[int, int, int, int]] = deque(maxlen=_SECONDS)

    def turn(self, at: float) -> None:
        """Close the account of the second in which something happened last; `at` is later."""
        counts = (self.requests, self._launcher.succeeded, sum(self._launcher.unhappy.values()))
        if self.next:
            begun, good, bad = (max(0, new - old) for new, old in zip(counts, self._counted, strict=True))
            self._seconds.append((self._second, begun, good, bad))
        self._counted = counts
        self._second = int(at)
        self.next = self._second + 1.0

    def latest(self, length: int = 60) -> list[tuple[int, int, int]]:
        """Return requests, tasks that succeeded, and others, for each of the last `length` seconds."""
        now = self._launcher.now()
        if now >= self.next:
            self.turn(now)
        counts = {second: numbers for second, *numbers in self._seconds}
        first = int(now) - length
        return [(a, b, c) for a, b, c in (counts.get(first + place, (0, 0, 0)) for place in range(length))]
