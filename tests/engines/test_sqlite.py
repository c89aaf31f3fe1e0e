"""SQLiteEngine where it is not like every engine: its file, its connections, cairnq's traps."""

import asyncio
import contextlib
import gc
import importlib.metadata
import itertools
import sqlite3
import sys
import threading
import time
from pathlib import Path

import aiosqlite
import pytest
from cairnq.store import sqlite as cairnq
from databases import Database

from deferred import EngineError
from deferred.engines import Dead, Done, Job, RetryIn, find_engine
from deferred.engines._bench import Server as Worker
from deferred.engines._bench import until_settled
from deferred.engines.sqlite import SQLiteEngine


@pytest.fixture
async def engine(tmp_path):
    """Return an engine on an empty file."""
    engine = SQLiteEngine(tmp_path / "jobs.db", poll=0.01)
    await engine.setup()
    yield engine
    await engine.close()


def lasts(thread):
    """Say whether a thread does not end by itself."""
    thread.join(5)
    return thread.is_alive()


def job(name="task", **more):
    """Return a job."""
    return Job(id=more.pop("id", name), name=name, payload=b"{}", **more)


@pytest.mark.parametrize("path", ["", ":memory:", "file:x?mode=memory"])
def test_needs_a_file(path):
    """Work in memory would not be durable, so it is refused."""
    with pytest.raises(ValueError, match="path of a file"):
        SQLiteEngine(path)


@pytest.mark.parametrize("option", ["lease", "poll", "busy_timeout", "keep"])
def test_options_are_checked(option):
    """Numbers that mean nothing are refused by name. A58."""
    with pytest.raises(ValueError, match=option):
        SQLiteEngine("x.db", **{option: -1})


def test_urls_name_files():
    """A URL names a relative or an absolute path, and nothing else."""
    assert find_engine("sqlite:///jobs.db").path == "jobs.db"
    assert find_engine("sqlite+aiosqlite:////var/my%20jobs.db").path == "/var/my jobs.db"
    for url in ("sqlite://", "sqlite://jobs.db", "sqlite:///jobs.db?timeout=3"):
        with pytest.raises(ValueError, match="sqlite:///path"):
            find_engine(url)


async def test_what_no_database_can_be_is_refused_by_its_path(tmp_path):
    """A folder, somebody else's file, and a folder that cannot be made are named at the start. C30."""
    (tmp_path / "notes.txt").write_text("hello" * 1000)
    for path in (tmp_path, tmp_path / "notes.txt", tmp_path / "notes.txt" / "jobs.db"):
        engine = SQLiteEngine(path)
        for attempt in (engine.setup, lambda engine=engine: engine.enqueue([job()])):
            with pytest.raises(EngineError, match=f"{path} cannot be used"):
                await attempt()
    assert (tmp_path / "notes.txt").read_text() == "hello" * 1000


def test_other_urls_are_refused_without_their_password():
    """An unknown scheme is named; the URL, which may hold a password, is not shown. E20."""
    with pytest.raises(ValueError, match="'mysql://'") as caught:
        find_engine("mysql://user:secret@host/database")
    assert "secret" not in str(caught.value)
    with pytest.raises(ValueError, match="sqlite"):
        find_engine("jobs.db")
    with pytest.raises(TypeError, match="Engine or a URL"):
        find_engine(3)
    engine = SQLiteEngine("x.db")
    assert find_engine(engine) is engine


def test_an_engine_without_its_packages_says_what_to_install(monkeypatch):
    """An engine of ours whose packages are missing is answered with the command that installs them."""
    monkeypatch.setitem(sys.modules, "aiosqlite", None)
    monkeypatch.delitem(sys.modules, "deferred.engines.sqlite")
    with pytest.raises(ModuleNotFoundError, match=r"'aiosqlite', .* pip install 'deferred-middleware\[sqlite\]'"):
        find_engine("sqlite:///jobs.db")


def test_somebody_elses_engine_without_its_package_names_that(tmp_path, monkeypatch):
    """An engine of another package is no extra of ours: what it misses is named."""
    (tmp_path / "pigeons.py").write_text("import loft")
    monkeypatch.syspath_prepend(tmp_path)
    point = importlib.metadata.EntryPoint("pigeon", "pigeons:Engine", "deferred.engines")
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda *, group: [point])
    with pytest.raises(ModuleNotFoundError, match="pip install 'loft'"):
        find_engine("pigeon://loft")


async def test_joins_a_raw_connection_that_begins_by_itself(engine):
    """An aiosqlite connection in its default mode begins a transaction for the job, which its owner commits."""
    async with aiosqlite.connect(engine.path) as connection:
        await engine.enqueue([job("rolled back")], connection)
        await connection.rollback()
        await engine.enqueue([job("kept")], connection)
        await connection.commit()
    assert (await engine.depth()).waiting == 1


