"""The wrapper around `databases`, on a real SQLite file."""

import asyncio
import contextlib
import sqlite3
import threading
from pathlib import Path

import pytest

from marathon_app.database import DatabaseBusyError, DatabaseUnavailableError
from marathon_app.sqlite import SQLiteDatabase, probe

SCHEMA = ("CREATE TABLE IF NOT EXISTS items (name TEXT PRIMARY KEY) STRICT",)


@pytest.fixture
async def database(tmp_path):
    """Give an open database in a folder that was not there."""
    database = SQLiteDatabase(tmp_path / "new" / "folder" / "a b?#%41.db", schema=SCHEMA)
    await database.open()
    yield database
    await database.close()


def adding(name):
    """Return a unit of work that adds one item."""

    async def work(connection):
        return await connection.fetch_one("INSERT INTO items VALUES (:name) RETURNING name", {"name": name})

    return work


def stored_in(path):
    """Return the items that are in the file, whatever anybody reports."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return [name for (name,) in connection.execute("SELECT name FROM items")]


async def names(database):
    """Return the items as the app reads them."""
    row = await database.fetch_one("SELECT coalesce(group_concat(name), '') AS names FROM items ORDER BY name")
    return set(filter(None, row["names"].split(",")))


async def test_the_file_is_made_where_it_was_asked_for(database):
    """The folder and the file are made, whatever signs its name has, in WAL mode with full syncs."""
    assert database.path.exists()
    row = await database.fetch_one("PRAGMA journal_mode")
    assert row[0] == "wal"

    async def synchronous(connection):
        return (await connection.fetch_one("PRAGMA synchronous"))[0]

    assert await database.write(synchronous) == 2  # FULL


async def test_two_threads_serve_any_number_of_queries(database):
    """The threads of `databases` do not multiply: two, however many queries run."""
    before = set(threading.enumerate())

    await asyncio.gather(*(database.write(adding(str(number))) for number in range(50)))
    await asyncio.gather(*(names(database) for _ in range(50)))

    assert not [thread for thread in set(threading.enumerate()) - before if "_connection_worker" in thread.name]
    assert len(await names(database)) == 50


async def test_nothing_is_left_when_it_is_closed(tmp_path):
    """After `close` no thread of the database runs, and what was written is in the file."""
    before = set(threading.enumerate())
    database = SQLiteDatabase(tmp_path / "file.db", schema=SCHEMA)
    await database.open()
    await database.write(adding("kept"))
    await database.close()

    workers = [thread for thread in set(threading.enumerate()) - before if "asyncio" not in thread.name]
    for thread in workers:
        thread.join(10.0)  # they have been told to end, and need not have done so yet
    assert not any(thread.is_alive() for thread in workers)
    assert stored_in(tmp_path / "file.db") == ["kept"]


async def test_a_write_that_raises_is_taken_back(database):
    """An exception inside a write rolls it back, and the next write is well."""

    async def half(connection):
        await adding("half")(connection)
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        await database.write(half)
    await database.write(adding("whole"))

    assert await names(database) == {"whole"}


async def test_read_then_write_transactions_do_not_meet(database):
    """Fifty concurrent read-then-write transactions all succeed: each is the only one at its time."""

    async def next_number(connection):
        row = await connection.fetch_one("SELECT count(*) AS taken FROM items")
        await asyncio.sleep(0)
        return await adding(str(row["taken"]))(connection)

    await asyncio.gather(*(database.write(next_number) for _ in range(50)))

    assert len(await names(database)) == 50


@pytest.mark.parametrize("turns", range(1, 26))
async def test_cancelled_at_any_turn_nothing_leaks(database, turns):
    """Cancelled after any number of turns of the loop, a write is whole or absent and the next one works."""
    writing = asyncio.create_task(database.write(adding("first")))
    for _ in range(turns):
        await asyncio.sleep(0)
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)

    await database.write(adding("second"))
    stored = await names(database)

    assert "second" in stored
    if not writing.cancelled():
        assert "first" in stored


async def test_cancelled_inside_its_transaction_a_write_still_ends(database):
    """Who waits for a write may be cancelled: the transaction is committed all the same."""
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slow(connection):
        begun.set()
        await go_on.wait()
        return await adding("slow")(connection)

    writing = asyncio.create_task(database.write(slow))
    await begun.wait()
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    go_on.set()
    await database.write(adding("next"))

    assert await names(database) == {"slow", "next"}


async def test_cancelled_before_its_turn_a_write_never_happens(database):
    """A write cancelled while it waits for its turn does nothing."""
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slow(connection):
        begun.set()
        await go_on.wait()

    first = asyncio.create_task(database.write(slow))
    await begun.wait()
    second = asyncio.create_task(database.write(adding("second")))
    await asyncio.sleep(0)
    second.cancel()
    go_on.set()
    await asyncio.gather(first, second, return_exceptions=True)
    await database.write(adding("third"))

    assert await names(database) == {"third"}


async def test_closing_waits_for_the_write_that_has_begun(tmp_path):
    """A write under way when the database closes is committed first."""
    database = SQLiteDatabase(tmp_path / "file.db", schema=SCHEMA)
    await database.open()
    begun = asyncio.Event()

    async def slow(connection):
        begun.set()
        await asyncio.sleep(0)
        return await adding("slow")(connection)

    writing = asyncio.create_task(database.write(slow))
    await begun.wait()
    await database.close()
    await writing

    assert stored_in(tmp_path / "file.db") == ["slow"]


async def test_another_process_with_the_lock_makes_it_busy(tmp_path):
    """Where another process holds the lock for too long the write is refused as busy, and works later."""
    database = SQLiteDatabase(tmp_path / "file.db", schema=SCHEMA, busy_timeout=0.05)
    await database.open()
    other = sqlite3.connect(tmp_path / "file.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(DatabaseBusyError):
        await database.write(adding("refused"))
    other.execute("ROLLBACK")
    other.close()
    await database.write(adding("stored"))

    assert await names(database) == {"stored"}
    await database.close()


async def test_too_many_waiting_writes_are_refused_at_once(tmp_path):
    """F12: Beyond the number that may wait, a write is refused as busy without waiting."""
    database = SQLiteDatabase(tmp_path / "file.db", schema=SCHEMA, max_waiting=5)
    await database.open()

    results = await asyncio.gather(
        *(database.write(adding(str(number))) for number in range(20)), return_exceptions=True
    )
    refused = [result for result in results if isinstance(result, DatabaseBusyError)]

    assert len(refused) >= 14
    assert len(await names(database)) == 20 - len(refused)
    await database.close()


async def test_a_turn_that_does_not_come_is_busy(tmp_path):
    """A write whose turn does not come in time is refused as busy."""
    database = SQLiteDatabase(tmp_path / "file.db", schema=SCHEMA, busy_timeout=0.02)
    await database.open()
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slow(connection):
        begun.set()
        await go_on.wait()

    first = asyncio.create_task(database.write(slow))
    await begun.wait()
    with pytest.raises(DatabaseBusyError, match=r"0\.02 s"):
        await database.write(adding("late"))
    go_on.set()
    await first
    await database.close()


async def test_after_a_failed_commit_nothing_is_reported_stored_that_is_not(database):
    """C28: A COMMIT that fails is an error to the caller, and what later writes report is in the file."""
    deferred_key = "CREATE TABLE children (parent TEXT REFERENCES items DEFERRABLE INITIALLY DEFERRED)"

    async def prepare(connection):
        await connection.fetch_one(deferred_key)

    async def orphan(connection):
        await connection.fetch_one("INSERT INTO children VALUES ('nobody')")

    await database.write(prepare)
    with pytest.raises(sqlite3.IntegrityError):
        await database.write(orphan)
    await database.write(adding("stored"))

    assert stored_in(database.path) == ["stored"]


async def test_a_full_disk_is_an_error_and_passes(database):
    """C28: A full database is an error to the caller; with room again, writes work."""

    async def limit(connection, pages=0):
        row = await connection.fetch_one("PRAGMA page_count")
        await connection.fetch_one(f"PRAGMA max_page_count = {row[0] + pages}")

    async def unlimit(connection):
        await limit(connection, 1000)

    await database.write(limit)
    with pytest.raises(sqlite3.OperationalError, match="full"):
        await database.write(adding("x" * 100_000))
    await database.write(unlimit)
    await database.write(adding("stored"))

    assert await names(database) == {"stored"}


async def test_a_lost_connection_is_opened_again(database, caplog):
    """A connection that cannot even be rolled back is dropped, and the next write has another."""

    async def break_it(connection):
        await connection.raw_connection.close()
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        await database.write(break_it)
    await database.write(adding("stored"))

    assert await names(database) == {"stored"}
    assert "could not be rolled back" in caplog.text


async def test_a_file_that_cannot_be_opened_is_tried_again(tmp_path):
    """C30: Where the file cannot be opened every use says so, without its path, until it can."""
    blocker = tmp_path / "folder"
    blocker.write_text("a file where the folder should be")
    database = SQLiteDatabase(blocker / "file.db", schema=SCHEMA)

    for use in (database.open, database.check, lambda: database.write(adding("lost"))):
        with pytest.raises(DatabaseUnavailableError) as caught:
            await use()
        assert str(tmp_path) not in str(caught.value)
    blocker.unlink()
    await database.write(adding("stored"))

    assert await names(database) == {"stored"}
    await database.close()


async def test_the_check_sees_a_database_that_answers(database):
    """The check is content with a database that answers."""
    await database.check()


async def test_the_check_sees_a_file_that_was_removed(database):
    """A file removed under the running app makes the check fail: its rows would be lost."""
    database.path.unlink()

    with pytest.raises(DatabaseUnavailableError, match="removed"):
        await database.check()


async def test_the_check_sees_a_database_that_hangs(database):
    """A database that does not answer in time fails the check instead of hanging it."""
    with pytest.raises(DatabaseUnavailableError, match="did not answer"):
        await database.check(timeout=0)


async def test_the_check_sees_a_broken_database(database, monkeypatch):
    """A database that answers with an error fails the check with the error's kind only."""

    async def malformed(*args):
        raise sqlite3.DatabaseError("secret detail")

    monkeypatch.setattr(database, "fetch_one", malformed)

    with pytest.raises(DatabaseUnavailableError, match=r"answered with DatabaseError$"):
        await database.check()


def test_the_probe_refuses_what_is_no_database(tmp_path):
    """Before the start a file that is no database, or a folder, is refused without its path."""
    (tmp_path / "text.db").write_text("no database at all, but long enough to be looked at" * 20)

    for path in (tmp_path / "text.db", tmp_path, tmp_path / "text.db" / "file.db"):
        with pytest.raises(DatabaseUnavailableError) as caught:
            probe(path)
        assert str(tmp_path) not in str(caught.value)


def test_the_probe_takes_a_locked_database(tmp_path):
    """C30: A database that is only locked is no reason not to start."""
    other = sqlite3.connect(tmp_path / "file.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    probe(tmp_path / "file.db")
    other.close()
    probe(Path(tmp_path / "file.db"))
