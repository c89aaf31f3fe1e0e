"""Where each bar of a waterfall begins and ends: the same for every way of drawing it."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from deferred._events import Execution
from deferred.inspector._views import AttemptView, RequestView, RowView

__all__ = ["Bar", "Row", "duration", "heading", "lay_out", "printable"]

_INSIDE = Execution.SEQUENTIAL.value
_ENDS = {"failed": "failed", "cancelled": "cancelled", "abandoned": "failed", "discarded": "cancelled"}


class Bar(msgspec.Struct, frozen=True):
    """A piece of a row, from `start` to `end` (seconds since the request began).

    Attributes:
        kind: ``"request"``, ``"inside"`` (a step, awaited by the handler), ``"wait"``, ``"done"``,
            ``"failed"``, ``"cancelled"``, ``"backoff"`` or ``"running"``.
    """

    kind: str
    start: float
    end: float


class Row(msgspec.Struct, frozen=True):
    """A line of a waterfall.

    Attributes:
        name: What stands at its beginning.
        depth: 0 for the request itself, 1 for what belongs to it.
        outlives: Whether the response does not wait for it.
        bars: From left to right.
        took: Seconds that the work itself took, without the wait before it; None while it runs.
        error: What went wrong; empty when nothing did.
    """

    name: str
    depth: int
    outlives: bool
    bars: list[Bar]
    took: float | None
    error: str = ""


def lay_out(request: RequestView) -> list[Row]:
    """Return the rows of a request's waterfall, its own first."""
    whole = request.span
    sent = request.response
    own = [Bar("request" if sent is not None else "running", 0.0, sent if sent is not None else whole)]
    rows = [Row("request", 0, False, own, sent, request.error)]
    for row in request.rows:
        bars = list(_bars(row, whole))
        begun = row.attempts[0].started if row.attempts else row.created
        took = None if row.ended is None else row.ended - begun
        outlives = row.kind == "task" and row.execution != _INSIDE
        rows.append(Row(printable(row.name), 1, outlives, bars, took, row.error))
    return rows


def _bars(row: RowView, whole: float) -> Iterator[Bar]:
    end = whole if row.ended is None else row.ended
    started = row.attempts[0].started if row.attempts else end
    if started > row.created and row.kind == "task":
        yield Bar("wait", row.created, started)
    for place, attempt in enumerate(row.attempts):
        last = place == len(row.attempts) - 1
        stop = attempt.ended if attempt.ended is not None else end
        yield Bar(_kind(row, attempt, last=last), attempt.started, stop)
        if attempt.backoff:
            follows = end if last else row.attempts[place + 1].started
            yield Bar("backoff", stop, max(stop, follows))


def _kind(row: RowView, attempt: AttemptView, *, last: bool) -> str:
    if attempt.ended is None:
        return "running"
    if not last or attempt.backoff:
        return "failed"
    good = "inside" if row.kind == "step" or row.execution == _INSIDE else "done"
    return _ENDS.get(row.state, good)


def duration(seconds: float | None) -> str:
    """Return a time as people read it.

    Example:
        >>> duration(0.0014), duration(0.181), duration(12.34), duration(75), duration(None)
        ('1.4 ms', '181 ms', '12.3 s', '1 min 15 s', '…')
        >>> duration(0)  # a loop's clock may tick in whole milliseconds
        '< 1 ms'
    """
    if seconds is None:
        return "…"
    milliseconds = seconds * 1000
    if milliseconds < 0.05:
        return "< 0.1 ms" if seconds else "< 1 ms"
    if milliseconds < 9.95:
        return f"{milliseconds:.1f} ms"
    if milliseconds < 999.5:
        return f"{milliseconds:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"


def heading(request: RequestView) -> tuple[str, str]:
    """Return what stands above a waterfall, left and right."""
    status = "" if request.status is None else f"{request.status} "
    about = f"{status}{printable(request.label) or 'unit of work'} · {request.execution.replace('_', ' ')}"
    return about, f"response {duration(request.response)} · all done {duration(request.done)}"


def printable(text: str) -> str:
    r"""Return `text` without anything that moves a cursor, breaks a line or turns the writing around.

    Example:
        >>> printable("name\x1b[31m\n")
        'name\\x1b[31m\\n'
    """
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)
