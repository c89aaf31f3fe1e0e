"""Retry objects of stamina and tenacity, taken as retry policies.

Neither library is imported: an object that one of them has made has loaded it. What they
decide, and how long they wait, is asked of them; the waiting is ours, so that a drain can
cut it short and other tasks are not held up.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Awaitable
from datetime import timedelta
from typing import Any

import msgspec

__all__ = ["adapted"]


def adapted(retry: Any) -> Any:
    """Return `retry` as a retry policy if stamina or tenacity made it, else unchanged.

    Raises:
        TypeError: It is a stamina caller that is not bound to an error.
    """
    stamina = sys.modules.get("stamina")
    if stamina is not None:
        if isinstance(retry, stamina.RetryingCaller | stamina.AsyncRetryingCaller):
            message = f"{retry!r} does not say what to retry: pass `caller.on(SomeError)`"
            raise TypeError(message)
        if isinstance(retry, stamina.BoundRetryingCaller | stamina.BoundAsyncRetryingCaller):
            return _of_stamina(retry._on, retry._caller._context_kws)
    tenacity = sys.modules.get("tenacity")
    if tenacity is not None and isinstance(retry, tenacity.BaseRetrying):
        return _Tenacity(retry)
    return retry


def _seconds(value: Any) -> Any:
    return value.total_seconds() if isinstance(value, timedelta) else value


def _of_stamina(on: Any, settings: dict[str, Any]) -> Any:
    return _Stamina(on=on, **{name: _seconds(value) for name, value in settings.items()})


class _Stamina(msgspec.Struct, frozen=True, kw_only=True):
    """stamina's rules: ``min(wait_max, wait_initial * wait_exp_base ** (n - 1) + random(0, wait_jitter))``."""

    on: Any
    attempts: int | None
    timeout: float | None
    wait_initial: float
    wait_max: float
    wait_jitter: float
    wait_exp_base: float

    def verdict(self, error: BaseException, /) -> Any:
        """Ask the error hook, or compare the classes."""
        on: Any = self.on
        return isinstance(error, on) if isinstance(on, type | tuple) else on(error)

    def exhausted(self, attempt: int, _elapsed: float, /) -> bool:
        """Say whether that attempt was the last."""
        return self.attempts is not None and attempt >= self.attempts

    def delay(self, attempt: int, _error: BaseException, /) -> float:
        """Return the seconds to wait."""
        try:
            backoff = self.wait_initial * self.wait_exp_base ** (attempt - 1)
        except OverflowError:
            backoff = self.wait_max
        return min(self.wait_max, backoff + random.uniform(0, self.wait_jitter))  # noqa: S311  # jitter, no secret


class _Tenacity:
    """The `retry`, `stop` and `wait` of a tenacity object; its other callbacks are not called."""

    timeout = None  # tenacity's stop conditions know the time themselves

    def __init__(self, retrying: Any) -> None:
        self._retrying = retrying

    def _state(self, attempt: int, error: BaseException | None, elapsed: float = 0.0) -> Any:
        state = sys.modules["tenacity"].RetryCallState(self._retrying, None, (), {})
        state.attempt_number = attempt
        if error is not None:
            state.set_exception((type(error), error, error.__traceback__))
        state.outcome_timestamp = state.start_time + elapsed
        return state

    def verdict(self, error: BaseException, /) -> bool | Awaitable[bool]:
        """Ask its ``retry``, which may be asynchronous."""
        answer: bool | Awaitable[bool] = self._retrying.retry(self._state(1, error))
        return answer

    def exhausted(self, attempt: int, elapsed: float, /) -> bool:
        """Ask its ``stop``."""
        return bool(self._retrying.stop(self._state(attempt, None, elapsed)))

    def delay(self, attempt: int, error: BaseException, /) -> float:
        """Ask its ``wait``."""
        return float(self._retrying.wait(self._state(attempt, error)))
