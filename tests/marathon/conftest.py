"""A mail server for tests that want one without ceremony."""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from marathon_app.settings import PostgresServer, Settings
from tests.marathon.support import Client, FaultyServer, serving, smtp


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


@pytest.fixture
def settings(request: pytest.FixtureRequest, tmp_path: Path, faulty: FaultyServer) -> Settings:
    """Give settings with a database of the test's own and a mail server that can be told to fail."""
    kind = getattr(request, "param", "sqlite")
    database = tmp_path / "marathon.db" if kind == "sqlite" else request.getfixturevalue("postgresql")
    return Settings(database=database, mail_server=faulty.server)


@pytest.fixture
async def client(settings: Settings) -> AsyncIterator[Client]:
    """Give a client of a running app."""
    async with serving(settings) as client:
        yield client
