"""A waterfall for the terminal."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from deferred.inspector._layout import Bar, Row, duration, heading, lay_out, printable
from deferred.inspector._views import RequestView

__all__ = ["render"]

_SIGNS = {
    "request": "█",
    "inside": "█",
    "wait": "·",
    "done": "█",
    "failed": "▓",
    "cancelled": "▒",
    "backoff": "/",
    "running": "▒",
}
_PLAIN = {
    "request": "=",
    "inside": "=",
    "wait": ".",
    "done": "#",
    "failed": "x",
    "cancelled": "-",
    "backoff": "/",
    "running": ">",
}
_COLOURS = {
    "request": 34,
    "inside": 35,
    "wait": 90,
    "done": 36,
    "failed": 31,
    "cancelled": 90,
    "backoff": 33,
    "running": 33,
}
_RED, _FAINT = 31, 90
_NARROWEST = 50


def render(request: RequestView, *, width: int = 100, colour: bool = False, unicode: bool = True) -> str:
    """Draw a request as text.

    Args:
        request: What is drawn.
        width: Columns of the terminal; at least 50.
        colour: Whether to colour it, for a terminal.
        unicode: Whether it may be drawn with more than ASCII.

    Returns:
        Lines, each with its end.

    Example:
        >>> from deferred.inspector import AttemptView, RowView
        >>> mail = RowView(
        ...     kind="task", name="send mail", state="succeeded", created=0.1, ended=0.4,
        ...     execution="deferred", attempts=[AttemptView(started=0.2, ended=0.4)],
        ... )
        >>> request = RequestView(
        ...     id="1", number=1, label="POST /runners", began=0, age=1, status=201,
        ...     response=0.2, done=0.4, rows=[mail],
        ... )
        >>> print(render(request, width=70, unicode=False))
        201 POST /runners - deferred         response 200 ms - all done 400 ms
        request       =======================|                          200 ms
          > send mail            ............|######################    200 ms
        <BLANKLINE>
    """
    paint = _coloured if colour else _bare
    rows = lay_out(request)
    width = max(width, _NARROWEST)
    about, summary = heading(request)
    room = width - _cells(summary) - 1
    lines = [f"{_fit(about, room)} {paint(summary, _FAINT)}" if room > 20 else f"{_cut(about, width)}\n{summary}"]
    names = min(max(_cells(_name(row, unicode=unicode)) for row in rows), width // 3)
    track = width - names - 11
    for row in rows:
        drawn = _draw(row.bars, request, track, unicode=unicode)
        bar = "".join(paint(sign, code) for sign, code in drawn)
        took = duration(row.took)
        lines.append(f"{_fit(_name(row, unicode=unicode), names)} {bar} {took:>9}".rstrip())
        if row.error:
            error = _cut(printable(row.error.partition("\n")[0]), width - 4)
            lines.append(f"    {paint(error, _RED)}")
    if request.omitted:
        lines.append(f"  and {request.omitted} more")
    text = "\n".join(lines) + "\n"
    return text if unicode else text.replace("·", "-").replace("…", "~").encode("ascii", "backslashreplace").decode()


def _name(row: Row, *, unicode: bool) -> str:
    arrow = ("↳ " if unicode else "> ") if row.outlives else ""
    return f"{'  ' * row.depth}{arrow}{row.name}"


def _draw(bars: Sequence[Bar], request: RequestView, track: int, *, unicode: bool) -> list[tuple[str, int]]:
    """Return sign and colour of each column; the line of the response goes through all rows."""
    signs = _SIGNS if unicode else _PLAIN
    scale = track / request.span
    cells: list[tuple[str, int]] = [(" ", 0)] * track
    for bar in bars:
        first = min(max(int(bar.start * scale), 0), track - 1)
        last = max(first + 1, min(round(bar.end * scale), track))
        for place in range(first, last):
            if place == first or bar.kind != "wait" or cells[place][0] == " ":
                cells[place] = (signs[bar.kind], _COLOURS[bar.kind])
    if request.response is not None:
        place = min(max(round(request.response * scale), 0), track - 1)
        cells[place] = ("┊" if unicode else "|", _FAINT)
    return cells


def _coloured(text: str, code: int) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if code else text


def _bare(text: str, _code: int) -> str:
    return text


def _cells(text: str) -> int:
    """Return how many columns a text takes."""
    return sum(
        0 if unicodedata.combining(each) else 2 if unicodedata.east_asian_width(each) in "WF" else 1 for each in text
    )


def _cut(text: str, width: int) -> str:
    if _cells(text) <= width:
        return text
    while text and _cells(text) > width - 1:
        text = text[:-1]
    return f"{text}…"


def _fit(text: str, width: int) -> str:
    text = _cut(text, width)
    return text + " " * (width - _cells(text))
