"""Structs whose attributes are set as fast as slots are."""

from __future__ import annotations

from typing import TypeVar

import msgspec

__all__ = ["fast_stores"]

S = TypeVar("S", bound=type[msgspec.Struct])


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
    struct.__setattr__ = object.__setattr__  # type: ignore[method-assign, assignment]  # the point of it
    struct.__delattr__ = object.__delattr__  # type: ignore[method-assign, assignment]  # same
    return struct
