"""From a URL to an engine, through the entry points of installed packages."""

from __future__ import annotations

import importlib
from typing import Any

from deferred.engines._protocol import Engine

__all__ = ["find_engine"]

GROUP = "deferred.engines"


def find_engine(engine: Engine | str) -> Engine:
    """Return the engine that a URL names; an engine is returned as it is.

    The scheme, without a ``+driver``, is the name of an entry point in the group
    ``deferred.engines``; what that names has a ``from_url(url)``.

    Args:
        engine: An engine, or a URL such as ``"sqlite:///jobs.db"`` or
            ``"postgresql://user@host/database"``.

    Raises:
        TypeError: It is neither.
        ValueError: No installed package knows the scheme, or the URL is no good.
        ImportError: The engine's own package is not installed; the message names the extra.

    Example:
        >>> find_engine("carrier-pigeon://loft")
        Traceback (most recent call last):
        ...
        ValueError: no engine is known for 'carrier-pigeon://': there are memory, postgres, postgresql, sqlite
    """
    if not isinstance(engine, str):
        if isinstance(engine, Engine):  # pyright: ignore[reportUnnecessaryIsInstance]  # callers may be untyped
            return engine
        message = f"engine must be an Engine or a URL such as 'sqlite:///jobs.db', not {engine!r}"
        raise TypeError(message)
    scheme, separator, _ = engine.partition("://")
    metadata: Any = importlib.import_module("importlib.metadata")  # slow to load, and only needed here
    known = {point.name: point for point in metadata.entry_points(group=GROUP)}
    name = scheme.partition("+")[0].lower()
    if not separator or name not in known:
        # The URL itself is not shown: it may hold a password.
        shown = repr(f"{scheme}://") if separator else "a text without '://'"
        message = f"no engine is known for {shown}: there are {', '.join(sorted(known)) or 'none installed'}"
        raise ValueError(message)
    found: Engine = _load(known[name]).from_url(engine)
    return found


def _load(point: Any) -> Any:
    """Import what an entry point names; say what to install where that takes more than there is."""
    try:
        return point.load()
    except ModuleNotFoundError as error:
        # The extra of an engine of ours has the name of its module.
        ours = point.module.startswith("deferred.engines.")
        what = f"deferred-middleware[{point.module.rpartition('.')[2]}]" if ours else error.name
        message = f"the engine of {point.name}:// needs {error.name!r}, which is not installed: pip install '{what}'"
        raise ModuleNotFoundError(message, name=error.name) from error
