"""What people may not see: secrets by the name of a key, and by the look of a value.

Rules of this file: nothing calls the `repr` of a class it does not know, as that is code of
anybody's, which may be slow or ask a database; every text has a bound; every pattern is linear.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import itertools
import pathlib
import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import msgspec

__all__ = ["HIDDEN", "MOST_ARGUMENTS", "describe", "describe_arguments", "is_secret", "plain", "redact", "shorten"]

HIDDEN = "•••"
"""What stands where a secret stood."""

LONGEST = 4000
"""Characters of one text."""
MOST_ARGUMENTS = 40
_ITEMS = 20
_DEPTH = 4
_BRACKETS: dict[type, str] = {dict: "{}", list: "[]", tuple: "()", set: "{}", frozenset: "{}"}
_ITEM = 300

_SECRET_KEY = re.compile(
    r"passw|passphrase|passwd|pwd|secret|token|api[-_ ]?key|access[-_ ]?key|private[-_ ]?key|authori[sz]ation"
    r"|credential|cookie|session[-_ ]?id|csrf|signature|card[-_ ]?num|cvv|cvc|iban|ssn|dsn|^auth$|^pin$|^otp$",
    re.IGNORECASE,
)

_VALUES: tuple[tuple[re.Pattern[str], str], ...] = (
    # user:password@ of a URL, the password alone; what it may not hold bounds the search.
    (re.compile(r"(://[^\s/:@'\"]{0,100}:)[^\s/@'\"]{1,200}(?=@)"), rf"\1{HIDDEN}"),
    (re.compile(r"(?i)\b(bearer|basic|token)(\s+)[a-z0-9+/=._~-]{8,}"), rf"\1\2{HIDDEN}"),
    (re.compile(r"\beyJ[\w-]{8,}\.[\w-]{4,}\.?[\w-]*"), HIDDEN),  # a JSON web token
    (re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"), HIDDEN),
    (re.compile(r"\b(?:sk|pk|rk|re|ghp|gho|ghs|xox[abps])[-_][A-Za-z0-9_-]{16,}"), HIDDEN),
    (re.compile(r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----[^-]{0,10000}(?:-----END [A-Z ]{0,40}-----)?"), HIDDEN),
    (
        re.compile(
            r"(?i)\b([\w-]{0,40}(?:passw(?:or)?d|passphrase|pwd|secret|token|api[-_]?key|authorization))"
            r"(['\"]?\s{0,3}[=:]\s{0,3})(['\"]?)(?!\s|•)[^\s'\",;&)}\]]{1,500}"
        ),
        rf"\1\2\3{HIDDEN}",
    ),
)


def shorten(text: str, limit: int = LONGEST) -> str:
    """Return `text`, or its beginning and how much was left out."""
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text) - limit} more characters)"


def redact(text: str, limit: int = LONGEST) -> str:
    """Return `text` within `limit` characters, without what looks like a secret.

    Example:
        >>> redact("connect postgresql://app:hunter2@db/main failed")
        'connect postgresql://app:•••@db/main failed'
    """
    # A secret that the bound would cut in two is looked at whole.
    shown = text[: limit + 1000]
    for pattern, replacement in _VALUES:
        shown = pattern.sub(replacement, shown)
    more = len(text) - len(text[: limit + 1000])
    return shown if not more and len(shown) <= limit else shorten(shown + " " * more, limit)


def is_secret(name: object) -> bool:
    """Say whether a value of this name is one that nobody may see."""
    return isinstance(name, str) and _SECRET_KEY.search(name[:200]) is not None


_PLAIN = frozenset({str, int, float, bool, type(None), uuid.UUID, dt.datetime, dt.date})


def plain(values: Iterable[object]) -> bool:
    """Say whether these may be kept as they are: small, unchangeable, and nobody waits for their end."""
    return all(
        type(value) in _PLAIN
        and (type(value) is not str or len(value) <= _ITEM)
        and (type(value) is not int or value.bit_length() <= _ITEM)
        for value in values
    )


def describe(value: Any, limit: int = LONGEST) -> str:
    """Return what a value looks like, secrets left out, within `limit` characters.

    Example:
        >>> describe({"name": "Ada", "password": "hunter2"})
        "{'name': 'Ada', 'password': •••}"
        >>> describe(object())
        '<object>'
    """
    try:
        return redact(_describe(value, 0), limit)
    except Exception:  # noqa: BLE001  # it changes while it is looked at, or is hostile
        return f"<{type(value).__name__}>"


def _describe(value: Any, depth: int) -> str:
    kind: Any = type(value)  # pyright: ignore[reportUnknownVariableType]  # of anything
    known = _KNOWN.get(kind)
    if known is not None:
        return known(value)
    if issubclass(kind, enum.Enum):
        return f"{kind.__name__}.{value._name_}"
    brackets = _BRACKETS.get(kind)
    if depth >= _DEPTH:
        return f"<{kind.__name__} …>"
    if brackets is None:
        fields = _fields(value)
        return f"<{kind.__name__}>" if fields is None else _braced(f"{kind.__name__}(", fields, ")", depth, "=")
    if kind is dict:
        return _braced("{", value.items(), "}", depth, ": ", named=True)
    return _braced(brackets[0], ((None, item) for item in value), brackets[1], depth)


def _fields(value: Any) -> Iterator[tuple[str, Any]] | None:
    """Return the fields of a data class of any kind, without calling code of its own."""
    kind: Any = type(value)  # pyright: ignore[reportUnknownVariableType]  # same
    names: Iterable[str]
    if isinstance(value, msgspec.Struct):
        names = value.__struct_fields__
    elif dataclasses.is_dataclass(kind):
        names = (field.name for field in dataclasses.fields(kind))
    elif isinstance(getattr(kind, "model_fields", None), Mapping):  # pydantic
        names = kind.model_fields
    else:
        return None
    return ((name, _get(value, name)) for name in names)


def _get(value: Any, name: str) -> Any:
    try:
        return object.__getattribute__(value, name)
    except Exception:  # noqa: BLE001  # a field without a value, or one that is computed and fails
        return None


def _braced(
    opening: str,
    items: Iterable[tuple[Any, Any]],
    closing: str,
    depth: int,
    between: str = "",
    *,
    named: bool = False,
) -> str:
    parts: list[str] = []
    for place, (key, value) in enumerate(itertools.islice(items, _ITEMS + 1)):
        if place == _ITEMS:
            parts.append("…")
            break
        shown = HIDDEN if is_secret(key) else _describe(value, depth + 1)
        name = (_describe(key, depth + 1) if named else key) if between else ""
        parts.append(f"{name}{between}{shown}")
    return f"{opening}{', '.join(parts)}{closing}"


def describe_arguments(names: tuple[str, ...], args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[tuple[str, str]]:
    """Return each argument's name and what it looks like; positional ones are named as far as `names` goes."""
    numbered = itertools.chain(names, (f"*{i}" for i in itertools.count(len(names))))
    given = itertools.chain(zip(numbered, args, strict=False), kwargs.items())
    shown = [
        (shorten(name, _ITEM), HIDDEN if is_secret(name) else describe(value))
        for name, value in itertools.islice(given, MOST_ARGUMENTS)
    ]
    more = len(args) + len(kwargs) - len(shown)
    return [*shown, ("…", f"{more} more")] if more else shown


def _text(value: str | bytes) -> str:
    shown = repr(value[:_ITEM])
    return shown if len(value) <= _ITEM else f"{shown[:-1]}… ({len(value) - _ITEM} more){shown[-1]}"


def _number(value: int) -> str:
    return repr(value) if value.bit_length() <= 1000 else f"<int of {value.bit_length()} bits>"


_KNOWN: dict[type, Callable[[Any], str]] = {
    str: _text,
    bytes: _text,
    bytearray: lambda value: _text(bytes(value[: _ITEM + 1])),
    int: _number,
    float: repr,
    bool: repr,
    type(None): repr,
    uuid.UUID: str,
    decimal.Decimal: lambda value: _text(str(value))[1:-1],
    dt.datetime: str,
    dt.date: str,
    dt.time: str,
    dt.timedelta: str,
    pathlib.PosixPath: lambda value: _text(str(value)),
    pathlib.WindowsPath: lambda value: _text(str(value)),
}
