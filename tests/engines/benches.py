"""Engines on stores of the tests' own, made in this process and in others."""

import contextlib
from collections.abc import AsyncIterator

from deferred.engines.sqlite import SQLiteEngine
from deferred.engines.testing import Bench

LEASE = 1.0


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
