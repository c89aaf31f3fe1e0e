"""Arguments as data: from a signature to a type, to JSON, and back.

Rules of this file: what cannot be read back as it was given is refused when it is stored,
by whoever stores it; nothing is ever pickled; a payload chooses no class, the signature does.
"""

from __future__ import annotations

import datetime as dt
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, get_type_hints

import msgspec
from msgspec import UNSET

from deferred.exceptions import PayloadError

__all__ = ["MAX_BYTES", "Arguments"]

MAX_BYTES = 256 * 1024
"""Bytes: the bound of Amazon SQS; what is larger belongs in a table or a bucket, its name in the payload."""

MAX_DEPTH = 64
"""How deep lists and objects may nest: far beyond any signature, far below what breaks a parser."""

_P = inspect.Parameter


class Arguments:
    """The arguments of one function. Lives as long as its registration.

    Args:
        func: The function; its signature says what is stored.
        name: What errors call it.

    Raises:
        TypeError: A parameter's annotation cannot be resolved, or is no data.

    Example:
        >>> def send(to: str, copies: int = 1): ...
        >>> arguments = Arguments(send, "send")
        >>> arguments.encode(("runner@example.org",), {})
        b'{"to":"runner@example.org"}'
        >>> arguments.decode(b'{"to":"runner@example.org","copies":2}')
        (('runner@example.org', 2), {})
    """

    __slots__ = ("_decoder", "_name", "_positional", "_signature")

    def __init__(self, func: Callable[..., Any], name: str) -> None:
        self._name = name
        self._signature = inspect.signature(func)
        try:
            hints = get_type_hints(func, include_extras=True) if hasattr(func, "__annotations__") else {}
        except Exception as error:
            message = (
                f"the annotations of task {name!r} cannot be resolved ({error}): annotate with names of its module, "
                "so that a worker finds the types to read the arguments with"
            )
            raise TypeError(message) from error
        self._positional = all(
            parameter.kind in {_P.POSITIONAL_ONLY, _P.POSITIONAL_OR_KEYWORD}
            for parameter in self._signature.parameters.values()
        )
        fields = [_field(parameter, hints.get(key, Any)) for key, parameter in self._signature.parameters.items()]
        try:
            kind = msgspec.defstruct(f"Arguments of {name}", fields, forbid_unknown_fields=True, kw_only=True)
            shape: Any = msgspec.inspect.type_info(kind)
            for field in shape.fields:
                _check_type(field.name, field.type)
            self._decoder = msgspec.json.Decoder(kind, dec_hook=_from_data)
        except TypeError as error:
            message = (
                f"the parameters of task {name!r} cannot be stored: {error}. Use what JSON can say, dates, UUIDs, "
                "enums, dataclasses, and classes of msgspec, attrs or pydantic"
            )
            raise TypeError(message) from error

    # -- storing --------------------------------------------------------------------------------

    def encode(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
        """Return the arguments as JSON.

        Raises:
            PayloadError: They do not fit the signature, or would not come back as they are.
        """
        try:
            given = self._signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            message = f"task {self._name!r} was not stored: {error}"
            raise PayloadError(message) from None
        try:
            payload = msgspec.json.encode(given, enc_hook=_to_data)
        except UnicodeEncodeError as error:
            message = f"task {self._name!r} was not stored: a text holds a lone surrogate, which is no character"
            raise PayloadError(message) from error
        except RecursionError as error:
            raise self._refusal("is nested in itself, or too deep") from error
        except Exception as error:
            message = f"task {self._name!r} was not stored: {error}. Pass the values it needs instead"
            raise PayloadError(message) from error
        self._check_data(payload, given)
        read = self._read(payload, "was not stored")
        kinds = self._signature.parameters
        for key, value in given.items():
            if not _same([*value] if kinds[key].kind is _P.VAR_POSITIONAL else value, getattr(read, key)):
                what = f"{type(value).__name__} would come back as {_shown_type(getattr(read, key), value)}"
                raise self._refusal(f"argument {key!r}: a {what}. Annotate the parameter with its type")
        return payload

    def _refusal(self, why: str) -> PayloadError:
        return PayloadError(f"task {self._name!r} was not stored: {why}")

    def _check_data(self, payload: bytes, given: Mapping[str, Any]) -> None:
        if len(payload) > MAX_BYTES:
            raise self._refusal(
                f"its arguments take {len(payload)} bytes, and {MAX_BYTES} is the limit. "
                "Store what is large elsewhere, and pass where it is"
            )
        if payload.count(b"[") + payload.count(b"{") > MAX_DEPTH and _depth(payload) > MAX_DEPTH:
            raise self._refusal(f"its arguments nest deeper than {MAX_DEPTH} lists and objects")
        # Only these bytes can hide what is refused: JSON has no NaN, and writes NUL like this.
        if b"null" in payload or b"\\u0000" in payload:
            self._check_values(msgspec.to_builtins(given, enc_hook=_to_data))

    def _check_values(self, data: Any) -> None:
        values = [data]
        while values:
            value = values.pop()
            if isinstance(value, dict):
                values.extend((*value, *value.values()))  # pyright: ignore[reportUnknownArgumentType]  # any data
            elif isinstance(value, list | tuple | set | frozenset):
                values.extend(value)  # pyright: ignore[reportUnknownArgumentType]  # any data
            elif isinstance(value, float) and not math.isfinite(value):
                raise self._refusal(f"{value!r} is no number that can be stored; pass None, or leave it out")
            elif isinstance(value, str) and "\0" in value:
                raise self._refusal("a text holds a NUL character, which databases refuse")

    # -- reading --------------------------------------------------------------------------------

    def decode(self, payload: bytes) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the positional and the keyword arguments.

        Raises:
            PayloadError: It is no JSON, or does not fit the signature.
        """
        read = self._read(payload, "cannot be run with what was stored")
        if self._positional:  # the short way
            values = msgspec.structs.astuple(read)
            if all(value is not UNSET for value in values):
                return values, {}
        bound = inspect.BoundArguments(
            self._signature,
            {  # ordered, as every dict is
                key: tuple(value) if parameter.kind is _P.VAR_POSITIONAL else value
                for key, parameter in self._signature.parameters.items()
                if (value := getattr(read, key)) is not UNSET
            },
        )
        return bound.args, bound.kwargs

    def _read(self, payload: bytes, what: str) -> Any:
        try:
            return self._decoder.decode(payload)
        except (msgspec.DecodeError, RecursionError, ValueError) as error:
            message = f"task {self._name!r} {what}: {str(error) or type(error).__name__}"
            raise PayloadError(message) from error


def _field(parameter: inspect.Parameter, hint: Any) -> tuple[str, Any] | tuple[str, Any, Any]:
    """Return the field of a parameter; what was not passed is not stored, and reads as UNSET."""
    if parameter.kind is _P.VAR_POSITIONAL:
        return parameter.name, list[hint], UNSET
    if parameter.kind is _P.VAR_KEYWORD:
        return parameter.name, dict[str, hint], UNSET
    return (parameter.name, hint) if parameter.default is _P.empty else (parameter.name, hint, UNSET)


def _check_type(name: str, kind: msgspec.inspect.Type) -> None:
    """Refuse a type that msgspec would leave to us."""
    custom: Any = kind.cls if isinstance(kind, msgspec.inspect.CustomType) else object
    if custom is not object and not hasattr(custom, "model_validate"):
        message = f"parameter {name!r} is a {custom.__qualname__}, which is no data"
        raise TypeError(message)
    for part in ("types", "item_types"):
        for inner in getattr(kind, part, ()):
            _check_type(name, inner)
    for part in ("item_type", "key_type", "value_type"):
        inner = getattr(kind, part, None)
        if inner is not None:
            _check_type(name, inner)


def _to_data(value: Any) -> Any:
    if hasattr(_class(value), "model_dump"):  # a pydantic model
        return value.model_dump(mode="json")
    message = f"a {type(value).__module__}.{type(value).__qualname__} is no data"
    raise TypeError(message)


def _from_data(kind: Any, data: Any) -> Any:
    if kind is object:  # anything at all
        return data
    try:
        return kind.model_validate(data)
    except Exception as error:
        raise ValueError(str(error)) from error


def _same(given: Any, read: Any) -> bool:
    """Say whether the function would get what was passed."""
    try:
        if given == read:
            return True
    except Exception:  # noqa: BLE001  # a class may compare as it likes, or not at all
        return _class(given) is _class(read)
    return _class(given) is _class(read) and _same_inside(given, read)


def _same_inside(given: Any, read: Any) -> bool:
    """Say the same of two of one class that are not equal."""
    if isinstance(given, dict):
        return given.keys() == read.keys() and all(_same(value, read[key]) for key, value in given.items())  # pyright: ignore[reportUnknownVariableType]  # any data
    if isinstance(given, list | tuple):
        return len(given) == len(read) and all(map(_same, given, read))  # pyright: ignore[reportUnknownArgumentType]  # any data
    if isinstance(given, dt.datetime):
        return not given - read  # in the hour that a clock goes through twice no other zone's time is equal
    # Classes that compare by identity: the type is all that is left to compare, the data was just read.
    return not isinstance(given, set | frozenset)


def _class(value: Any) -> type[object]:
    found: type[object] = value.__class__
    return found


def _shown_type(read: Any, given: Any) -> str:
    return "something else" if _class(read) is _class(given) else f"a {_class(read).__name__}"


def _depth(payload: bytes) -> int:
    """Return how deep JSON nests, in one pass and without recursion."""
    depth = deepest = 0
    quoted = escaped = False
    for byte in payload:
        if escaped:
            escaped = False
        elif quoted:
            escaped, quoted = byte == ord("\\"), byte != ord('"')
        elif byte == ord('"'):
            quoted = True
        elif byte in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        elif byte in b"]}":
            depth -= 1
    return deepest
