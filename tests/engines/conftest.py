"""What the tests of engines share."""

import asyncio

import pytest

from tests.engines.benches import memory_bench, postgres_bench, sqlite_bench


@pytest.fixture
def postgres_url(postgres_server):
    """Return the URL of an empty database."""
    return asyncio.run(postgres_server.new_database())


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def bench(request, tmp_path):
    """Return an empty store of each kind."""
    if request.param == "memory":
        return memory_bench()
    if request.param == "sqlite":
        return sqlite_bench(tmp_path / "jobs.db")
    return postgres_bench(request.getfixturevalue("postgres_url"))
