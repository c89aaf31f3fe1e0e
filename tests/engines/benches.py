"""Engines on stores of the tests' own, made in this process and in others."""

import contextlib
from collections.abc import AsyncIterator

from deferred.engines.memory import MemoryEngine
from deferred.engines.postgres import PostgresEngine
from deferred.engines.sqlite import SQLiteEngine
from deferred.engines.testing import Bench

LEASE = 1.0


def make_memory(_: str) -> MemoryEngine:
    """Return an engine of this process alone."""
    return MemoryEngine()


def make_sqlite(path: str) -> SQLiteEngine:
    """Return an engine whose lease is short."""
    return SQLiteEngine(path, lease=LEASE, poll=0.02)


def sqlite_bench(path) -> Bench:
    """Return where SQLiteEngine is tested."""

    @contextlib.asynccontextmanager
    async def transaction() -> AsyncIterator[object]:
        from databases import Database

        async with (
            Database(f"sqlite:///{path}") as database,
            database.connection() as connection,
            connection.transaction(),
        ):
            yield connection

    return Bench(factory="tests.engines.benches:make_sqlite", argument=str(path), lease=LEASE, transaction=transaction)


def make_postgres(url: str) -> PostgresEngine:
    """Return an engine whose lease is short."""
    return PostgresEngine(url, lease=LEASE, poll=0.5)


def postgres_bench(url) -> Bench:
    """Return where PostgresEngine is tested."""

    @contextlib.asynccontextmanager
    async def transaction() -> AsyncIterator[object]:
        from databases import Database

        async with Database(url) as database, database.connection() as connection, connection.transaction():
            yield connection

    return Bench(factory="tests.engines.benches:make_postgres", argument=url, lease=LEASE, transaction=transaction)


def memory_bench() -> Bench:
    """Return where MemoryEngine is tested."""
    return Bench(factory="tests.engines.benches:make_memory", argument="", lease=0.1)