async def test_refuses_a_connection_without_a_transaction(engine):
    """Where no transaction is open there is nothing to join, and the job is not stored. D01."""
    async with aiosqlite.connect(engine.path, isolation_level=None) as connection:
        with pytest.raises(EngineError, match="no transaction is open"):
            await engine.enqueue([job()], connection)
    async with Database(f"sqlite:///{engine.path}") as database:
        with pytest.raises(EngineError, match=r"pass `database\.connection\(\)`"):
            await engine.enqueue([job()], database)
        async with database.connection() as connection:
            with pytest.raises(EngineError, match="no transaction is open"):
                await engine.enqueue([job()], connection)
    assert (await engine.depth()).waiting == 0


async def test_savepoints_take_their_jobs_along(engine):
    """A job of a savepoint that is rolled back is gone, those around it stay; several tasks may store at once. D01."""
    closed = await aiosqlite.connect(engine.path)
    await closed.close()
    with pytest.raises(EngineError, match="no transaction is open"):
        await engine.enqueue([job()], closed)
    async with (
        Database(f"sqlite:///{engine.path}") as database,
        database.connection() as connection,
        connection.transaction(),
    ):
        await asyncio.gather(*(engine.enqueue([job(f"outer {n}")], connection) for n in range(5)))
        with contextlib.suppress(ZeroDivisionError):
            async with connection.transaction():
                await engine.enqueue([job("inner")], connection)
                raise ZeroDivisionError
    assert (await engine.depth()).waiting == 5


async def test_refuses_the_transaction_of_another_file(engine, tmp_path):
    """A job cannot be committed with rows of another database, so it is not stored in either. D01."""
    other = SQLiteEngine(tmp_path / "other.db")
    await other.setup()
    async with aiosqlite.connect(other.path) as connection:
        with pytest.raises(EngineError, match=r"other\.db"):
            await engine.enqueue([job()], connection)
    async with aiosqlite.connect(":memory:") as connection:
        with pytest.raises(EngineError, match="in memory"):
            await engine.enqueue([job()], connection)
    assert (await engine.depth()).waiting == (await other.depth()).waiting == 0
    await other.close()


async def test_a_key_in_a_transaction_waits_for_the_other(engine):
    """Of two transactions with one key the second finds the first's job, once that has committed. D24."""
    async with aiosqlite.connect(engine.path) as first, aiosqlite.connect(engine.path) as second:
        assert await engine.enqueue([job(id="1", key="k")], first) == ["1"]
        rival = asyncio.create_task(engine.enqueue([job(id="2", key="k")], second))
        await first.commit()
        assert await rival == ["1"]
        await second.commit()
    assert (await engine.depth()).waiting == 1


async def test_a_locked_database_is_an_error_in_time(tmp_path):
    """While another holds the write lock too long, enqueue raises and stores nothing. D13 D40."""
    engine = SQLiteEngine(tmp_path / "jobs.db", busy_timeout=0.2)
    await engine.setup()
    async with aiosqlite.connect(engine.path, isolation_level=None) as other:
        await other.execute("BEGIN IMMEDIATE")
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            await engine.enqueue([job("one"), job("two", key="k")])
        await other.execute("ROLLBACK")
    assert (await engine.depth()).waiting == 0
    await engine.close()


async def test_a_full_disk_is_an_error(engine):
    """What does not fit on the disk is refused, not falsely accepted. C28."""
    store = await engine._ready()
    (pages,) = await store._conn.execute_fetchall("pragma page_count")
    await store._conn.execute(f"pragma max_page_count = {pages[0]}")
    big = Job(id="big", name="task", payload=b'"' + b"x" * 200_000 + b'"')
    with pytest.raises(sqlite3.OperationalError, match="full"):
        await engine.enqueue([big])
    assert (await engine.depth()).waiting == 0


async def test_a_file_of_another_protocol_is_refused(tmp_path):
    """A file that another version of cairnq wrote is refused, with what to do. D32."""
    path = tmp_path / "jobs.db"
    engine = SQLiteEngine(path)
    await engine.setup()
    await engine.close()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("update cairnq_meta set value = '9' where key = 'protocol_version'")
        connection.commit()
    with pytest.raises(EngineError, match=r"protocol_version=9.*version of cairnq"):
        await SQLiteEngine(path).setup()


async def test_finished_jobs_are_deleted(tmp_path):
    """Rows of finished jobs go after `keep` seconds; dead letters stay. D33 G24."""
    engine = SQLiteEngine(tmp_path / "jobs.db", keep=0.001, poll=0.01)
    await engine.enqueue([job("1"), job("2")])
    stop = asyncio.Event()

    async def handle(delivery):
        if delivery.name == "2":
            stop.set()
        return Done()

    await engine.serve(handle, queues=["deferred"], concurrency=1, stop=stop)
    await asyncio.sleep(0.01)  # the rows' own clock is the wall's
    assert await engine.prune() == 2
    await engine.close()


