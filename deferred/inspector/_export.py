"""Tasks as a table for a spreadsheet, in which no cell computes."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ["cell", "table"]

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "|", "%")


def cell(value: Any) -> Any:
    """Return what may stand in a cell: text that a spreadsheet would take for a formula begins with a quote.

    Example:
        >>> cell("=HYPERLINK(1)"), cell("send mail"), cell(1.5), cell(None)
        ("'=HYPERLINK(1)", 'send mail', 1.5, '')
    """
    if isinstance(value, int | float):
        return value
    text = "" if value is None else str(value)
    return f"'{text}" if text.lstrip().startswith(_FORMULA) or text.startswith(_FORMULA) else text


def table(titles: Sequence[str], rows: Iterable[Sequence[Any]]) -> bytes:
    """Return rows as comma-separated values."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(titles)
    writer.writerows([cell(value) for value in row] for row in rows)
    return text.getvalue().encode("utf-8", "backslashreplace")  # of a name that holds half a character
