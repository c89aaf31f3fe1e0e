"""How tasks are to be run: options, each checked where it is given."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Literal, TypeAlias, get_args

import msgspec
from msgspec import UNSET

from deferred._adapters import adapted
from deferred._events import Event, TaskFailed
from deferred._redelivery import Redelivery
from deferred._retry import RetryPolicy, seconds

__all__ = ["CallNext", "ErrorHook", "Hook", "TaskOptions", "When", "check_functions"]

When: TypeAlias = Literal["always", "success", "error"]
CallNext: TypeAlias = Callable[..., Awaitable[Any]]
Hook: TypeAlias = Callable[[Event], Awaitable[object] | object]
ErrorHook: TypeAlias = Callable[[TaskFailed], Awaitable[object] | object]


class TaskOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How tasks are to be run: the supervisor's defaults, overlaid by ``with_options``."""

    name: str | None = None
    retry: RetryPolicy | None = None
    timeout: float | None = None
    when: When = "always"
    middleware: tuple[Callable[..., Awaitable[Any]], ...] = ()
    on_error: tuple[ErrorHook, ...] = ()
    redelivery: Redelivery | None = None

    def overlay(
        self,
        *,
        name: str | msgspec.UnsetType = UNSET,
        retry: RetryPolicy | msgspec.UnsetType | None = UNSET,
        timeout: float | msgspec.UnsetType | None = UNSET,
        when: When | msgspec.UnsetType = UNSET,
        middleware: Iterable[Callable[..., Awaitable[Any]]] = (),
        on_error: ErrorHook | None = None,
    ) -> TaskOptions:
        """Return these options with the given ones on top, or refuse them by name."""
        return TaskOptions(
            name=self.name if name is UNSET else _check_name(name),
            retry=self.retry if retry is UNSET else _check_retry(retry),
            timeout=self.timeout if timeout is UNSET else _check_timeout(timeout),
            when=self.when if when is UNSET else _check_when(when),
            middleware=(*self.middleware, *check_functions(middleware, "middleware")),
            on_error=self.on_error if on_error is None else (*self.on_error, *check_functions((on_error,), "on_error")),
        )

    @property
    def plain(self) -> bool:
        """Whether one attempt is all there is, with nothing around it."""
        return self.retry is None and self.timeout is None and not self.middleware and self.redelivery is None


def _check_name(name: object) -> str:
    if not isinstance(name, str) or not len(name):
        message = f"name must be a text that is not empty, not {name!r}"
        raise TypeError(message)
    return "".join([name])  # noqa: FLY002  # a plain text, whatever subclass of it was given


def _check_retry(retry: Any) -> RetryPolicy | None:
    policy = adapted(retry)
    if policy is None:
        return None
    if not isinstance(policy, type) and all(
        hasattr(policy, part) for part in ("timeout", "verdict", "exhausted", "delay")
    ):
        if policy.timeout is not None:
            seconds(policy.timeout, "the timeout of the retry policy")
        return policy  # type: ignore[no-any-return]  # checked by its parts
    message = f"retry must be a Retry(on=...), a retry object of stamina or tenacity, or None, not {retry!r}"
    raise TypeError(message)


def _check_timeout(timeout: object) -> float | None:
    return None if timeout is None else seconds(timeout, "timeout")


def _check_when(when: object) -> When:
    for known in get_args(When):
        if when == known:
            return known  # type: ignore[no-any-return]  # one of the literals
    message = f"when must be one of {', '.join(map(repr, get_args(When)))}, not {when!r}"
    raise ValueError(message)


def check_functions(functions: Any, what: str) -> tuple[Any, ...]:  # being checked here
    """Return `functions` as a tuple of callables, or refuse them by the argument's name."""
    try:
        known: tuple[Any, ...] = (functions,) if callable(functions) else tuple(functions)
    except TypeError:  # one thing, which is refused by its name
        known = (functions,)
    for function in known:
        if not callable(function):
            message = f"{what} must be functions, not {function!r}"
            raise TypeError(message)
    return known