async def test_trouble_is_said_once_and_so_is_its_end(engine, caplog):
    """A store that is away is logged once, with the engine's name, until it works again. C30."""
    store = await engine._ready()
    claim, failures = store.claim_session, 0
    stop = asyncio.Event()

    async def failing(**options):
        nonlocal failures
        failures += 1
        if failures < 3:
            raise sqlite3.OperationalError("disk I/O error")
        return await claim(**options)

    store.claim_session = failing

    async def handle(_):
        stop.set()
        return Done()

    await engine.enqueue([job()])
    await engine.serve(handle, queues=["deferred"], concurrency=1, stop=stop)
    first, second = (record.getMessage() for record in caplog.records if record.name == "deferred")
    assert first.endswith("claim failed, and is tried again: OperationalError: disk I/O error")
    assert second.endswith("works again")


@pytest.fixture
def refusing(engine, monkeypatch):
    """Have the next verdicts refused, as many as its list holds errors."""
    store, errors = engine._store, []

    def refuse_first(write):
        async def refused(**options):
            if errors:
                raise errors.pop()
            return await write(**options)

        return refused

    for name in ("fail", "complete"):
        monkeypatch.setattr(store, name, refuse_first(getattr(store, name)))
    return errors


@pytest.mark.parametrize("verdict", [RetryIn(0.0, "note"), Dead("failed", "why"), Done()])
async def test_a_verdict_that_a_lock_keeps_out_is_written_later(engine, refusing, verdict):
    """It is written as it was: a note that was lost made of earlier deliveries as many deaths of a process. D20 D40."""
    refusing.append(sqlite3.OperationalError("database is locked"))
    await engine.enqueue([job()])
    async with Worker(engine, lambda delivery: verdict if delivery.number == 1 else Done()) as worker:
        notes = [delivery.note for delivery in await worker.all(1 + isinstance(verdict, RetryIn))]
        await until_settled(engine)
        assert worker.delivered.empty()
    assert not refusing
    assert notes[1:] == ["note"] * isinstance(verdict, RetryIn)
    assert [letter.reason for letter in await engine.dead()] == ["failed"] * isinstance(verdict, Dead)


async def test_a_verdict_that_comes_too_late_is_no_other(engine, refusing, monkeypatch):
    """What cannot be written while the lease lasts is left: the job is delivered again, with the note it had. D09."""
    monkeypatch.setattr(engine, "_lease_ms", 300)

    def answer(delivery):
        if delivery.number == 2:
            refusing.extend([sqlite3.OperationalError("database is locked")] * 1000)
        return RetryIn(0.0, "first") if delivery.number == 1 else Done()

    await engine.enqueue([job()])
    async with Worker(engine, answer) as worker:
        assert [delivery.note for delivery in await worker.all(3)] == ["", "first", "first"]
        refusing.clear()
        await until_settled(engine)


async def test_a_clock_that_is_put_back_holds_nothing_up(tmp_path, monkeypatch):
    """What was stored, claimed or delayed an hour ahead of the clock waits no longer than it would have. D22."""
    ahead = 3_600_000
    monkeypatch.setattr(cairnq, "now_ms", lambda: int(time.time() * 1000) + ahead)
    engine = SQLiteEngine(tmp_path / "jobs.db", poll=0.01)
    await engine.enqueue([job("stored"), job("delayed", delay=60), job("held")])
    store = await engine._ready()
    await store._conn.execute(
        "update cairnq_tasks set status = 'running', worker_id = 'gone', attempt = 1, "
        "lease_until_ms = updated_at_ms + 200 where id = 'held'"
    )
    ahead = 0
    async with Worker(engine) as worker:
        assert {delivery.id for delivery in await worker.all(2)} == {"stored", "held"}
    ((due,),) = await store._conn.execute_fetchall("select run_at_ms from cairnq_tasks where id = 'delayed'")
    assert 0 < due - time.time() * 1000 <= 60_000
    await engine.close()


async def test_a_transaction_on_a_file_that_replaced_another_is_joined(engine):
    """Whoever opens the new file first finds the tables there. D40."""
    await engine.enqueue([job("before")])
    for file in Path(engine.path).parent.iterdir():
        file.rename(file.with_name(f"old-{file.name}"))
    async with aiosqlite.connect(engine.path, isolation_level=None) as connection:
        await connection.execute("begin")
        assert await engine.enqueue([job("after")], connection) == ["after"]
        await connection.commit()
        rows = await connection.execute_fetchall("select id from cairnq_tasks")
        assert [*map(tuple, rows)] == [("after",)]


