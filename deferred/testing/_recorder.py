"""A hook that keeps what happened, and what a test says of it."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

from deferred._events import Event, TaskDeferred
from deferred._task import TaskHandle
from deferred.testing._matching import Call, Registration, asked, listed

__all__ = ["Assertions", "Recorder"]

E = TypeVar("E", bound=Event)


class Assertions(abc.ABC):
    """What can be asserted of deferred work. Lives as long as the record behind it.

    A function is asked for by itself or by the task's name. Without arguments any will do;
    with arguments they are compared as the function would receive them, whether passed by
    position or by keyword, bound by a ``functools.partial`` or left to their defaults;
    `unittest.mock.ANY` equals everything. A method is asked for by its object (``mailer.send``), or by its
    class (``Mailer.send``), whose first argument is the object then. Steps that a ``sequential`` route has awaited, and
    work that its ``when`` has discarded, were not deferred.
    """

    @property
    @abc.abstractmethod
    def registrations(self) -> Sequence[Registration]:
        """Everything that was registered, in order."""

    @property
    def tasks(self) -> list[TaskHandle[Any]]:
        """The handles of everything that was deferred, in order."""
        return [registration.task for registration in self.registrations if registration.counts]

    def _matching(self, call: Call) -> list[TaskHandle[Any]]:
        return [each.task for each in self.registrations if each.counts and call.asks_for(each)]

    def assert_deferred(self, func: Callable[..., Any] | str, /, *args: Any, **kwargs: Any) -> TaskHandle[Any]:
        """Assert that `func` was deferred with these arguments; return the first such task.

        Args:
            func: The function, or the name of the task.
            *args: Its positional arguments.
            **kwargs: Its keyword arguments.

        Raises:
            AssertionError: It was not; the message lists what was, and where.
            TypeError: `func` is no function, or could not be called with these arguments.
        """
        __tracebackhide__ = True
        call = asked(func, args, kwargs)
        found = self._matching(call)
        if not found:
            message = f"{call} was not deferred. {listed(self.registrations)}"
            raise AssertionError(message)
        return found[0]

    def assert_deferred_times(
        self, times: int, func: Callable[..., Any] | str, /, *args: Any, **kwargs: Any
    ) -> list[TaskHandle[Any]]:
        """Assert that `func` was deferred exactly so often with these arguments; return the tasks.

        Args:
            times: How often; 0 for never.
            func: The function, or the name of the task.
            *args: Its positional arguments.
            **kwargs: Its keyword arguments.

        Raises:
            AssertionError: It was deferred more or less often.
            TypeError: `times` is no whole number; or as `assert_deferred`.
        """
        __tracebackhide__ = True
        if not isinstance(times, int):  # pyright: ignore[reportUnnecessaryIsInstance]  # callers may be untyped
            message = f"how often comes first: `assert_deferred_times(2, func)`, not {times!r}"
            raise TypeError(message)
        call = asked(func, args, kwargs)
        found = self._matching(call)
        if len(found) != times:
            message = f"{call} was deferred {len(found)} time(s), not {times}. {listed(self.registrations)}"
            raise AssertionError(message)
        return found

    def assert_not_deferred(self, func: Callable[..., Any] | str, /, *args: Any, **kwargs: Any) -> None:
        """Assert that `func` was not deferred with these arguments.

        Raises:
            AssertionError: It was.
            TypeError: `func` is no function, or could not be called with these arguments.
        """
        __tracebackhide__ = True
        call = asked(func, args, kwargs)
        if self._matching(call):
            message = f"{call} was deferred. {listed(self.registrations)}"
            raise AssertionError(message)

    def assert_nothing_deferred(self) -> None:
        """Assert that nothing at all was deferred.

        Raises:
            AssertionError: Something was.
        """
        __tracebackhide__ = True
        if self.tasks:
            message = f"{len(self.tasks)} task(s) were deferred. {listed(self.registrations)}"
            raise AssertionError(message)


class Recorder(Assertions):
    """A hook that keeps every event, in order. Lives as long as the test that reads it.

    Example:
        >>> import asyncio
        >>> from deferred import Supervisor, TaskSucceeded
        >>> async def main():
        ...     recorder = Recorder()
        ...     async with Supervisor(hooks=[recorder]) as supervisor:
        ...         with supervisor.context() as ctx:
        ...             ctx.defer(asyncio.sleep, 0)
        ...     recorder.assert_deferred(asyncio.sleep, delay=0)
        ...     return len(recorder.of(TaskSucceeded))
        >>> asyncio.run(main())
        1
    """

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._registrations: list[Registration] = []

    def __call__(self, event: Event) -> None:
        """Keep `event`."""
        self.events.append(event)
        if isinstance(event, TaskDeferred):
            task = cast("TaskHandle[Any]", event.task)  # events show the live object by its read-only face
            self._registrations.append(Registration.of(task))

    @property
    def registrations(self) -> Sequence[Registration]:
        """Everything that was registered, in order."""
        return self._registrations

    def of(self, *kinds: type[E]) -> list[E]:
        """Return the events of these classes, in order."""
        return [event for event in self.events if isinstance(event, kinds)]
