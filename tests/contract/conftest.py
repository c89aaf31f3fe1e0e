"""What the contract's tests share: a supervisor that is open, and what it told its hooks."""

import asyncio

import pytest

from deferred import Supervisor
from tests.integrations.script import Script


class Told(list):
    """The events that a supervisor has told, in order."""

    def of(self, *kinds):
        """Return those of these classes."""
        return [event for event in self if isinstance(event, kinds)]


@pytest.fixture
def told():
    """Give the events of the supervisor."""
    return Told()


@pytest.fixture
def errors():
    """Give what the supervisor's error hook was told."""
    return []


@pytest.fixture
async def supervisor(errors):
    """Give an open supervisor, drained afterwards."""
    async with Supervisor(on_error=errors.append, drain_timeout=60) as supervisor:
        yield supervisor


@pytest.fixture
async def watched(errors, told):
    """Give an open supervisor whose every event goes to `told`."""
    async with Supervisor(on_error=errors.append, hooks=[told.append], drain_timeout=60) as supervisor:
        yield supervisor


@pytest.fixture
def script():
    """Give a journal of what ran, and on which turn of the loop."""
    return Script()


@pytest.fixture
def gate():
    """Give an event that a test sets to let work go on."""
    return asyncio.Event()
