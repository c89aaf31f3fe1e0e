"""``with supervisor.context()``: a context for as long as a block of code."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from contextvars import Token
from types import TracebackType
from typing import Any

from deferred._context import DeferredContext
from deferred._task import Unit, current_unit

__all__ = ["Scope"]

logger = logging.getLogger("deferred")

Open = Callable[[Callable[[Any], str] | None, Any], DeferredContext]


class Scope:
    """What ``supervisor.context()`` returns; lives as long as the ``with`` block."""

    __slots__ = ("_label", "_on_loop", "_open", "_token", "opened")

    opened: DeferredContext

    def __init__(self, open_context: Open, on_loop: Callable[..., None], label: str | None) -> None:
        self._open = open_context
        self._on_loop = on_loop
        self._label = label
        self._token: Token[Unit] | None = None

    def __enter__(self) -> DeferredContext:
        if hasattr(self, "opened"):
            message = "this context was entered before; each `with` needs a `supervisor.context()` of its own"
            raise RuntimeError(message)
        self.opened = self._open(None, self._label)
        self._token = current_unit.set(self.opened)
        return self.opened

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self._token is not None:
            with contextlib.suppress(ValueError):  # left in another context than it was entered in
                current_unit.reset(self._token)
            self._token = None
        ctx = self.opened
        if ctx.pending or ctx._waiting:
            self._on_loop(ctx.end, error)  # it may be left in another thread than the loop's
        else:
            ctx.end(error)

    def __del__(self) -> None:
        if self._token is not None:
            waiting = len(self.opened.tasks)
            logger.warning(
                "a context (%r) was dropped without being closed, %d task(s) pending: use `with supervisor.context():`",
                self.opened.label,
                waiting,
            )
            self._on_loop(self.opened.end)
