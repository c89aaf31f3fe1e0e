"""PostgresEngine where it is not like every engine: its connections, its restarts, PgQueuer's traps."""

import asyncio
import contextlib
import gc
import secrets
import uuid

import aiosqlite
import asyncpg
import pytest
from databases import Database
from pgqueuer.adapters.drivers.asyncpg import AsyncpgPoolDriver
from pgqueuer.adapters.persistence.queries import Queries

from deferred import EngineError
from deferred.engines import Dead, Done, Job, RetryIn, find_engine
from deferred.engines._bench import Server as Worker
from deferred.engines._bench import until_settled
from deferred.engines._pgqueuer import Driver
from deferred.engines.postgres import PostgresEngine
from tests.engines.postgresql import connected


@pytest.fixture
async def engine(postgres_url):
    """Return an engine on an empty database, that looks for work by itself once a minute."""
    engine = PostgresEngine(postgres_url, lease=1.0, poll=60.0)
    await engine.setup()
    yield engine
    await engine.close()


def job(name="task", **more):
    """Return a job."""
    return Job(id=more.pop("id", secrets.token_hex(8)), name=name, payload=b"{}", **more)


def test_options_are_checked():
    """Numbers and URLs that mean nothing are refused. A58."""
    for option in ("lease", "poll", "connect_timeout", "keep"):
        with pytest.raises(ValueError, match=option):
            PostgresEngine("postgresql://host/app", **{option: -1})
    with pytest.raises(ValueError, match="connections"):
        PostgresEngine("postgresql://host/app", connections=1)
    for dsn in ("host=localhost", "mysql://host/app"):
        with pytest.raises(ValueError, match="postgresql://user"):
            PostgresEngine(dsn)


def test_urls_of_drivers_are_understood():
    """The scheme of `databases` and SQLAlchemy is taken too."""
    for url in ("postgres://host/app", "postgresql+asyncpg://host/app"):
        assert find_engine(url)._dsn == "postgresql://host/app"


async def test_refuses_a_connection_without_a_transaction(engine, postgres_url):
    """Where no transaction is open there is nothing to join, and the job is not stored. D01."""
    async with connected(postgres_url) as raw:
        with pytest.raises(EngineError, match="no transaction is open"):
            await engine.enqueue([job()], raw)
    async with Database(postgres_url) as database:
        with pytest.raises(EngineError, match=r"pass `database\.connection\(\)`"):
            await engine.enqueue([job()], database)
        with pytest.raises(EngineError, match="not connected"):
            await engine.enqueue([job()], database.connection())
    async with aiosqlite.connect(":memory:") as other:
        with pytest.raises(EngineError, match=r"not a aiosqlite\.core\.Connection"):
            await engine.enqueue([job()], other)
    assert (await engine.depth()).waiting == 0


async def test_joins_raw_connections_and_those_of_pools(engine, postgres_url):
    """A raw asyncpg connection, and one out of a pool, are joined as they are."""
    async with connected(postgres_url) as raw, raw.transaction():
        await engine.enqueue([job(), job(key="k")], raw)
    async with asyncpg.create_pool(postgres_url, min_size=0) as pool, pool.acquire() as proxy:
        async with proxy.transaction():
            await engine.enqueue([job()], proxy)
        rolled_back = proxy.transaction()
        await rolled_back.start()
        await engine.enqueue([job()], proxy)
        await rolled_back.rollback()
    assert (await engine.depth()).waiting == 3


async def test_a_connection_that_is_no_longer_open_is_refused(engine, postgres_url):
    """A connection that was closed, or that its pool has back, joins nothing, and the error says so. D01."""
    raw = await asyncpg.connect(postgres_url)
    await raw.close()
    async with asyncpg.create_pool(postgres_url, min_size=0) as pool:
        async with pool.acquire() as proxy:
            pass
        for connection in (raw, proxy):
            with pytest.raises(EngineError, match="no transaction is open"):
                await engine.enqueue([job()], connection)
        with pytest.raises(EngineError, match=r"not a asyncpg\.pool\.Pool"):
            await engine.enqueue([job()], pool)
    assert (await engine.depth()).waiting == 0


