"""Objects made in bulk: made as fast as a msgspec Struct, changed as fast as slots."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

__all__ = ["STORED", "fast_stores", "stored"]

T = TypeVar("T")
S = TypeVar("S", bound=type[msgspec.Struct])

STORED: tuple[str, ...] = ()
"""The ``__slots__`` of a class whose fields are in the Struct that `stored` makes of it."""


def fast_stores(struct: S) -> S:
    """Give a Struct class the plain ``__setattr__``, which the interpreter specializes.

    That of msgspec also hands an instance to the garbage collector once it is given something
    that the collector follows; so this is for classes whose instances hold such a thing from the
    start. Measured on CPython 3.13: 7 ns a store instead of 25. Subclasses need it anew.

    Example:
        >>> @fast_stores
        ... class Point(msgspec.Struct):
        ...     where: list[int]
        >>> point = Point([1])
        >>> point.where = [2]
        >>> point.where
        [2]
    """
    # Both share one slot of the type: it is the plain one only if both are.
    struct.__setattr__ = object.__setattr__  # type: ignore[method-assign]  # the point of it
    struct.__delattr__ = object.__delattr__  # type: ignore[method-assign]  # same
    return struct


def stored(face: type[T]) -> Callable[..., T]:
    """Return what makes instances of `face`: a Struct with the fields that it and its bases annotate.

    The face itself stays a plain class: a framework that validates what it injects (Litestar, by
    msgspec) takes any instance of a plain class, but of a Struct no subclass.

    Args:
        face: A class with ``__slots__ = STORED``; fields without a default come first.

    Example:
        >>> class Point:
        ...     __slots__ = STORED
        ...     x: int
        ...     y: int = 0
        >>> make = stored(Point)
        >>> point = make(1)
        >>> isinstance(point, Point), point.x, point.y
        (True, 1, 0)
    """
    fields: dict[str, Any] = {}
    for base in reversed(face.__mro__):
        fields.update({name: base.__dict__.get(name, msgspec.NODEFAULT) for name in inspect.get_annotations(base)})
    ordered = sorted(fields.items(), key=lambda field: field[1] is not msgspec.NODEFAULT)
    struct = msgspec.defstruct(
        face.__name__,
        [(name, Any, default) for name, default in ordered],
        bases=(face, msgspec.Struct),
        module=face.__module__,
        eq=False,
        weakref=True,
    )
    # The face itself would be hollow. A Struct's base may define no constructor that says so.
    face.__abstractmethods__ = frozenset({"__new__ (these are made by a supervisor)"})  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]  # of any class
    made: Any = fast_stores(struct)
    return made  # type: ignore[no-any-return]  # a class made at run time
