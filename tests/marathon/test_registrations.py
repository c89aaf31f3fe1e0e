"""Runners in a real SQLite file."""

import asyncio
import contextlib
import sqlite3

import pytest

from marathon_app import registrations
from marathon_app.database import Database
from tests.marathon.support import registration


@pytest.fixture
async def database(tmp_path):
    """Give an open database with the app's tables."""
    database = Database(tmp_path / "marathon.db", schema=registrations.SCHEMA)
    await database.open()
    yield database
    await database.close()


def rows(database):
    """Return the runners that are in the file."""
    with contextlib.closing(sqlite3.connect(database.path)) as connection:
        columns = "first_name, last_name, email, email_key, address, distance"
        return connection.execute(f"SELECT {columns} FROM runners ORDER BY id").fetchall()


async def test_a_registration_is_stored(database):
    """What was registered is in the file as it was normalised."""
    stored = await registrations.insert(database, registration(email="Ada@Example.com"))

    assert stored.new
    assert rows(database) == [
        ("Ada", "Lovelace", "Ada@example.com", "ada@example.com", "12 St James Square, London", "half")
    ]
    assert await registrations.count(database) == 1


async def test_the_second_registration_of_an_address_changes_nothing(database):
    """F10: A second registration is not new and leaves the first as it was."""
    await registrations.insert(database, registration())
    stored = await registrations.insert(database, registration(firstName="Eve", email="ADA@example.com"))

    assert not stored.new
    assert [row[0] for row in rows(database)] == ["Ada"]


async def test_fifty_at_once_make_one_row(database):
    """F10: Of fifty concurrent registrations of one address exactly one is new."""
    stored = await asyncio.gather(
        *(registrations.insert(database, registration(firstName=f"Ada {number}")) for number in range(50))
    )

    assert [result.new for result in stored].count(True) == 1
    assert await registrations.count(database) == 1


async def test_sql_in_a_name_is_a_name(database):
    """F18: Quotes, colons and SQL in the texts are stored as they are."""
    name = "Robert'); DROP TABLE runners; -- :email ? %s"
    await registrations.insert(database, registration(firstName=name))

    assert rows(database)[0][0] == name


async def test_a_removed_registration_is_new_again(database):
    """F12: A registration that was taken back leaves no trace; removing it twice is no error."""
    await registrations.insert(database, registration())
    await registrations.remove(database, registration())
    await registrations.remove(database, registration())

    assert await registrations.count(database) == 0
    assert (await registrations.insert(database, registration())).new


async def test_runners_are_kept_between_runs(database, tmp_path):
    """A file opened again has its runners."""
    await registrations.insert(database, registration())
    await database.close()
    again = Database(tmp_path / "marathon.db", schema=registrations.SCHEMA)
    await again.open()

    assert await registrations.count(again) == 1
    await again.close()


@pytest.mark.looptime
async def test_the_demo_delay_comes_before_the_insert(database):
    """The delay of the demonstration is waited for, and holds up nobody else's insert."""
    loop = asyncio.get_running_loop()
    start = loop.time()
    slow = asyncio.create_task(registrations.insert(database, registration(), delay=3600.0))
    await asyncio.sleep(0)
    assert not database._turn.locked()
    await slow

    assert 3600.0 <= loop.time() - start < 3700.0
