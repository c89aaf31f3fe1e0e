"""Runners in a real database: a SQLite file, and PostgreSQL."""

import asyncio

import pytest

from marathon_app.database import DatabaseBusyError, DatabaseOutcomeUnknownError
from marathon_app.registrations import Registrations
from marathon_app.services import open_database
from marathon_app.settings import Settings
from tests.marathon.support import registration, select


@pytest.fixture(params=["sqlite", "postgresql"])
def settings(request, tmp_path):
    """Give the settings of an empty database of each kind."""
    if request.param == "sqlite":
        return Settings(database=tmp_path / "marathon.db")
    return Settings(database=request.getfixturevalue("postgresql"))


@pytest.fixture
async def database(settings):
    """Give an open database with the app's tables."""
    async with open_database(settings) as database:
        yield database


@pytest.fixture
def runners(database):
    """Give the runners in that database."""
    return Registrations(database)


def rows(settings):
    """Return the runners that are in the database."""
    columns = "first_name, last_name, email, email_key, address, distance"
    return select(settings.database, f"SELECT {columns} FROM runners ORDER BY id")


async def test_a_registration_is_stored(settings, runners):
    """What was registered is in the file as it was normalised."""
    stored = await runners.insert(registration(email="Ada@Example.com"))

    assert stored.new
    assert rows(settings) == [
        ("Ada", "Lovelace", "Ada@example.com", "ada@example.com", "12 St James Square, London", "half")
    ]
    assert await runners.count() == 1


async def test_the_second_registration_of_an_address_changes_nothing(settings, runners):
    """F10: A second registration is not new and leaves the first as it was."""
    await runners.insert(registration())
    stored = await runners.insert(registration(firstName="Eve", email="ADA@example.com"))

    assert not stored.new
    assert [row[0] for row in rows(settings)] == ["Ada"]


async def test_fifty_at_once_make_one_row(database, runners):
    """F10: Of fifty concurrent registrations of one address exactly one is new."""
    stored = await asyncio.gather(*(runners.insert(registration(firstName=f"Ada {number}")) for number in range(50)))

    assert [result.new for result in stored].count(True) == 1
    assert await runners.count() == 1


async def test_what_comes_together_is_stored_together(settings, database, runners, monkeypatch):
    """Registrations that come at once are one transaction, and each is told whether it is new."""
    await runners.insert(registration(email="known@example.com"))
    writes = []
    write = database.write
    monkeypatch.setattr(database, "write", lambda work: writes.append(work) or write(work))
    emails = ["known@example.com", *(f"runner{number}@example.com" for number in range(150)), "Runner7@example.com"]
    stored = await asyncio.gather(*(runners.insert(registration(email=email)) for email in emails))

    assert [result.new for result in stored] == [False, *[True] * 150, False]
    assert [row[2] for row in rows(settings)] == emails[:-1]
    assert len(writes) == 1


async def test_sql_in_a_name_is_a_name(settings, runners):
    """F18: Quotes, colons and SQL in the texts are stored as they are."""
    name = "Robert'); DROP TABLE runners; -- :email ? %s"
    await runners.insert(registration(firstName=name))

    assert rows(settings)[0][0] == name


async def test_a_removed_registration_is_new_again(database, runners):
    """F12: A registration that was taken back leaves no trace; removing it twice is no error."""
    await runners.insert(registration())
    await runners.remove(registration())
    await runners.remove(registration())

    assert await runners.count() == 0
    assert (await runners.insert(registration())).new


async def test_a_registration_that_could_not_be_removed_is_new_again(database, runners, monkeypatch):
    """F12: Its confirmation was not accepted, so whoever tries again gets one, although the row is still there."""
    await runners.insert(registration())
    with monkeypatch.context() as patch:
        patch.setattr(type(database), "write", busy)
        with pytest.raises(DatabaseBusyError):
            await runners.remove(registration())

    assert [(await runners.insert(registration())).new for _ in range(2)] == [True, False]


async def busy(*_):
    """Be busy."""
    raise DatabaseBusyError("busy")


async def test_runners_are_kept_between_runs(settings, database, runners):
    """A database opened again has its runners."""
    await runners.insert(registration())
    await database.close()
    async with open_database(settings) as again:
        assert await Registrations(again).count() == 1


@pytest.mark.looptime
@pytest.mark.parametrize("settings", ["sqlite"], indirect=True)  # no socket knows of virtual time
async def test_the_demo_delay_comes_before_the_insert(database, runners):
    """The delay of the demonstration is waited for before the insert."""
    loop = asyncio.get_running_loop()
    start = loop.time()
    await Registrations(database, delay=3600.0).insert(registration())

    assert 3600.0 <= loop.time() - start < 3700.0


async def test_few_addresses_are_remembered_as_doubtful(database, monkeypatch):
    """D17: An address whose commit nobody has confirmed is new once more, and of many the oldest are forgotten."""
    monkeypatch.setattr("marathon_app.registrations._MOST_DOUBTFUL", 2)
    runners = Registrations(database)
    emails = [f"a{number}@example.com" for number in range(3)]
    write = database.write

    async def unsaid(work):
        await write(work)
        raise DatabaseOutcomeUnknownError("away")

    monkeypatch.setattr(database, "write", unsaid)
    for email in emails:
        with pytest.raises(DatabaseOutcomeUnknownError):
            await runners.insert(registration(email=email))
    monkeypatch.setattr(database, "write", write)

    assert [(await runners.insert(registration(email=email))).new for email in emails] == [False, True, True]
    assert [(await runners.insert(registration(email=email))).new for email in emails] == [False, False, False]
    assert await runners.count() == 3
