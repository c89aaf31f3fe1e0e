"""Runners in a real SQLite file."""

import asyncio
import contextlib
import sqlite3

import pytest

from marathon_app.sqlite import SQLiteDatabase
from marathon_app.registrations import SCHEMA, Registrations
from tests.marathon.support import registration


@pytest.fixture
async def database(tmp_path):
    """Give an open database with the app's tables."""
    database = SQLiteDatabase(tmp_path / "marathon.db", schema=SCHEMA["sqlite"])
    await database.open()
    yield database
    await database.close()


@pytest.fixture
def runners(database):
    """Give the runners in that database."""
    return Registrations(database)


def rows(database):
    """Return the runners that are in the file."""
    with contextlib.closing(sqlite3.connect(database.path)) as connection:
        columns = "first_name, last_name, email, email_key, address, distance"
        return connection.execute(f"SELECT {columns} FROM runners ORDER BY id").fetchall()


async def test_a_registration_is_stored(database, runners):
    """What was registered is in the file as it was normalised."""
    stored = await runners.insert(registration(email="Ada@Example.com"))

    assert stored.new
    assert rows(database) == [
        ("Ada", "Lovelace", "Ada@example.com", "ada@example.com", "12 St James Square, London", "half")
    ]
    assert await runners.count() == 1


async def test_the_second_registration_of_an_address_changes_nothing(database, runners):
    """F10: A second registration is not new and leaves the first as it was."""
    await runners.insert(registration())
    stored = await runners.insert(registration(firstName="Eve", email="ADA@example.com"))

    assert not stored.new
    assert [row[0] for row in rows(database)] == ["Ada"]


async def test_fifty_at_once_make_one_row(database, runners):
    """F10: Of fifty concurrent registrations of one address exactly one is new."""
    stored = await asyncio.gather(*(runners.insert(registration(firstName=f"Ada {number}")) for number in range(50)))

    assert [result.new for result in stored].count(True) == 1
    assert await runners.count() == 1


async def test_what_comes_together_is_stored_together(database, runners):
    """Registrations that come at once are one transaction, and each is told whether it is new."""
    await runners.insert(registration(email="known@example.com"))
    before = await runners._database.fetch_one("PRAGMA data_version")
    emails = ["known@example.com", *(f"runner{number}@example.com" for number in range(150)), "Runner7@example.com"]
    stored = await asyncio.gather(*(runners.insert(registration(email=email)) for email in emails))
    after = await runners._database.fetch_one("PRAGMA data_version")

    assert [result.new for result in stored] == [False, *[True] * 150, False]
    assert [row[2] for row in rows(database)] == emails[:-1]
    assert after[0] == before[0] + 1


async def test_sql_in_a_name_is_a_name(database, runners):
    """F18: Quotes, colons and SQL in the texts are stored as they are."""
    name = "Robert'); DROP TABLE runners; -- :email ? %s"
    await runners.insert(registration(firstName=name))

    assert rows(database)[0][0] == name


async def test_a_removed_registration_is_new_again(database, runners):
    """F12: A registration that was taken back leaves no trace; removing it twice is no error."""
    await runners.insert(registration())
    await runners.remove(registration())
    await runners.remove(registration())

    assert await runners.count() == 0
    assert (await runners.insert(registration())).new


async def test_runners_are_kept_between_runs(database, runners, tmp_path):
    """A file opened again has its runners."""
    await runners.insert(registration())
    await database.close()
    again = SQLiteDatabase(tmp_path / "marathon.db", schema=SCHEMA["sqlite"])
    await again.open()

    assert await Registrations(again).count() == 1
    await again.close()


@pytest.mark.looptime
async def test_the_demo_delay_comes_before_the_insert(database, runners):
    """The delay of the demonstration is waited for before the insert."""
    loop = asyncio.get_running_loop()
    start = loop.time()
    await Registrations(database, delay=3600.0).insert(registration())

    assert 3600.0 <= loop.time() - start < 3700.0
