"""The wrapper around `databases` where it is not like the other one: its file, its threads, its locks."""

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


async def test_what_a_cancelled_caller_was_opening_is_for_the_next(tmp_path, monkeypatch):
    """A client that goes away while the file is opened leaves no connection behind that nobody closes."""
    database, connect, made, go_on = SQLiteDatabase(tmp_path / "file.db"), sqlite3.connect, [], threading.Event()

    def slowly(*args, **options):
        made.append(connect(*args, **options))
        assert go_on.wait(60)
        return made[-1]

    monkeypatch.setattr(sqlite3, "connect", slowly)
    first = asyncio.create_task(database.open())
    while not made:
        await asyncio.sleep(0.001)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    go_on.set()
    await database.open()
    assert len(made) == 2, "a writer and a reader"
    await database.close()
    for connection in made:
        with pytest.raises(sqlite3.ProgrammingError, match="closed"):
            connection.total_changes  # noqa: B018


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


async def test_a_full_disk_is_an_error_and_passes(database):
    """C28: Where the disk is full the caller is told that nothing was stored; with room again, writes work."""

    async def limit(connection, pages=0):
        row = await connection.fetch_one("PRAGMA page_count")
        await connection.fetch_one(f"PRAGMA max_page_count = {row[0] + pages}")

    async def unlimit(connection):
        await limit(connection, 1000)

    await database.write(limit)
    with pytest.raises(DatabaseUnavailableError, match="full"):
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


async def test_the_check_sees_a_file_that_was_removed(database):
    """A file removed under the running app makes the check fail: its rows would be lost."""
    database.path.unlink()

    with pytest.raises(DatabaseUnavailableError, match="removed"):
        await database.check()


async def test_a_write_goes_to_the_file_that_is_there(database, caplog):
    """Once the file was removed or replaced, what is written goes to the one at its path."""
    folder = database.path.parent
    for file in folder.iterdir():
        file.rename(file.with_name(f"old-{file.name}"))

    await database.write(adding("after"))

    assert stored_in(database.path) == ["after"]
    await database.check()
    assert "removed or replaced" in caplog.text


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
