"""What the handlers of a test app do, and what was noted while they did it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from deferred import DeferredContext, DrainStarted, Supervisor, current_context
from tests.integrations.asgi_client import turn, turns


class BoomError(Exception):
    """What ``/raises`` raises."""


def late(supervisor: Supervisor, note: Callable[[], object]) -> Callable[[], Coroutine[Any, Any, None]]:
    """Return a task that calls `note` when `supervisor` has drained for a while, and ends then."""
    draining = asyncio.Event()
    supervisor.add_hook(lambda event: draining.set() if isinstance(event, DrainStarted) else None)

    async def work() -> None:
        await draining.wait()
        await turns(20)
        note()

    return work


class Script:
    """Given to an app when it is built; every handler of it calls `handle` or `act`.

    Attributes:
        act: Called by every handler with the context that it was given.
        midway: Called by ``/stream`` between its two chunks.
        step: What ``/run/...`` routes run as their step.
        after: Called by the framework's own background task of ``/own``.
        go: Async handlers wait for it after `act`, streams before the second chunk.
        journal: What was noted, each with the turn of the loop.
        resource: Whether the app's own resource (made in its lifespan) is open.
        fail_startup: Whether the app's lifespan raises at startup.
    """

    def __init__(self) -> None:
        self.act: Callable[[DeferredContext], Any] = lambda ctx: None
        self.midway: Callable[[DeferredContext], Any] = lambda ctx: None
        self.after: Callable[[DeferredContext], Any] = lambda ctx: None
        self.go = asyncio.Event()
        self.go.set()
        self.arrived = asyncio.Event()
        self.journal: list[tuple[str, int]] = []
        self.resource: bool | None = None
        self.fail_startup = False

    async def handle(self, ctx: DeferredContext) -> None:
        """Do what an async handler does."""
        self.act(ctx)
        self.arrived.set()
        await self.go.wait()

    async def stream(self, ctx: DeferredContext) -> Any:
        """Give the two chunks of ``/stream``."""
        yield b"one"
        self.midway(ctx)
        self.arrived.set()
        await self.go.wait()
        yield b"two"

    async def step(self, what: str = "step") -> str:
        """Be the step of the ``/run/...`` routes."""
        self.note(what)
        return what

    async def work(self, what: str = "work") -> None:
        """Be a deferred task."""
        self.note(what)

    def note(self, what: str) -> None:
        """Write down that this happened, on the loop."""
        self.journal.append((what, turn()))

    def opening(self) -> None:
        """Make the app's own resource, at its startup."""
        if self.fail_startup:
            raise BoomError("no database")
        self.resource = True

    def closing(self) -> None:
        """Close the app's own resource, at its shutdown."""
        self.resource = False

    @property
    def noted(self) -> list[str]:
        """What was noted, without the turns."""
        return [what for what, _ in self.journal]

    def turn_of(self, what: str) -> int:
        """Return the turn on which this was noted."""
        return dict(self.journal)[what]


def is_current(ctx: DeferredContext) -> bool:
    """Say whether `ctx` is what `current_context` finds here."""
    return current_context() is ctx
