"""Failures on demand: tasks that fail, hang or take their time because a test says so."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from deferred._limits import check_count
from deferred._options import CallNext
from deferred.testing._matching import Call, Registration

__all__ = ["Fault", "strike"]


class Fault:
    """What goes wrong with the attempts of some task. Lives as long as its kit.

    Args:
        call: The task it is meant for.
        raised: Where to note what it raises.
        error: What to raise, if it is to raise.
        delay: Otherwise, seconds to wait before the attempt; None for ever.
        times: How many attempts it hits; None for all.

    Attributes:
        struck: How many attempts it has hit.
    """

    def __init__(
        self,
        call: Call,
        raised: list[BaseException],
        *,
        error: BaseException | type[BaseException] | None = None,
        delay: float | None = None,
        times: int | None = None,
    ) -> None:
        kind: type = error if isinstance(error, type) else type(error)
        if error is not None and not issubclass(kind, BaseException):
            message = f"an attempt fails with an exception, or a class of exceptions, not with {error!r}"
            raise TypeError(message)
        self._call = call
        self._error = error
        self._delay = delay  # seconds; None for ever
        self._times = None if times is None else check_count(times, "times")
        self.struck: int = 0
        self._raised = raised

    def hits(self, registration: Registration) -> bool:
        """Say whether the next attempt of this task is hit."""
        return (self._times is None or self.struck < self._times) and self._call.asks_for(registration)

    async def strike(self, call_next: CallNext) -> Any:
        """Do what goes wrong instead of, or before, the attempt."""
        self.struck += 1
        if self._error is not None:
            error = self._error() if isinstance(self._error, type) else self._error
            self._raised.append(error)
            raise error.with_traceback(None)  # one object for all attempts, which would grow by each
        if self._delay is None:
            await asyncio.get_running_loop().create_future()
        else:
            await asyncio.sleep(self._delay)
        return await call_next()


async def strike(faults: Iterable[Fault], registration: Registration | None, call_next: CallNext) -> Any:
    """Make an attempt, or let the first fault that is meant for it happen."""
    if registration is not None:
        for fault in faults:
            if fault.hits(registration):
                return await fault.strike(call_next)
    return await call_next()
