"""The wrappers around `databases`, on a real SQLite file and on a real PostgreSQL: what both promise."""

import asyncio
import contextlib
import sqlite3

import asyncpg
import pytest

from marathon_app.database import DatabaseBusyError, DatabaseUnavailableError
from marathon_app.postgresql import WRITERS, PostgresDatabase
from marathon_app.sqlite import SQLiteDatabase
from tests.marathon.support import select

SCHEMA = (
    "CREATE TABLE IF NOT EXISTS items (name TEXT PRIMARY KEY)",
    "CREATE TABLE IF NOT EXISTS children (parent TEXT REFERENCES items DEFERRABLE INITIALLY DEFERRED)",
)
INTEGRITY = (sqlite3.IntegrityError, asyncpg.IntegrityConstraintViolationError)


@pytest.fixture(params=["sqlite", "postgresql"])
def where(request, tmp_path):
    """Give the place of an empty database of each kind."""
    return tmp_path / "file.db" if request.param == "sqlite" else request.getfixturevalue("postgresql")


def make(where, **options):
    """Return a database of either kind."""
    if hasattr(where, "url"):
        return PostgresDatabase(where.url, schema=SCHEMA, **options)
    return SQLiteDatabase(where, schema=SCHEMA, **options)


@contextlib.asynccontextmanager
async def opened(where, **options):
    """Give an open database, whose `close` has to return."""
    database = make(where, **options)
    await database.open()
    try:
        yield database
    finally:
        async with asyncio.timeout(30):
            await database.close()


@pytest.fixture
async def database(where):
    """Give one of either kind."""
    async with opened(where) as database:
        yield database


def adding(name):
    """Return a unit of work that adds one item."""

    async def work(connection):
        return await connection.fetch_one("INSERT INTO items VALUES (:name) RETURNING name", {"name": name})

    return work


async def orphan(connection):
    """Add a row that only the COMMIT refuses."""
    await connection.fetch_one("INSERT INTO children VALUES ('nobody') RETURNING parent")


def names(where):
    """Return the items that are in the database, whatever anybody reports."""
    return {row[0] for row in select(where, "SELECT name FROM items")}


def held(database):
    """Return how many connections are away from the pool of PostgreSQL; SQLite has no pool."""
    pool = getattr(database, "_pool", None)
    return 0 if pool is None else pool.get_size() - pool.get_idle_size()


async def test_a_write_that_raises_is_taken_back(database, where):
    """An exception inside a write rolls it back, and the next write is well."""

    async def half(connection):
        await adding("half")(connection)
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        await database.write(half)
    await database.write(adding("whole"))

    assert names(where) == {"whole"}


@pytest.mark.parametrize("what", ["write", "fetch_one"])
async def test_cancelled_at_any_moment_nothing_leaks(database, where, what):
    """Cancelled after any number of turns, a write is whole or absent, a read is nothing, and no connection is lost."""
    turns, completed = 0, 0
    while completed < 3:  # up to the turns after which there is nothing left to cancel
        turns += 1
        use = database.write(adding(str(turns))) if what == "write" else database.fetch_one("SELECT 1")
        task = asyncio.create_task(use)
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        completed += not task.cancelled()
        if what == "write" and not task.cancelled():
            assert str(turns) in names(where)
    await asyncio.gather(*(database.write(adding(f"after {number}")) for number in range(30)))

    assert turns > 3
    assert held(database) == 0
    assert {f"after {number}" for number in range(30)} <= names(where)


async def test_cancelled_inside_its_transaction_a_write_still_ends(database, where):
    """Who waits for a write may be cancelled: the transaction is committed all the same, and closing waits for it."""
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slow(connection):
        await adding("slow")(connection)
        begun.set()
        await go_on.wait()

    writing = asyncio.create_task(database.write(slow))
    await begun.wait()
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    closing = asyncio.create_task(database.close())
    await asyncio.sleep(0)
    go_on.set()
    await closing

    assert names(where) == {"slow"}


