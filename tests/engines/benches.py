"""Engines on stores of the tests' own, made in this process and in others."""

import contextlib
from collections.abc import AsyncIterator

from deferred.engines.memory import MemoryEngine
from deferred.engines.postgres import PostgresEngine
from deferred.engines.sqlite import SQLiteEngine
from deferred.engines.testing import Bench

LEASE = 1.0
PATIENT = 30.0  # a lease that a machine which stands still for seconds does not end


def make_memory(_: str) -> MemoryEngine:
    """Return an engine of this process alone."""
    return MemoryEngine()


def make_sqlite(path: str) -> SQLiteEngine:
    """Return an engine whose lease is short."""
    return SQLiteEngine(path, lease=LEASE, poll=0.02)


def make_patient_sqlite(path: str) -> SQLiteEngine:
    """Return an engine whose lease is long."""
    return SQLiteEngine(path, lease=PATIENT, poll=0.02)


def sqlite_bench(path, *, patient: bool = False) -> Bench:
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

    made, lease = ("make_patient_sqlite", PATIENT) if patient else ("make_sqlite", LEASE)
    return Bench(factory=f"tests.engines.benches:{made}", argument=str(path), lease=lease, transaction=transaction)


def make_postgres(url: str) -> PostgresEngine:
    """Return an engine whose lease is short."""
    return PostgresEngine(url, lease=LEASE, poll=0.5, connect_timeout=30.0)


def make_patient_postgres(url: str) -> PostgresEngine:
    """Return an engine whose lease is long."""
    return PostgresEngine(url, lease=PATIENT, poll=0.5, connect_timeout=30.0)


def postgres_bench(url, *, patient: bool = False) -> Bench:
    """Return where PostgresEngine is tested."""

    @contextlib.asynccontextmanager
    async def transaction() -> AsyncIterator[object]:
        from databases import Database

        async with Database(url) as database, database.connection() as connection, connection.transaction():
            yield connection

    made, lease = ("make_patient_postgres", PATIENT) if patient else ("make_postgres", LEASE)
    return Bench(factory=f"tests.engines.benches:{made}", argument=url, lease=lease, transaction=transaction)


def memory_bench() -> Bench:
    """Return where MemoryEngine is tested."""
    return Bench(factory="tests.engines.benches:make_memory", argument="", lease=0.1)
