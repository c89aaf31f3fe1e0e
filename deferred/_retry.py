"""When to try again, and after how long: arithmetic only.

Nothing here waits, and nothing here knows a clock: `deferred._run` asks for a delay and
keeps it.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, Protocol, TypeAlias

import msgspec
from msgspec.structs import force_setattr

__all__ = ["Retry", "RetryPolicy", "Verdict", "seconds"]

Verdict: TypeAlias = bool | float | timedelta | None
Predicate: TypeAlias = Callable[[BaseException], Verdict | Awaitable[Verdict]]


def seconds(value: object, what: str, *, zero: bool = False) -> float:
    """Return `value` as a finite number of seconds.

    Args:
        value: A number, or a `datetime.timedelta`.
        what: The argument's name, for the message.
        zero: Whether 0 is allowed.

    Raises:
        TypeError: It is neither a number nor a timedelta.
        ValueError: It is negative, NaN, infinite, or 0 where that means nothing.
    """
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, int | float):
        message = f"{what} must be a number of seconds, not {type(value).__name__}"
        raise TypeError(message)
    if value < 0 or not value <= sys.float_info.max or (value == 0 and not zero):  # NaN compares with nothing
        bound = "0 or more" if zero else "more than 0"
        message = f"{what} must be {bound} and finite, not {value!r}"
        raise ValueError(message)
    return float(value)


class RetryPolicy(Protocol):
    """What a task asks of its retry policy; implement it to bring your own."""

    @property
    def timeout(self) -> float | None:
        """Seconds that all attempts and waits may take together, or None."""
        ...

    def verdict(self, error: BaseException, /) -> Verdict | Awaitable[Verdict]:
        """Say whether to retry (a bool), or after how long (seconds)."""
        ...

    def exhausted(self, attempt: int, elapsed: float, /) -> bool:
        """Say whether the attempt of this number (from 1), ended after `elapsed` seconds in all, was the last."""
        ...

    def delay(self, attempt: int, error: BaseException, /) -> float:
        """Return the seconds to wait after the attempt of this number (from 1) failed with `error`."""
        ...


class Retry(msgspec.Struct, frozen=True, kw_only=True):
    """A retry policy: which errors, how often, how long between.

    The wait after attempt *n* is drawn uniformly from
    ``[(1 - wait_jitter) * b, b]`` with ``b = min(wait_max, wait_initial * wait_exp_base ** (n - 1))``:
    with the default jitter of 1.0 that is the "full jitter" of the AWS Architecture Blog's
    *Exponential Backoff and Jitter*, which spreads a herd best. The other defaults are the
    field's (stamina's), but for `attempts`: three, because a response has already been
    given and nobody waits for a tenth try.

    Args:
        on: Which errors to retry: an exception class, a tuple of them, or a function of the
            error that returns a bool, or the seconds to wait (a Retry-After), or an
            awaitable of one of these. It has no default: to retry everything is a decision.
        attempts: How many attempts in all, the first included; None for no limit.
        wait_initial: Seconds to wait after the first failure.
        wait_max: Seconds that no wait exceeds (a delay that `on` returns is taken as it is).
        wait_exp_base: What each further wait is multiplied with.
        wait_jitter: The share of each wait that is random, 0.0 (none) to 1.0 (all of it).
        timeout: Seconds that all attempts and waits may take together; None for no limit.

    Raises:
        TypeError: `on` is no exception class, tuple of them, or function.
        ValueError: A number is out of its range.

    Example:
        >>> policy = Retry(on=ConnectionError, wait_initial=1.0, wait_max=5.0, wait_jitter=0.0)
        >>> [policy.delay(attempt) for attempt in (1, 2, 3, 4, 10_000)]
        [1.0, 2.0, 4.0, 5.0, 5.0]
    """

    on: type[BaseException] | tuple[type[BaseException], ...] | Predicate
    attempts: int | None = 3
    wait_initial: float = 0.1
    wait_max: float = 5.0
    wait_exp_base: float = 2.0
    wait_jitter: float = 1.0
    timeout: float | None = 45.0

    def __post_init__(self) -> None:
        """Refuse what could only fail later, in the background."""
        _check_on(self.on)
        if self.attempts is not None:
            if isinstance(self.attempts, bool) or not isinstance(self.attempts, int):  # pyright: ignore[reportUnnecessaryIsInstance]  # callers may be untyped
                message = f"attempts must be a whole number or None, not {self.attempts!r}"
                raise TypeError(message)
            if self.attempts < 1:
                message = (
                    f"attempts counts the first one too, so it is at least 1, not {self.attempts}; "
                    "for no retries leave the retry policy out"
                )
                raise ValueError(message)
        for what in ("wait_initial", "wait_max"):
            force_setattr(self, what, seconds(getattr(self, what), what, zero=True))  # a timedelta becomes a number
        if self.timeout is not None:
            force_setattr(self, "timeout", seconds(self.timeout, "timeout"))
        for what in ("wait_exp_base", "wait_jitter"):
            if isinstance(getattr(self, what), timedelta):
                message = f"{what} must be a number, not {getattr(self, what)!r}"
                raise TypeError(message)
        if seconds(self.wait_exp_base, "wait_exp_base") < 1:
            message = f"wait_exp_base must be 1 or more, not {self.wait_exp_base!r}"
            raise ValueError(message)
        if not 0 <= seconds(self.wait_jitter, "wait_jitter", zero=True) <= 1:
            message = f"wait_jitter is a share between 0.0 and 1.0, not {self.wait_jitter!r}"
            raise ValueError(message)

    def verdict(self, error: BaseException, /) -> Verdict | Awaitable[Verdict]:
        """Say whether `error` is to be retried, or after how many seconds."""
        on: Any = self.on
        return isinstance(error, on) if isinstance(on, type | tuple) else on(error)

    def exhausted(self, attempt: int, _elapsed: float = 0.0, /) -> bool:
        """Say whether attempt number `attempt` (from 1) was the last."""
        return self.attempts is not None and attempt >= self.attempts

    def delay(self, attempt: int, _error: BaseException | None = None, /) -> float:
        """Return the seconds to wait after attempt number `attempt` (from 1) failed."""
        try:
            backoff = min(self.wait_max, self.wait_initial * self.wait_exp_base ** (attempt - 1))
        except OverflowError:  # beyond what a float holds is beyond every bound
            backoff = self.wait_max if self.wait_initial else 0.0
        return backoff * (1.0 - self.wait_jitter * random.random())  # noqa: S311  # jitter, no secret


def _check_on(on: Any) -> None:
    if isinstance(on, type | tuple):
        classes: Any = on if isinstance(on, tuple) else (on,)  # pyright: ignore[reportUnknownVariableType]  # checked below
        if not classes:
            message = "on=() retries nothing: name the errors to retry, or leave the retry policy out"
            raise ValueError(message)
        for item in classes:
            if not (isinstance(item, type) and issubclass(item, BaseException)):
                message = f"on must name exception classes, not {item!r}"
                raise TypeError(message)
    elif not callable(on):
        message = f"on must be an exception class, a tuple of them, or a function of the error, not {on!r}"
        raise TypeError(message)
