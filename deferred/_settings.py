"""What a supervisor is made with: checked, with the mend in the message."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, get_args

from deferred._limits import Limit
from deferred._options import check_functions
from deferred._retry import seconds

__all__ = ["TaskScope", "check_choice", "check_drain_timeout", "check_flag", "check_limits", "check_scope"]

TaskScope = Callable[..., AbstractAsyncContextManager[Any]]

DRAIN_TIMEOUT = 20.0
"""Seconds: ten below the 30 that Kubernetes, gunicorn and most hosts leave between SIGTERM and SIGKILL."""


def check_drain_timeout(given: float | None) -> float:
    if given is not None:
        return seconds(given, "drain_timeout", zero=True)
    text = os.environ.get("DEFERRED_DRAIN_TIMEOUT")
    if text is None:
        return DRAIN_TIMEOUT
    try:
        return seconds(float(text), "DEFERRED_DRAIN_TIMEOUT", zero=True)
    except ValueError as error:
        message = f"DEFERRED_DRAIN_TIMEOUT must be a number of seconds, 0 or more, not {text!r}"
        raise ValueError(message) from error


def check_choice(value: str, choices: Any, what: str) -> str:
    if value not in get_args(choices):
        message = f"{what} must be one of {', '.join(map(repr, get_args(choices)))}, not {value!r}"
        raise ValueError(message)
    return value


def check_flag(value: object, what: str) -> bool:
    if not isinstance(value, bool):
        message = f"{what} must be True or False, not {value!r}"
        raise TypeError(message)
    return value


def check_limits(limits: Mapping[str, Limit]) -> Mapping[str, Limit]:
    if not isinstance(limits, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]  # callers may be untyped
        message = f"limits must map names to Limit(running=..., pending=...), not {limits!r}"
        raise TypeError(message)
    for name, limit in limits.items():
        if not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance]  # as above
            message = f"the names in limits must be texts, not {name!r}"
            raise TypeError(message)
        if not isinstance(limit, Limit):  # pyright: ignore[reportUnnecessaryIsInstance]  # callers may be untyped
            message = f"limits[{name!r}] must be a Limit(running=..., pending=...), not {limit!r}"
            raise TypeError(message)
    return limits


def check_scope(factory: TaskScope) -> TaskScope:
    """Return the factory as a function of the task, whether or not it takes it.

    What has a default is the factory's own (a pool's ``timeout=None``), unless it is called ``task``.
    """
    check_functions((factory,), "task_scope")
    try:
        signature = inspect.signature(factory)
    except ValueError:  # a callable without a signature
        return factory
    first = next(iter(signature.parameters.values()), None)
    takes = first is not None and (
        first.kind is first.VAR_POSITIONAL
        or (
            first.kind in (first.POSITIONAL_ONLY, first.POSITIONAL_OR_KEYWORD)
            and (first.default is first.empty or first.name == "task")
        )
    )
    try:
        signature.bind(*(None for _ in range(takes)))
    except TypeError as error:
        message = f"task_scope must be a function of the task, or of nothing, not {factory!r}: {error}"
        raise TypeError(message) from error
    return factory if takes else _without_task(factory)


def _without_task(factory: TaskScope) -> TaskScope:
    def call(_task: object) -> AbstractAsyncContextManager[Any]:
        return factory()

    return call