async def test_a_cancelled_wait_for_a_turn_costs_no_turn(where):
    """Writes cancelled, or given up, before they began have done nothing, and leave every turn to others."""
    begun = asyncio.Queue()

    async def slow(_):
        begun.put_nowait(None)
        await go_on.wait()

    async with opened(where, busy_timeout=0.2) as database:
        turns = 1 if isinstance(database, SQLiteDatabase) else WRITERS
        go_on = asyncio.Event()
        first = [asyncio.create_task(database.write(slow)) for _ in range(turns)]
        for _ in first:
            await begun.get()
        later = [asyncio.create_task(database.write(adding(str(number)))) for number in range(20)]
        await asyncio.sleep(0)
        for task in later[::2]:
            task.cancel()
        results = await asyncio.gather(*later, return_exceptions=True)
        go_on.set()
        await asyncio.gather(*first)
        go_on = asyncio.Event()
        again = [asyncio.create_task(database.write(slow)) for _ in range(turns)]
        for _ in again:
            await begun.get()
        go_on.set()
        await asyncio.gather(*again)
        await database.write(adding("after"))

    assert [type(result) for result in results] == [asyncio.CancelledError, DatabaseBusyError] * 10
    assert names(where) == {"after"}


async def test_after_a_failed_commit_nothing_is_reported_stored_that_is_not(database, where):
    """C28: A COMMIT that fails is an error to the caller, none is leaked, and later writes are stored."""
    for _ in range(15):  # more often than the pool has connections
        with pytest.raises(INTEGRITY):
            await database.write(orphan)
    await database.write(adding("stored"))

    assert held(database) == 0
    assert names(where) == {"stored"}


async def test_reading_inside_a_write_needs_no_second_turn(database, where):
    """Twenty writes that each read on a second connection inside their transaction do not wait for each other."""

    async def reading(connection):
        row = await database.fetch_one("SELECT count(*) AS number FROM items")
        return await connection.fetch_one(
            "INSERT INTO items VALUES (:name) RETURNING name", {"name": f"{row['number']} {id(asyncio.current_task())}"}
        )

    async with asyncio.timeout(10):
        await asyncio.gather(*(database.write(reading) for _ in range(20)))

    assert len(names(where)) == 20


async def test_a_write_inside_a_write_is_refused(database, where):
    """Ten writes that each want another one inside would wait for ever: each is told so, and nothing is stored."""

    async def nested(connection):
        await adding("outer")(connection)
        await database.write(adding("inner"))

    async with asyncio.timeout(30):
        results = await asyncio.gather(*(database.write(nested) for _ in range(10)), return_exceptions=True)
    await database.write(adding("stored"))

    assert {type(result) for result in results} == {RuntimeError}
    assert "use the connection" in str(results[0])
    assert names(where) == {"stored"}


async def test_fifty_transactions_that_read_and_then_write(database, where):
    """Fifty at once that read and then write all succeed."""

    async def work(connection, number):
        await connection.fetch_one("SELECT count(*) FROM items")
        await asyncio.sleep(0)
        await adding(str(number))(connection)

    await asyncio.gather(*(database.write(lambda connection, n=n: work(connection, n)) for n in range(50)))

    assert len(names(where)) == 50


async def test_too_many_waiting_writes_are_refused_at_once(where):
    """F12: Beyond the number that may wait, a write is refused as busy, without being begun."""
    async with opened(where, max_waiting=5) as database:
        results = await asyncio.gather(
            *(database.write(adding(str(number))) for number in range(40)), return_exceptions=True
        )

    refused = [result for result in results if isinstance(result, DatabaseBusyError)]
    assert len(refused) >= 20
    assert len(names(where)) == 40 - len(refused)


async def test_a_statement_that_fails_fails_the_write(database, where):
    """A work that swallows the error of a statement has not stored what PostgreSQL then takes back. D20."""

    async def careless(connection):
        await adding("first")(connection)
        with contextlib.suppress(*INTEGRITY):
            await adding("first")(connection)

    if isinstance(database, SQLiteDatabase):  # which only fails the statement
        await database.write(careless)
        assert names(where) == {"first"}
    else:
        with pytest.raises(RuntimeError, match="nothing was stored"):
            await database.write(careless)
        assert names(where) == set()


async def test_the_check_sees_a_database_that_answers_and_one_that_does_not(database):
    """C30: The check is content with a database that answers, and bounds one that hangs."""
    await database.check()
    with pytest.raises(DatabaseUnavailableError, match="did not answer"):
        await database.check(timeout=0)