async def test_several_tasks_may_store_on_one_connection(engine, postgres_url):
    """Jobs stored at once in one transaction wait for each other, and for the caller's own statements. D01."""
    async with Database(postgres_url) as database, database.connection() as connection, connection.transaction():
        reading = (connection.fetch_val("select 1") for _ in range(10))
        await asyncio.gather(*(engine.enqueue([job()], connection) for _ in range(10)), *reading)
    async with connected(postgres_url) as raw, raw.transaction():
        await asyncio.gather(*(engine.enqueue([job(), job(key=f"{n}")], raw) for n in range(10)))
    assert (await engine.depth()).waiting == 30


async def test_savepoints_take_their_jobs_along(engine, postgres_url):
    """A job of a savepoint that is rolled back is gone, and those around it stay. D01."""
    async with Database(postgres_url) as database, database.connection() as connection, connection.transaction():
        await engine.enqueue([job("outer")], connection)
        with contextlib.suppress(ZeroDivisionError):
            async with connection.transaction():
                await engine.enqueue([job("inner")], connection)
                raise ZeroDivisionError
    async with Worker(engine) as worker:
        assert (await worker.next()).name == "outer"
        await until_settled(engine)
        assert worker.delivered.empty()


async def test_refuses_the_transaction_of_another_database(engine, postgres_server):
    """A job cannot be committed with rows of another database, so it is not stored; the transaction goes on. D01."""
    async with connected(await postgres_server.new_database()) as other, other.transaction():
        with pytest.raises(EngineError, match="another database"):
            await engine.enqueue([job()], other)
        assert await other.fetchval("select 1") == 1
    assert (await engine.depth()).waiting == 0


async def test_a_key_in_a_transaction_waits_for_the_other(engine, postgres_url):
    """Of two transactions with one key the second waits for the first, and finds its job. D24."""
    async with connected(postgres_url) as one, connected(postgres_url) as two:
        first, second = one.transaction(), two.transaction()
        await first.start()
        await second.start()
        assert await engine.enqueue([job(id="1", key="k")], one) == ["1"]
        rival = asyncio.create_task(engine.enqueue([job(id="2", key="k")], two))
        await first.commit()
        assert await rival == ["1"]
        await second.commit()
    assert (await engine.depth()).waiting == 1


async def test_missing_tables_are_created_or_named(postgres_url):
    """Without leave to create its tables it says how; several that start at once create them once. D32."""
    with pytest.raises(EngineError, match="pgq install"):
        await _setup_and_close(PostgresEngine(postgres_url, create=False))
    await asyncio.gather(*(_setup_and_close(PostgresEngine(postgres_url)) for _ in range(4)))
    await _setup_and_close(PostgresEngine(postgres_url, create=False))


async def test_an_older_schema_is_refused(postgres_url):
    """Tables of an older PgQueuer are left alone, with the command to run. D32."""
    await _setup_and_close(PostgresEngine(postgres_url))
    async with connected(postgres_url) as connection:
        await connection.execute("alter table pgqueuer drop column slot")
    with pytest.raises(EngineError, match="pgq upgrade"):
        await _setup_and_close(PostgresEngine(postgres_url))


async def _setup_and_close(engine):
    try:
        await engine.setup()
    finally:
        await engine.close()


async def test_a_database_that_is_down_is_an_error_in_time(engine, postgres_server):
    """While the database is down enqueue raises within its time, and nothing is half accepted. D13."""
    await engine.enqueue([job()])
    postgres_server.stop()
    try:
        async with asyncio.timeout(30):
            for jobs in ([job()], [job(), job(key="k")]):
                with pytest.raises((OSError, asyncpg.PostgresError, asyncpg.InterfaceError)):
                    await engine.enqueue(jobs)
    finally:
        postgres_server.start()
    assert (await engine.depth()).waiting == 1


async def test_work_goes_on_after_a_restart(postgres_url, postgres_server, caplog):
    """After an immediate restart what ran is finished, what was stored is run, and notifications come. D14."""
    engine = PostgresEngine(postgres_url, lease=30.0, poll=60.0)  # the restart is shorter than the lease
    await engine.enqueue([job("running")])
    worker = Worker(engine)
    worker.hold.clear()
    async with worker:
        await worker.next()
        await asyncio.to_thread(postgres_server.stop)
        await asyncio.to_thread(postgres_server.start)
        worker.hold.set()
        async with asyncio.timeout(30):
            await engine.enqueue([job("later")])  # found by notification: the poll is a minute
            assert (await worker.next()).name == "later"
        await until_settled(engine)
        assert worker.delivered.empty()
    await engine.close()
    messages = [record.getMessage() for record in caplog.records if record.name == "deferred"]
    assert any("is tried again" in message for message in messages)
    assert not any("postgres:" in message for message in messages)  # neither user nor password


