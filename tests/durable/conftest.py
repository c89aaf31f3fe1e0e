"""What the tests of durable work share: a supervisor on an engine in memory, and what it tells."""

import asyncio

import pytest

from deferred import Supervisor
from deferred.engines.memory import MemoryEngine


def pytest_collection_modifyitems(config, items):
    """Leave the tests that take minutes to `make chaos`."""
    if "chaos" not in config.option.markexpr:
        kept = [item for item in items if item.get_closest_marker("chaos") is None]
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept


@pytest.fixture(autouse=True, scope="session")
def commands_may_block(no_blocking_calls):
    """Let a command import what it is told to, and a test's task write its journal."""
    for function in no_blocking_calls.functions.values():
        function.can_block_in("deferred/__main__.py", {"_supervisor", "_engine", "_doctor"})
        function.can_block_in("tests/durable/shop.py", {"write"})


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
