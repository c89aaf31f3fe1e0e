"""A mail server for tests that want one without ceremony."""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from marathon_app.settings import PostgresServer
from tests.marathon.support import FaultyServer, smtp


@pytest.fixture
async def faulty() -> AsyncIterator[FaultyServer]:
    """Give a mail server without TLS or login."""
    async with smtp() as server:
        yield server


@pytest.fixture
def postgresql(postgres_server) -> PostgresServer:
    """Give an empty database on a real server."""
    with ThreadPoolExecutor(1) as aside:  # this thread may have a loop already
        return PostgresServer(aside.submit(asyncio.run, postgres_server.new_database()).result())