@pytest.mark.parametrize("whose", ["listen%", "%"])
async def test_work_goes_on_when_connections_are_cut(engine, postgres_url, whose):
    """When PostgreSQL cuts the connection for notifications, or all, the next job is found all the same. D16 D18."""
    async with Worker(engine) as worker:
        await engine.enqueue([job("before")])
        await worker.next()
        async with connected(postgres_url) as admin:
            await admin.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity "
                "where datname = current_database() and pid <> pg_backend_pid() and lower(query) like $1",
                whose,
            )
        async with asyncio.timeout(30):
            while True:  # a connection of the pool may be found to be dead by the first who uses it
                with contextlib.suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                    await engine.enqueue([job("after")])
                    break
            assert (await worker.next()).name == "after"


async def test_a_connection_that_was_cut_is_closed_without_a_word(engine, monkeypatch):
    """One that a pool has given up, and that is closed in a task of the pool's own, fails for nobody. D18."""
    closed = asyncio.Event()

    async def close(connection, *, timeout=None):
        connection.terminate()
        closed.set()
        raise BrokenPipeError

    await engine.enqueue([job()])
    with monkeypatch.context() as patch:
        patch.setattr(asyncpg.Connection, "close", close)
        await engine._pool.expire_connections()
        await engine.enqueue([job()])
        async with asyncio.timeout(30):
            await closed.wait()
        await asyncio.sleep(0)  # its task ends; an error of it would be told of now
    gc.collect()
    assert (await engine.depth()).waiting == 2


async def test_an_echo_is_asked_for_once_somebody_listens(engine, monkeypatch):
    """A slow LISTEN at the start is not taken for a lost connection: the first probe waits for it. D18."""
    add_listener, notify = Driver.add_listener, AsyncpgPoolDriver.notify
    begun, slow, probed, order = asyncio.Event(), asyncio.Event(), asyncio.Event(), []

    async def listening(driver, channel, callback):
        begun.set()
        await slow.wait()
        await add_listener(driver, channel, callback)
        order.append("listen")

    async def probing(driver, channel, payload):
        order.append("probe")
        await notify(driver, channel, payload)
        probed.set()

    monkeypatch.setattr(Driver, "add_listener", listening)
    monkeypatch.setattr(AsyncpgPoolDriver, "notify", probing)
    async with asyncio.timeout(30), Worker(engine):
        await begun.wait()
        for _ in range(10):  # in which a probe would be sent
            await asyncio.sleep(0)
        slow.set()
        await probed.wait()
    assert order == ["listen", "probe"]


async def test_what_was_claimed_and_not_begun_is_given_back_uncounted(engine):
    """A job that waited in a worker when it stopped has had no delivery. D12."""
    await engine.enqueue([job("first"), job("second")])
    worker = Worker(engine, concurrency=1)
    worker.hold.clear()
    async with worker:
        first = await worker.next()
        worker.stopping()
        worker.hold.set()
    assert worker.delivered.empty()
    async with Worker(engine) as worker:
        other = await worker.next()
        assert (other.number, {first.name, other.name}) == (1, {"first", "second"})


async def test_a_cancelled_delivery_is_not_deleted(engine):
    """PgQueuer deletes what is cancelled in the middle: here it is delivered again. D12."""
    await engine.enqueue([job()])
    running = asyncio.Event()

    async def handle(_):
        running.set()
        await asyncio.Event().wait()
        return Done()

    serving = asyncio.create_task(engine.serve(handle, queues=["deferred"], concurrency=2, stop=asyncio.Event()))
    await running.wait()
    everything = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in everything:  # what asyncio.run() does when the program ends
        task.cancel()
    await asyncio.gather(*everything, return_exceptions=True)
    assert serving.done()
    other = PostgresEngine(engine._dsn, lease=1.0, poll=0.2)
    async with Worker(other) as worker:
        assert (await worker.next()).number == 2
        await until_settled(other)
    await other.close()


