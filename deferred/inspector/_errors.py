"""An exception as data: its words and the lines it passed, never the values in them."""

from __future__ import annotations

import contextlib
import linecache
from types import TracebackType
from typing import Any

import msgspec

from deferred.inspector._redact import redact, shorten

__all__ = ["ErrorRecord", "capture", "format_error"]

_FRAMES = 40
_CHAIN = 5
_LEAVES = 10
_MOST = 50
_TEXT = 2000


class ErrorRecord(msgspec.Struct, frozen=True):
    """What is kept of an exception. Lives as long as the record of its task.

    Attributes:
        kind: Its class, with the module unless that is builtins.
        text: What it says, secrets left out.
        frames: File, line and function, the innermost last.
        before: The exception that it was raised from, or while handling.
        direct: Whether it was raised *from* that one.
        leaves: Those in an exception group.
    """

    kind: str
    text: str
    frames: tuple[tuple[str, int, str], ...] = ()
    before: ErrorRecord | None = None
    direct: bool = False
    leaves: tuple[ErrorRecord, ...] = ()

    @property
    def line(self) -> str:
        """The line that a traceback ends with."""
        return f"{self.kind}: {self.text}" if self.text else self.kind

    @property
    def size(self) -> int:
        """About how many bytes it takes."""
        more = sum(leaf.size for leaf in self.leaves) + (self.before.size if self.before is not None else 0)
        return 200 + 2 * len(self.text) + 120 * len(self.frames) + more


def capture(error: BaseException) -> ErrorRecord:
    """Return what is to be kept of `error`; works for any exception, however hostile, and keeps a bounded number."""
    return _capture(error, 0, frozenset(), [_MOST])


def _capture(error: BaseException, depth: int, seen: frozenset[int], room: list[int]) -> ErrorRecord:
    """Keep one of them; `room` is how many more there may be in the whole tree."""
    room[0] -= 1
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    try:
        text = redact(str(error), _TEXT)
    except BaseException:  # noqa: BLE001  # code of anybody's; the type is told then
        text = ""
    seen |= {id(error)}
    before: BaseException | None = None
    frames: tuple[tuple[str, int, str], ...] = ()
    direct = False
    leaves: tuple[ErrorRecord, ...] = ()
    with contextlib.suppress(BaseException):  # an exception may refuse to be looked at
        frames = _frames(error.__traceback__)
        direct = error.__cause__ is not None
        before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        if isinstance(error, BaseExceptionGroup) and depth < _CHAIN:
            group: Any = error  # pyright: ignore[reportUnknownVariableType]  # of any exceptions
            leaves = tuple(_capture(leaf, depth + 1, seen, room) for leaf in group.exceptions[:_LEAVES] if room[0] > 0)
    known = before is None or id(before) in seen or depth >= _CHAIN or room[0] <= 0
    return ErrorRecord(
        name,
        text,
        frames,
        None if before is None or known else _capture(before, depth + 1, seen, room),
        direct,
        leaves,
    )


def _frames(trace: TracebackType | None) -> tuple[tuple[str, int, str], ...]:
    found: list[tuple[str, int, str]] = []
    while trace is not None:
        code = trace.tb_frame.f_code
        found.append((code.co_filename, trace.tb_lineno or 0, code.co_qualname))
        if len(found) > _FRAMES:
            del found[_FRAMES // 2]  # both ends tell more than the middle of a recursion
        trace = trace.tb_next
    return tuple(found)


def format_error(error: ErrorRecord) -> str:
    """Return the traceback as Python would print it, source lines read now, secrets left out."""
    lines: list[str] = []
    if error.before is not None:
        lines.append(format_error(error.before))
        lines.append(
            "\nThe above exception was the direct cause of the following exception:\n"
            if error.direct
            else "\nDuring handling of the above exception, another exception occurred:\n"
        )
    if error.frames:
        lines.append("Traceback (most recent call last):")
    for file, number, function in error.frames:
        lines.append(f'  File "{file}", line {number}, in {function}')
        if source := linecache.getline(file, number).strip():
            lines.append(f"    {redact(shorten(source, 200))}")
    lines.append(error.line)
    for place, leaf in enumerate(error.leaves, 1):
        lines.append(f"  +-- {place} of the group")
        lines += [f"  | {line}" for line in format_error(leaf).splitlines()]
    return "\n".join(lines)
