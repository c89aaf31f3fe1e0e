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


class Rooms:
    """The lines before the limits of one supervisor. Lives as long as it.

    Args:
        free: Says how many more a limit takes now.
    """

    __slots__ = ("_free", "_let_in", "_lines")

    def __init__(self, free: Callable[[Line], int]) -> None:
        self._free = free
        self._lines: dict[Line, OrderedDict[asyncio.Future[None], Callable[[], None]]] = {}  # with what forgets them
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
            finally:
                if waiter.done() and not waiter.cancelled():
                    self._let_in[line] -= 1
                    if not self._let_in[line]:
                        del self._let_in[line]  # it may be all that holds a context
                    if not loop.is_closed():
                        loop.call_soon(self.admit, line)  # if this one takes no room after all
                elif waiting.pop(waiter, waiter) is None and not waiting:
                    del self._lines[line]

    def admit(self, line: Line) -> None:
        """Let in as many of a line as there is room for."""
        waiting = self._lines.get(line)
        if waiting is None:
            return
        room = self._free(line) - self._let_in[line]
        while waiting and room > 0:
            waiter, forget = waiting.popitem(last=False)
            forget()
            if not waiter.done():  # else it has given up, and does not know it yet
                waiter.set_result(None)
                self._let_in[line] += 1
                room -= 1
        if not waiting:
            del self._lines[line]