@pytest.mark.parametrize("verdict", [RetryIn(0.0, "late"), Dead("failed", "late")])
async def test_a_worker_that_lost_its_job_cannot_retry_or_park_it(engine, verdict):
    """A verdict of a worker whose lease has ended touches nothing: the first to decide wins. D09 D41 QU-18."""
    await engine.enqueue([job()])
    worker = Worker(engine, lambda _: verdict)
    worker.hold.clear()
    async with worker:
        await worker.next()
        async with connected(engine._dsn) as thief:
            await thief.execute("update pgqueuer set queue_manager_id = $1", uuid.uuid4())
            worker.hold.set()
            await worker.stop()
            row = await thief.fetchrow("select status, attempts from pgqueuer")
    assert tuple(row) == ("picked", 0)


async def test_jobs_of_others_are_parked_unrun(engine, postgres_url):
    """A row in our queue that we have not stored is held as PgQueuer's failed, and not run. G14."""
    async with connected(postgres_url) as connection:
        await Queries.from_asyncpg_connection(connection).enqueue("deferred", b"?")
        async with Worker(engine) as worker:
            async with asyncio.timeout(30):
                while await connection.fetchval("select status from pgqueuer") != "failed":
                    await asyncio.sleep(0.02)
            assert worker.delivered.empty()


async def test_rows_that_were_written_over_are_dead_letters(engine, postgres_url, caplog):
    """What cannot be read beside a payload is a dead letter, told in the log; the list shows it. D26 G14."""
    await engine.enqueue([job(id="1"), job(id="2")])
    async with connected(postgres_url) as connection:
        change = (
            "update pgqueuer set headers = jsonb_set(headers, '{deferred}', %s) where headers->'deferred'->>'id' = '1'"
        )
        await connection.execute(change % """headers->'deferred' || '{"headers": 1}'""")
        async with Worker(engine) as worker:
            assert (await worker.next()).id == "2"
            async with asyncio.timeout(30):
                while not (await engine.depth()).dead:
                    await asyncio.sleep(0.01)
        (letter,) = await engine.dead()
        assert (letter.id, letter.name, letter.reason) == ("1", "task", "foreign")
        assert "is a dead letter (foreign)" in caplog.text
        await connection.execute(change % "'3'")
        assert [letter.reason for letter in await engine.dead()] == [""]


async def test_the_log_of_finished_jobs_is_pruned(engine):
    """The log, which PgQueuer keeps for ever, loses what has finished, and keeps what has not. D33 G24."""
    await engine.enqueue([job("done"), job("dead")])
    async with Worker(engine, lambda d: Done() if d.name == "done" else Dead("failed")) as worker:
        await worker.all(2)
        await until_settled(engine)
    engine._keep = engine._keep * 0
    assert await engine.prune() == 3  # queued, picked, successful
    (letter,) = await engine.dead()
    assert letter.number == 1


async def test_a_key_is_free_when_its_job_is_dead(engine):
    """A dead letter holds no key: another job may take it, and the letter may still be retried."""
    await engine.enqueue([job(id="1", key="k")])
    async with Worker(engine, lambda _: Dead("failed")) as worker:
        await worker.next()
        await until_settled(engine)
    assert await engine.enqueue([job(id="2", key="k")]) == ["2"]
    assert await engine.requeue(["1"]) == ["1"]
    assert (await engine.depth()).waiting == 2


async def until_waiting(connection):
    """Wait until somebody waits for a lock."""
    async with asyncio.timeout(30):
        while not await connection.fetchval("select count(*) from pg_locks where not granted"):
            await asyncio.sleep(0.01)


async def test_retried_dead_letters_of_one_key(engine, postgres_url):
    """Of several dead letters with one key the latest has it again once they are retried. D24 D37."""
    async with Worker(engine, lambda _: Dead("failed")) as worker:
        for number in ("1", "2", "3"):
            await engine.enqueue([job(id=number, key="k")])
            await worker.next()
            await until_settled(engine)
    async with connected(postgres_url) as other:
        transaction = other.transaction()
        await transaction.start()
        await engine.enqueue([job(id="4", key="k")], other)
        retried = asyncio.create_task(engine.requeue(["1"]))  # waits for the other's key
        await until_waiting(other)
        await transaction.commit()
        assert await retried == ["1"]
    assert await engine.enqueue([job(id="5", key="k")]) == ["4"]
    async with Worker(engine) as worker:
        await worker.all(2)
        await until_settled(engine)
    assert sorted(await engine.requeue(["2", "3"])) == ["2", "3"]
    assert await engine.enqueue([job(id="6", key="k")]) == ["3"]
