"""Arguments that do not outlive the request: worth a warning, once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any

__all__ = ["ArgumentCheck"]

_REQUESTS = frozenset({"BaseRequest", "HTTPConnection", "HttpRequest", "Request", "WebSocket", "Websocket"})
_CONNECTIONS = frozenset(
    {"AsyncConnection", "AsyncSession", "Connection", "PoolConnectionProxy", "Session", "Transaction"}
)
_FRAMEWORKS = frozenset({"aiohttp", "django", "fastapi", "litestar", "quart", "starlette", "werkzeug"})
_DATABASES = frozenset({"aiosqlite", "asyncpg", "databases", "psycopg", "sqlalchemy", "sqlite3"})

_MANY = 1000


class ArgumentCheck:
    """Looks at the types of arguments, each once. Lives as long as its supervisor."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: set[type] = set()

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any], warn: Callable[[str], None]) -> None:
        """Call `warn` with a text for each argument of a new, short-lived type."""
        known = self._known
        if known.issuperset(map(type, args)) and (not kwargs or known.issuperset(map(type, kwargs.values()))):
            return
        if len(known) > _MANY:
            known.clear()  # types made at run time must not pile up here
        for argument in chain(args, kwargs.values()):
            kind: type[object] = argument.__class__
            if kind not in known:
                known.add(kind)
                text = _borrowed(kind.__mro__)
                if text:
                    warn(text)


def _borrowed(types: Iterable[type]) -> str:
    for kind in types:
        package = kind.__module__.partition(".")[0]
        if package in _FRAMEWORKS and kind.__name__ in _REQUESTS:
            return f"a {package} {kind.__name__}: its body is consumed and its connection gone when the task runs"
        if package in _DATABASES and kind.__name__ in _CONNECTIONS:
            return f"a {package} {kind.__name__}: it goes back to its pool, or its transaction ends, with the request"
    return ""
