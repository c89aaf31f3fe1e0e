"""A waterfall as a picture, for pages of documentation and reports."""

from __future__ import annotations

from collections.abc import Mapping
from xml.sax.saxutils import escape, quoteattr

import msgspec

from deferred.inspector._layout import Bar, Row, duration, lay_out, printable
from deferred.inspector._views import RequestView

__all__ = ["render"]

_WIDTH = 800
_NAMES = 216
_TIMES = 76
_PAD = 14
_HEAD = 42
_ROW = 28
_BAR = 12
_TRACK = _WIDTH - _NAMES - _TIMES - 2 * _PAD
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"
_MONO = "ui-monospace, SFMono-Regular, Menlo, Consolas, monospace"


class _Theme(msgspec.Struct, frozen=True):
    """The colours of a picture."""

    paper: str
    line: str
    text: str
    faint: str
    track: str
    mark: str
    error: str
    bars: Mapping[str, str]


_BARS = {
    "request": "#3b82f6",
    "inside": "#6366f1",
    "wait": "#cbd5e1",
    "done": "#0d9488",
    "failed": "#dc2626",
    "cancelled": "#94a3b8",
    "backoff": "url(#backoff)",
    "running": "url(#running)",
}
_THEMES = {
    "light": _Theme("#ffffff", "#e2e8f0", "#1e293b", "#64748b", "#eef1f5", "#1e293b", "#b91c1c", _BARS),
    "dark": _Theme(
        "#151b26", "#2b3547", "#e2e8f0", "#94a3b8", "#222b3a", "#e2e8f0", "#fca5a5", {**_BARS, "wait": "#475569"}
    ),
}


def render(request: RequestView, *, theme: str = "light") -> str:
    """Draw a request as an SVG document that needs no other file, no style sheet and no script.

    Args:
        request: What is drawn.
        theme: ``"light"`` or ``"dark"``.

    Raises:
        ValueError: There is no such theme.

    Example:
        >>> request = RequestView(id="1", number=1, label="POST /runners", began=0, age=1, response=0.2, done=0.2)
        >>> render(request).startswith("<svg ")
        True
    """
    if theme not in _THEMES:
        message = f"theme must be one of {', '.join(map(repr, _THEMES))}, not {theme!r}"
        raise ValueError(message)
    colours = _THEMES[theme]
    rows = lay_out(request)
    parts: list[str] = []
    top = float(_HEAD)
    for row in rows:
        parts += _row(row, top, request.span, colours)
        top += _ROW
        if row.error:
            parts.append(_text(_PAD, top + 8, _short(row.error.partition("\n")[0], 100), colours.error, 11, mono=True))
            top += 20
    if request.response is not None:
        x = _x(request.response, request.span)
        parts.append(
            f'<path d="M{x} {_HEAD + 2}V{top - 2:g}" stroke="{colours.mark}" stroke-opacity=".65" '
            'stroke-width="1.5" stroke-dasharray="4 3"/>'
        )
        share = request.response / request.span
        anchor = "start" if share < 0.1 else "end" if share > 0.9 else "middle"
        parts.append(_text(x, top + 9, "response sent", colours.faint, 10, anchor=anchor))
        top += 10
    title = f"{request.label}: response {duration(request.response)}, all done {duration(request.done)}"
    height = top + 10
    size = f'viewBox="0 0 {_WIDTH} {height:g}" width="{_WIDTH}" height="{height:g}"'
    about = f'role="img" aria-label={quoteattr(printable(title))} font-family="{_FONT}"'
    opening = f'<svg xmlns="http://www.w3.org/2000/svg" {size} {about}>'
    place = f'x=".5" y=".5" width="{_WIDTH - 1}" height="{height - 1:g}" rx="9"'
    paper = f'<rect {place} fill="{colours.paper}" stroke="{colours.line}"/>'
    return "\n".join([opening, _PATTERNS, paper, *_head(request, colours), *parts, "</svg>\n"])


_PATTERNS = (
    '<defs><pattern id="backoff" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
    '<path d="M0 0V6" stroke="#dc2626" stroke-opacity=".55" stroke-width="2.5"/></pattern>'
    '<pattern id="running" width="8" height="8" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
    '<rect width="8" height="8" fill="#f59e0b"/><path d="M0 0V8" stroke="#b45309" stroke-width="7"/></pattern></defs>'
)


def _head(request: RequestView, colours: _Theme) -> list[str]:
    status = "" if request.status is None else str(request.status)
    bad = (request.status or 0) >= 400
    x = float(_PAD)
    parts = [f'<path d="M0 {_HEAD - 6}H{_WIDTH}" stroke="{colours.line}"/>']
    if status:
        fill, ink = ("#fee2e2", "#991b1b") if bad else ("#dcfce7", "#166534")
        parts.append(f'<rect x="{x:g}" y="9" width="38" height="20" rx="4" fill="{fill}"/>')
        parts.append(_text(x + 19, 23, status, ink, 12, weight=700, anchor="middle"))
        x += 46
    label = _short(request.label or "unit of work", 44)
    parts.append(_text(x, 23, label, colours.text, 13, weight=600))
    summary = f"response {duration(request.response)} · all done {duration(request.done)}"
    parts.append(_text(_WIDTH - _PAD, 23, summary, colours.faint, 12, anchor="end"))
    return parts


def _row(row: Row, top: float, span: float, colours: _Theme) -> list[str]:
    middle = top + _ROW / 2
    name = f"{'↳ ' if row.outlives else ''}{row.name}"
    parts = [
        _text(_PAD + 14 * row.depth, middle + 4, _short(name, 30 - 2 * row.depth), colours.text, 12),
        f'<rect x="{_PAD + _NAMES}" y="{middle - 8:g}" width="{_TRACK}" height="16" rx="4" fill="{colours.track}"/>',
    ]
    parts += [_bar(bar, middle, span, colours) for bar in row.bars]
    parts.append(_text(_WIDTH - _PAD, middle + 4, duration(row.took), colours.faint, 12, anchor="end"))
    return parts


def _bar(bar: Bar, middle: float, span: float, colours: _Theme) -> str:
    left, right = _x(bar.start, span), _x(bar.end, span)
    height = 4 if bar.kind == "wait" else _BAR
    return (
        f'<rect x="{left}" y="{middle - height / 2:g}" width="{max(right - left, 1.5):.1f}" height="{height}" '
        f'rx="2" fill="{colours.bars[bar.kind]}"/>'
    )


def _x(at: float, span: float) -> float:
    return round(_PAD + _NAMES + _TRACK * min(max(at / span, 0.0), 1.0), 1)


def _text(
    x: float,
    y: float,
    text: str,
    colour: str,
    size: int,
    *,
    weight: int = 400,
    anchor: str = "start",
    mono: bool = False,
) -> str:
    family = f' font-family="{_MONO}"' if mono else ""
    return (
        f'<text x="{x:g}" y="{y:g}" fill="{colour}" font-size="{size}" font-weight="{weight}" '
        f'text-anchor="{anchor}"{family}>{escape(printable(text))}</text>'
    )


def _short(text: str, limit: int) -> str:
    text = printable(text)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
