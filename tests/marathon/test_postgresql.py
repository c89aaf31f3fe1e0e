"""The wrapper around `databases` where it is not like the other one: its server, which comes and goes."""

import asyncio
import contextlib
import gc
import time

import asyncpg
import pytest

from marathon_app.database import DatabaseBusyError, DatabaseOutcomeUnknownError, DatabaseUnavailableError
from marathon_app.postgresql import PostgresDatabase
from tests.engines.postgresql import Proxy, connected
from tests.marathon.support import select
from tests.marathon.test_databases import SCHEMA, adding, held, names


@contextlib.asynccontextmanager
async def opened(url, **options):
    """Give an open database, whose `close` has to return."""
    database = PostgresDatabase(url, schema=SCHEMA, **options)
    await database.open()
    yield database
    async with asyncio.timeout(30):
        await database.close()
    assert database._pool is None


@pytest.mark.parametrize("done", [True, False])
async def test_a_commit_whose_answer_is_lost_is_looked_up(postgresql, done):
    """D17: Where the connection breaks at COMMIT the row is stored once, done or not, and the caller told the truth."""
    async with Proxy(postgresql.url) as proxy, opened(proxy.url) as database:
        proxy.forwards = done
        proxy.swallow = b"COMMIT"
        runs = []

        async def work(connection):
            runs.append(1)
            return await adding("once")(connection)

        row = await database.write(work)

        assert (row["name"], proxy.cuts, len(runs)) == ("once", 1, 1 if done else 2)
        assert held(database) == 0
    assert names(postgresql) == {"once"}


async def test_a_connection_that_was_cut_is_closed_without_a_word(postgresql, monkeypatch):
    """D18: What the pool has given up, and closes in a task of its own, fails for nobody where it was cut."""
    closed = asyncio.Event()

    async def close(connection, *, timeout=None):
        connection.terminate()
        closed.set()
        raise BrokenPipeError

    async with opened(postgresql.url) as database:
        await database.write(adding("before"))
        with monkeypatch.context() as patch:
            patch.setattr(asyncpg.Connection, "close", close)
            await database._renew()
            await database.write(adding("after"))
            async with asyncio.timeout(30):
                await closed.wait()
            await asyncio.sleep(0)  # its task ends; an error of it would be told of now
        gc.collect()
    assert names(postgresql) == {"before", "after"}


async def test_an_outcome_that_nobody_can_tell_is_said_to_be_unknown(postgresql, monkeypatch):
    """D17: Where PostgreSQL cannot be asked either, the caller is told that it is not known, in time."""
    monkeypatch.setattr("marathon_app.postgresql.ASKED", 0.3)
    async with Proxy(postgresql.url) as proxy, opened(proxy.url) as database:
        proxy.forwards, proxy.swallow = True, b"COMMIT"
        monkeypatch.setattr(database, "_fetch_one", away)
        with pytest.raises(DatabaseOutcomeUnknownError, match="not known"):
            await database.write(adding("perhaps"))


async def away(*_):
    """Answer as a database that is away does."""
    raise DatabaseUnavailableError("away")


async def test_a_connection_that_died_idle_costs_nobody_anything(postgresql):
    """D16: After every connection was cut, and after an immediate restart, writes and reads work at once."""
    # asyncpg forgets a task of its own where a connection is cut at the moment at which it is used.
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    async with opened(postgresql.url) as database:
        await asyncio.gather(*(database.write(adding(str(number))) for number in range(8)))
        async with connected(postgresql.url) as admin:
            await admin.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity "
                "where datname = current_database() and pid <> pg_backend_pid()"
            )
        row = await database.fetch_one("SELECT count(*) AS number FROM items")
        await database.write(adding("after"))

        assert row["number"] == 8
        assert held(database) == 0
    assert "after" in names(postgresql)


async def test_a_server_that_is_down_is_told_in_time_and_used_again(postgresql, postgres_server):
    """D13, C30: While PostgreSQL is down reads and writes fail as unavailable; when it is up they work."""
    async with opened(postgresql.url) as database:
        await asyncio.to_thread(postgres_server.stop)
        try:
            started = time.monotonic()
            for use in (database.check, lambda: database.write(adding("lost")), lambda: database.fetch_one("SELECT 1")):
                with pytest.raises(DatabaseUnavailableError):
                    await use()
            assert time.monotonic() - started < 20
        finally:
            await asyncio.to_thread(postgres_server.start)
        await database.write(adding("stored"))
        await database.check()

        assert held(database) == 0
    assert names(postgresql) == {"stored"}


async def test_it_opens_later_where_it_could_not_at_first(postgresql, postgres_server):
    """C30: A database that could not be opened is opened by the first use that can."""
    database = PostgresDatabase(postgresql.url, schema=SCHEMA)
    await asyncio.to_thread(postgres_server.stop)
    try:
        with pytest.raises(DatabaseUnavailableError):
            await database.open()
    finally:
        await asyncio.to_thread(postgres_server.start)
    await database.write(adding("stored"))
    await database.close()

    assert names(postgresql) == {"stored"}


