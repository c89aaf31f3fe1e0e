"""A loop whose clock jumps to the next timer as soon as nothing else is to be done."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any

MOST_TURNS = 1_000_000


class _Selector(selectors.DefaultSelector):  # type: ignore[misc, valid-type]  # a class chosen at run time
    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        """Look for what is ready; instead of waiting, move the clock."""
        ready = super().select(0)
        if not ready and timeout is None:
            raise AssertionError("nothing is left to happen: the program hangs")
        if not ready and timeout:
            self.now += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop in a time of its own. No threads: nothing would wait for them."""

    def __init__(self) -> None:
        self._virtual = _Selector()
        super().__init__(self._virtual)
        self.turns = 0

    def time(self) -> float:
        """Return the virtual time in seconds."""
        return self._virtual.now

    def pass_by(self, seconds: float) -> None:
        """Move the clock."""
        self._virtual.now += seconds

    def _run_once(self) -> None:
        self.turns += 1
        if self.turns > MOST_TURNS:
            raise AssertionError("the program spins")
        super()._run_once()  # type: ignore[misc]  # known to every asyncio loop


def run(main: Coroutine[Any, Any, Any]) -> Any:
    """Run it to its end on a loop of its own, in no time; a program that hangs or spins is an error."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)
