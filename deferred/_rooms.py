"""Who waits until a limit has room, and who is let in.

Rules of this file: one line for each limit, first come, first served; no more are let in than
there is room, however many wait; whoever is let in and does not take the room leaves it to the
next. Everything here happens on the event loop.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable
from typing import TypeAlias

__all__ = ["Line", "Rooms"]

Line: TypeAlias = Hashable
"""What stands for a limit."""

Waiting: TypeAlias = OrderedDict[asyncio.Future[None], Callable[[], None]]
"""Who waits in a line, with what forgets that."""

_NOBODY: Waiting = OrderedDict()


class Rooms:
    """The lines before the limits of one supervisor. Lives as long as it.

    Args:
        free: Says how many more a limit takes now.
    """

    __slots__ = ("_free", "_let_in", "_lines")

    def __init__(self, free: Callable[[Line], int]) -> None:
        self._free = free
        self._lines: dict[Line, Waiting] = {}
        self._let_in: Counter[Line] = Counter()  # who has not had the time to take the room

    def __bool__(self) -> bool:
        """Say whether anybody waits."""
        return bool(self._lines)

    async def wait(self, reached: Callable[[], Line | None], note: Callable[[], Callable[[], None]]) -> None:
        """Wait until no limit is reached; there is room then until the caller awaits again.

        Args:
            reached: Says which limit to wait for now; None for none.
            note: Called when a wait begins; what it returns, when that is over.
        """
        loop = asyncio.get_running_loop()
        line = None
        while (now := reached()) is not None:
            was, line = line, now
            waiter = loop.create_future()
            waiting = self._lines.setdefault(line, OrderedDict())
            waiting[waiter] = note()
            if line == was:  # somebody who never waited has come between: it is still its turn
                waiting.move_to_end(waiter, last=False)
            try:
                await waiter
            except BaseException:  # cancelled; or its loop is closed, and nobody will ever turn it
                if waiter.done() and not waiter.cancelled():
                    self._enter(line, loop)
                else:
                    self._give_up(line, waiter)
                raise
            self._enter(line, loop)

    def _enter(self, line: Line, loop: asyncio.AbstractEventLoop) -> None:
        left = self._let_in.pop(line, 1) - 1
        if left:  # else the line is not kept: it may be a context
            self._let_in[line] = left
        if not loop.is_closed():
            loop.call_soon(self.admit, line)  # if this one takes no room after all

    def _give_up(self, line: Line, waiter: asyncio.Future[None]) -> None:
        waiting = self._lines.get(line, _NOBODY)
        if (forget := waiting.pop(waiter, None)) is not None:
            forget()
            if not waiting:
                del self._lines[line]

    def admit(self, line: Line) -> None:
        """Let in as many of a line as there is room for."""
        if line in self._lines:
            self._let(line, self._free(line) - self._let_in[line])

    def dismiss(self) -> None:
        """Have all of them look again, whatever room there is: nobody is let in any more."""
        for line, waiting in tuple(self._lines.items()):
            self._let(line, len(waiting))

    def clear(self) -> None:
        """Forget who waits: they do so on a loop that is gone, or in another process."""
        self._lines.clear()
        self._let_in.clear()

    def _let(self, line: Line, count: int) -> None:
        waiting = self._lines[line]
        while waiting and count > 0:
            waiter, forget = waiting.popitem(last=False)
            forget()
            # Else it has given up, and does not know it yet; or nobody will ever turn its loop again.
            if not waiter.done() and not waiter.get_loop().is_closed():
                waiter.set_result(None)
                self._let_in[line] += 1
                count -= 1
        if not waiting:
            del self._lines[line]