async def test_a_deadlock_is_tried_again(postgresql):
    """D20: Two transactions that wait for each other are both done, one of them at its second try."""
    async with opened(postgresql.url) as database:
        await database.write(adding("a"))
        await database.write(adding("b"))
        tries, both = [], asyncio.Barrier(2)

        def locking(first, second):
            async def work(connection):
                tries.append(first)
                await connection.fetch_one("SELECT 1 FROM items WHERE name = :name FOR UPDATE", {"name": first})
                if len(tries) <= 2:
                    await both.wait()
                await connection.fetch_one("SELECT 1 FROM items WHERE name = :name FOR UPDATE", {"name": second})

            return work

        await asyncio.gather(database.write(locking("a", "b")), database.write(locking("b", "a")))

        assert len(tries) == 3


async def test_a_serialization_failure_is_tried_again(postgresql):
    """D20: Transactions that PostgreSQL cannot put in an order are run again, one after the other."""
    async with connected(postgresql.url) as admin:
        name = await admin.fetchval("select current_database()")
        await admin.execute(f"alter database {name} set default_transaction_isolation = 'serializable'")
    async with opened(postgresql.url) as database:

        async def next_number(connection):
            row = await connection.fetch_one("SELECT count(*) AS number FROM items")
            await adding(f"{row['number']}")(connection)

        await asyncio.gather(*(database.write(next_number) for _ in range(4)))
    assert names(postgresql) == {"0", "1", "2", "3"}


@pytest.mark.parametrize("how", ["the server's timeout", "ours"])
async def test_a_lock_that_is_not_free_makes_it_busy(postgresql, how):
    """D20: A statement that waits for too long is taken back, and the caller told to try again."""
    async with connected(postgresql.url) as admin:
        name = await admin.fetchval("select current_database()")
        if how != "ours":
            await admin.execute(f"alter database {name} set statement_timeout = '1s'")
        async with opened(postgresql.url, command_timeout=1.0 if how == "ours" else 10) as database:
            await database.write(adding("before"))
            async with admin.transaction():
                await admin.execute("lock table items in access exclusive mode")
                with pytest.raises(DatabaseBusyError):
                    await database.write(adding("refused"))
                with pytest.raises(DatabaseBusyError):
                    await database.fetch_one("SELECT count(*) FROM items")
            await database.write(adding("stored"))

            assert held(database) == 0
    assert names(postgresql) == {"before", "stored"}


async def test_a_server_that_is_no_longer_the_primary_is_left(postgresql):
    """D14: Where writes are refused as read-only nothing is stored, and other connections are tried the next time."""
    async with opened(postgresql.url) as database, connected(postgresql.url) as other:
        name = await other.fetchval("SELECT current_database()")
        await other.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
        await database._renew()
        with pytest.raises(DatabaseUnavailableError, match="nothing was stored"):
            await database.write(adding("refused"))
        await other.execute(f'ALTER DATABASE "{name}" RESET default_transaction_read_only')
        await database.write(adding("stored"))

        assert held(database) == 0
    assert names(postgresql) == {"stored"}


async def test_processes_that_start_at_once_make_the_tables_once(postgresql):
    """Several that start on an empty database at the same time all start."""
    databases = [PostgresDatabase(postgresql.url, schema=SCHEMA) for _ in range(5)]
    await asyncio.gather(*(database.open() for database in databases))
    await asyncio.gather(*(database.write(adding(str(number))) for number, database in enumerate(databases)))
    await asyncio.gather(*(database.close() for database in databases))

    assert len(names(postgresql)) == 5


async def test_a_role_that_may_not_make_tables_is_told(postgresql):
    """A database in which the tables cannot be made is unavailable, and the message names no host."""
    async with connected(postgresql.url) as admin:
        name = await admin.fetchval("select current_database()")
        await admin.execute(f"alter database {name} set default_transaction_read_only = on")
    database = PostgresDatabase(postgresql.url, schema=SCHEMA)
    with pytest.raises(DatabaseUnavailableError, match=r"prepared: ReadOnlySQLTransactionError$"):
        await database.open()
    await database.close()


async def test_ids_do_not_wrap(postgresql):
    """D44: The runners' ids, and those of the jobs, are 64 bits wide."""
    from deferred.engines.postgres import PostgresEngine
    from marathon_app.registrations import SCHEMA as RUNNERS

    engine = PostgresEngine(postgresql.url)
    await engine.setup()
    await engine.close()
    database = PostgresDatabase(postgresql.url, schema=RUNNERS["postgresql"])
    await database.open()
    await database.close()
    found = select(
        postgresql,
        "select table_name, data_type from information_schema.columns "
        "where column_name in ('id', 'job_id') and table_schema = 'public'",
    )

    assert {table for table, _ in found} >= {"runners", "pgqueuer", "pgqueuer_log"}
    assert {kind for _, kind in found} == {"bigint"}


async def test_asyncpg_is_closed_though_a_query_hangs(postgresql, monkeypatch, caplog):
    """A query that does not end in time does not keep the app from closing its database."""
    monkeypatch.setattr("marathon_app.postgresql.CLOSE_TIMEOUT", 0.1)
    database = PostgresDatabase(postgresql.url, schema=SCHEMA)
    await database.open()
    reading = asyncio.create_task(database.fetch_one("SELECT pg_sleep(30)"))
    while not held(database):
        await asyncio.sleep(0)
    async with asyncio.timeout(20):
        await database.close()
    with pytest.raises((DatabaseUnavailableError, asyncpg.InterfaceError)):
        await reading

    assert "did not end" in caplog.text
