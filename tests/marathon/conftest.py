"""A mail server for tests that want one without ceremony."""

from collections.abc import AsyncIterator

import pytest

from tests.marathon.support import FaultyServer, smtp


@pytest.fixture
async def faulty() -> AsyncIterator[FaultyServer]:
    """Give a mail server without TLS or login."""
    async with smtp() as server:
        yield server
