"""What the tests of engines share."""

import asyncio

import pytest

from tests.engines.benches import memory_bench, postgres_bench, sqlite_bench


@pytest.fixture(autouse=True, scope="session")
def opening_may_block(no_blocking_calls):
    """Let cairnq read its statements, and asyncpg a password file, when a store is opened."""
    for function in no_blocking_calls.functions.values():
        function.can_block_in("cairnq/store/sqlite.py", {"connect"})
        function.can_block_in("cairnq/_sql.py", {"load_migrations"})
        function.can_block_in("tests/durable/shop.py", {"write"})
        function.can_block_in("asyncpg/connect_utils.py", {"_parse_connect_arguments"})


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
