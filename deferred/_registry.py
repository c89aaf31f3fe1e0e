"""Task names and the functions they mean: the allow-list of durable work.

Stored work names its function by a registered name, never by an import path: what is not
in a registry is never run, whatever a row says.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import CodeType
from typing import Any, TypeAlias

import msgspec

from deferred._call import Kind, check_callable, name_of
from deferred._options import TaskOptions
from deferred._payload import Arguments
from deferred.exceptions import PayloadError, UnknownTaskError

__all__ = ["RegisteredTask", "Registry", "Upgrade"]

Upgrade: TypeAlias = Callable[[int, dict[str, Any]], dict[str, Any]]

VERSION = "deferred-version"
"""The header that carries the version of the arguments; left out for the first."""

LONGEST_NAME = 200


class RegisteredTask(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """A function that may be run by name. Lives as long as its supervisor.

    Attributes:
        name: Its name in stores, logs and commands.
        func: The function.
        kind: How it is run.
        options: Retry, timeout and the like.
        arguments: Its arguments as data.
        queue: Which workers it is for.
        version: Of its arguments; counts up when they change.
        upgrade: Turns older arguments into those of this version.
        code: The function's code, if it has any.
    """

    name: str
    func: Callable[..., Any]
    kind: Kind
    options: TaskOptions
    arguments: Arguments
    queue: str
    version: int = 1
    upgrade: Upgrade | None = None
    code: CodeType | None = None

    def headers(self) -> dict[str, str]:
        """Return the headers that say which version the arguments are."""
        return {} if self.version == 1 else {VERSION: str(self.version)}

    def is_newer(self, headers: dict[str, str]) -> bool:
        """Say whether the arguments were stored by newer code than this."""
        return _version(headers) > self.version

    def read(self, payload: bytes, headers: dict[str, str]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments, upgraded if they are old.

        Raises:
            PayloadError: They cannot be read, or do not fit.
        """
        version = _version(headers)
        if version < self.version and self.upgrade is not None:
            try:
                data = self.upgrade(version, msgspec.json.decode(payload, type=dict[str, Any]))
                payload = msgspec.json.encode(data)
            except Exception as error:
                message = f"task {self.name!r}: its upgrade from version {version} failed: {error}"
                raise PayloadError(message) from error
        return self.arguments.decode(payload)


class Registry:
    """The registered tasks of one supervisor. Lives as long as it."""

    __slots__ = ("_functions", "_names")

    def __init__(self) -> None:
        self._names: dict[str, RegisteredTask] = {}
        self._functions: dict[Any, RegisteredTask] = {}

    def __len__(self) -> int:
        return len(self._names)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of its tasks, sorted."""
        return tuple(sorted(self._names))

    @property
    def queues(self) -> tuple[str, ...]:
        """The queues that its tasks use, sorted."""
        return tuple(sorted({task.queue for task in self._names.values()}))

    def add(
        self,
        func: Callable[..., Any],
        name: str,
        options: TaskOptions,
        *,
        queue: str,
        version: int = 1,
        upgrade: Upgrade | None = None,
    ) -> RegisteredTask:
        """Register `func` by `name`.

        Raises:
            TypeError: `func` is no function with a signature that can be stored.
            ValueError: The name is taken by another function, or is no name.
        """
        kind = check_callable(func)
        check_name(name, "name")
        check_name(queue, "queue")
        _check_version(version)
        if upgrade is not None and not callable(upgrade):
            message = f"upgrade must be a function of the version and the arguments, not {upgrade!r}"
            raise TypeError(message)
        known = self._names.get(name)
        if known is not None and not _is_reload(known.func, func):
            message = (
                f"the task name {name!r} is taken by {_place(known.func)}; {_place(func)} needs another one: "
                "stored work finds its function by name alone"
            )
            raise ValueError(message)
        task = RegisteredTask(
            name=name,
            func=func,
            kind=kind,
            options=options,
            arguments=Arguments(func, name),
            queue=queue,
            version=version,
            upgrade=upgrade,
            code=getattr(inspect.unwrap(func), "__code__", None),
        )
        self._names[name] = task
        self._functions[func] = task
        return task

    def named(self, name: str) -> RegisteredTask | None:
        """Return the task of that name."""
        return self._names.get(name)

    def knows(self, func: object) -> bool:
        """Say whether `func` is registered."""
        return self._find(func) is not None

    def of(self, func: Any) -> RegisteredTask:
        """Return the registration of a function, or of a name.

        Raises:
            TypeError: It is a lambda or a closure, which no other process has.
            UnknownTaskError: It is not registered.
        """
        task = self._names.get(func) if isinstance(func, str) else self._find(func)
        if task is not None:
            return task
        if isinstance(func, str):
            message = f"no task is named {func!r}: {self._known()}"
            raise UnknownTaskError(message)
        check_callable(func, "enqueue")
        shown = name_of(func)
        closed = getattr(func, "__closure__", None)
        if shown.endswith("<lambda>") or closed:
            what = "a lambda" if shown.endswith("<lambda>") else "a closure"
            message = (
                f"{shown} is {what}: it holds what a worker in another process does not have, so it cannot be stored. "
                "Move it to a module, pass its values as arguments, and register it with `@supervisor.task(name=...)`"
            )
            raise TypeError(message)
        message = (
            f"{shown} is not registered, so stored work could not name it: decorate it with "
            f"`@supervisor.task(name={shown.rpartition('.')[2]!r})`, on this supervisor"
        )
        raise UnknownTaskError(message)

    def _find(self, func: Any) -> RegisteredTask | None:
        try:
            return self._functions.get(func)
        except TypeError:  # unhashable: nobody has registered it
            return None

    def _known(self) -> str:
        return f"there are {', '.join(sorted(self._names))}" if self._names else "none is registered"


def check_name(name: object, what: str) -> str:
    """Return `name`, or refuse what no store and no command line could hold.

    Raises:
        TypeError: It is no text.
        ValueError: It is empty, too long, or holds what cannot be printed.
    """
    if not isinstance(name, str):
        message = f"{what} must be a text, not {name!r}"
        raise TypeError(message)
    if not name or len(name) > LONGEST_NAME or not name.isprintable():
        message = f"{what} must be 1 to {LONGEST_NAME} printable characters, not {name!r}"
        raise ValueError(message)
    return name


def _check_version(version: object) -> None:
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        message = f"version must be a whole number from 1, not {version!r}"
        raise ValueError(message)


def _version(headers: dict[str, str]) -> int:
    text = headers.get(VERSION)
    return int(text[:9]) if text is not None and text.isdecimal() else 1


def _is_reload(old: Any, new: Any) -> bool:
    """Say whether `new` is the same function in a module that was loaded again."""
    return old is new or (
        getattr(old, "__module__", None) == getattr(new, "__module__", object())
        and getattr(old, "__qualname__", None) == getattr(new, "__qualname__", object())
        and getattr(inspect.unwrap(old), "__code__", None) is not getattr(inspect.unwrap(new), "__code__", object())
    )


def _place(func: Any) -> str:
    return f"{getattr(func, '__module__', '?')}.{name_of(func)}"
