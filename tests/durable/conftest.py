"""What the tests of durable work share: a supervisor on an engine in memory, and what it tells."""

import asyncio

import pytest

from deferred import Supervisor
from deferred.engines.memory import MemoryEngine


@pytest.fixture(autouse=True, scope="session")
def commands_may_block(no_blocking_calls):
    """Let a command import what it is told to: its loop has nobody else to serve."""
    for function in no_blocking_calls.functions.values():
        function.can_block_in("deferred/__main__.py", {"_supervisor", "_engine", "_doctor"})


class Desk:
    """A supervisor, its engine, and every event; made anew for each test."""

    def __init__(self, **options):
        self.engine = options.pop("engine", None) or MemoryEngine()
        self.events = []
        self.supervisor = Supervisor(engine=self.engine, hooks=[self.events.append], **options)

    def of(self, kind):
        """Return the events of a class."""
        return [event for event in self.events if isinstance(event, kind)]

    async def enqueue(self, task, *args, **kwargs):
        """Store a call out of a unit of work."""
        with self.supervisor.context("POST /register") as ctx:
            return await ctx.enqueue(task, *args, **kwargs)

    async def settled(self):
        """Wait until no job waits or runs."""
        while (depth := await self.engine.depth()).waiting or depth.running:
            await asyncio.sleep(0.01)


@pytest.fixture
def desk():
    """Return what makes a supervisor on an engine in memory."""
    return Desk
