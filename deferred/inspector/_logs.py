"""The log lines of each task, found by the context that wrote them.

Rules of this file: the handler is put on the root logger with the first request, when the app
has set up its logging (`logging.basicConfig` does nothing where a handler is there before it);
it prints nothing, and hides nothing that would be printed without it.
"""

from __future__ import annotations

import contextlib
import logging
import weakref
from typing import Any, Protocol

from deferred._run import current_task
from deferred._supervisor import Supervisor
from deferred._task import current_unit
from deferred.inspector._records import Line
from deferred.inspector._redact import redact

__all__ = ["LogLines"]

_LONGEST = 1000
_OURS = "deferred"


class Keeper(Protocol):
    """Who keeps the lines."""

    supervisor: Supervisor

    def add_line(self, unit: Any, line: Line) -> None:
        """Keep a line."""
        ...


class LogLines(logging.Handler):
    """A handler that gives each line to the record of the request it belongs to.

    It lives as long as its keeper, which the logging module does not keep alive.
    """

    def __init__(self, keeper: Keeper) -> None:
        super().__init__()
        self._keeper = weakref.ref(keeper)
        self._ended = False
        weakref.finalize(keeper, logging.getLogger().removeHandler, self)

    def install(self) -> None:
        """Listen, if that is not so already; an app that sets up its logging late has taken all handlers off."""
        if not self._ended and self not in logging.getLogger().handlers:
            logging.getLogger().addHandler(self)

    def uninstall(self) -> None:
        """Listen no more, now and later."""
        self._ended = True
        logging.getLogger().removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line; a message that cannot be made is kept as what it was made of."""
        self._stand_back(record)
        keeper = self._keeper()
        unit: Any = current_unit.get(None)
        if keeper is None or unit is None or unit._host is not keeper.supervisor._launcher:
            return
        if record.name == _OURS or record.name.startswith(f"{_OURS}."):
            return  # what we say of a task is seen in its row
        with contextlib.suppress(BaseException):  # arguments of anybody's
            task = current_task()
            text = record.getMessage()
            if record.exc_info and record.exc_info[0] is not None:
                text = f"{text} ({record.exc_info[0].__qualname__})"
            line = Line(
                keeper.supervisor._launcher.now(),
                record.levelname[:20],
                record.name[:100],
                redact(text, _LONGEST),
                None if task is None else task.id,
            )
            keeper.add_line(unit, line)

    def _stand_back(self, record: logging.LogRecord) -> None:
        """Print what Python prints of its own accord where an app has set up no logging at all."""
        last = logging.lastResort
        if last is None or record.levelno < last.level:
            return
        logger: logging.Logger | None = logging.getLogger(record.name)
        while logger is not None:
            if any(not isinstance(handler, LogLines) for handler in logger.handlers):
                return
            logger = logger.parent if logger.propagate else None
        if next((each for each in logging.getLogger().handlers if isinstance(each, LogLines)), None) is self:
            last.handle(record)