async def test_an_opening_that_fails_midway_leaves_nothing_open(tmp_path, recwarn):
    """Where the tables cannot be made, neither a connection nor its thread is left behind. C30."""
    with contextlib.closing(sqlite3.connect(tmp_path / "jobs.db")) as connection:
        connection.execute("create table cairnq_migrations (somebody_elses text)")
    engine = SQLiteEngine(tmp_path / "jobs.db")
    before = {*threading.enumerate()}
    with pytest.raises(sqlite3.OperationalError, match="no such column"):
        await engine.setup()
    gc.collect()
    made = [thread for thread in {*threading.enumerate()} - before if "worker_thread" in thread.name]
    assert not any(map(lasts, made))
    assert not recwarn.list
    await engine.close()


async def test_an_opening_that_is_cancelled_midway_leaves_nothing_open(tmp_path, monkeypatch, recwarn):
    """Whoever is cancelled at any step of an opening leaves neither a connection nor its thread behind. C30."""
    execute, before, left = aiosqlite.Connection._execute, {*threading.enumerate()}, 0

    async def cancelled(*args, **options):
        nonlocal left
        left -= 1
        if not left:
            raise asyncio.CancelledError
        return await execute(*args, **options)

    monkeypatch.setattr(aiosqlite.Connection, "_execute", cancelled)
    for steps in itertools.count(1):
        left = steps
        engine = SQLiteEngine(tmp_path / f"{steps}.db")
        with contextlib.suppress(asyncio.CancelledError):
            await engine.setup()
        done = left > 0
        left = 0
        await engine.close()
        if done:
            break
    assert steps > 10
    gc.collect()
    made = [thread for thread in {*threading.enumerate()} - before if "worker_thread" in thread.name]
    assert not any(map(lasts, made))
    assert not recwarn.list


async def test_what_a_cancelled_caller_was_opening_is_closed(tmp_path, monkeypatch):
    """Whoever is cancelled while the file is opened leaves nothing behind that only the collector closes. C30."""
    engine, connect, made, go_on = SQLiteEngine(tmp_path / "jobs.db"), sqlite3.connect, [], threading.Event()

    def slowly(*args, **options):
        if "check_same_thread" not in options:  # a look whether it can be opened
            return connect(*args, **options)
        made.append(connect(*args, **options))
        assert go_on.wait(60)
        return made[-1]

    monkeypatch.setattr(sqlite3, "connect", slowly)
    before = {*threading.enumerate()}
    first = asyncio.create_task(engine.setup())
    while not made:
        await asyncio.sleep(0.001)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    (thread,) = (thread for thread in {*threading.enumerate()} - before if "worker_thread" in thread.name)
    go_on.set()
    while thread.is_alive():
        await asyncio.sleep(0.001)
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        made[0].total_changes  # noqa: B018
    await engine.close()


async def test_rows_that_were_written_over_are_dead_letters(engine, caplog):
    """What cannot be read beside a payload is a dead letter, told in the log; the list shows it. D26 G14."""
    rows = {"metadata": '{"headers": 1}', "error": "[]"}
    await engine.enqueue([job(name) for name in rows])
    store = await engine._ready()
    for name, text in rows.items():
        await store._conn.execute(f"update cairnq_tasks set {name} = ? where id = ?", (text, name))
    async with Worker(engine, lambda _: Dead("failed")) as worker:
        assert (await worker.next()).note == ""
        async with asyncio.timeout(30):
            while (await engine.depth()).dead < 2:
                await asyncio.sleep(0.01)
    assert {(letter.id, letter.name, letter.reason) for letter in await engine.dead()} == {
        ("metadata", "", "foreign"),
        ("error", "error", "failed"),
    }
    assert "job metadata is a dead letter (foreign)" in caplog.text
    await store._conn.execute("update cairnq_tasks set error = '3'")
    assert [letter.error for letter in await engine.dead()] == ["", ""]


async def test_a_file_that_is_replaced_is_opened_anew(engine, caplog):
    """Once the file is removed or replaced, no job is accepted into the one that is gone. D40."""
    await engine.enqueue([job("before")])
    folder = Path(engine.path).parent
    for file in folder.iterdir():
        file.rename(file.with_name(f"old-{file.name}"))
    names = [f"after {number}" for number in range(20)]
    stored = await asyncio.gather(*(engine.enqueue([job(name)]) for name in names))
    assert stored == [[name] for name in names]
    with contextlib.closing(sqlite3.connect(engine.path)) as there:
        assert {*there.execute("select id from cairnq_tasks")} == {(name,) for name in names}
    async with Worker(engine) as worker:
        assert {delivery.id for delivery in await worker.all(20)} == {*names}
    assert [record.getMessage() for record in caplog.records if record.name == "deferred"] == [
        f"engine sqlite:///{engine.path}: its file was removed or replaced: it was opened anew"
    ]
