"""Durable work costs little more than the engine below it; a job starts soon after its commit."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator
from datetime import timedelta
from functools import partial
from typing import Any

import aiosqlite
import asyncpg
import pytest
from cairnq.store.sqlite import SQLiteStore
from cairnq.worker import Worker
from databases import Database
from pgqueuer.adapters.drivers.asyncpg import AsyncpgPoolDriver
from pgqueuer.adapters.persistence.queries import Queries
from pgqueuer.core.qm import QueueManager

from benchmarks.measure import fastest, notes, record
from deferred import Supervisor
from deferred.engines.postgres import PostgresEngine
from deferred.engines.sqlite import SQLiteEngine
from tests.engines.postgresql import Server

ROWS = 100  # of one round
JOBS = 2000
AT_A_TIME = 50

numbers = itertools.count()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server(fsync=True)
    yield server
    server.close()


@pytest.fixture(params=["sqlite", "postgres"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def url(kind: str, request: pytest.FixtureRequest, tmp_path: Any) -> str:
    if kind == "sqlite":
        return f"sqlite:///{tmp_path / 'jobs.db'}"
    return asyncio.run(request.getfixturevalue("server").new_database())


def make_engine(url: str) -> Any:
    return SQLiteEngine(url.removeprefix("sqlite:///")) if url.startswith("sqlite") else PostgresEngine(url)


async def task(number: int) -> None:
    """Do nothing: what is measured is the way there."""


@contextlib.asynccontextmanager
async def opened(url: str, **options: Any) -> Any:
    supervisor = Supervisor(engine=make_engine(url), max_serving=AT_A_TIME, **options)
    supervisor.task("task")(task)
    async with supervisor:
        yield supervisor


# -- storing ----------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def raw_connection(url: str) -> Any:
    """Give a driver's own connection, and a function that runs a statement in a transaction with what else is asked."""
    if url.startswith("sqlite"):
        async with aiosqlite.connect(url.removeprefix("sqlite:///"), isolation_level=None) as connection:
            await connection.execute("pragma journal_mode = wal")

            async def insert(enqueue: Callable[[Any], Awaitable[Any]] | None) -> None:
                await connection.execute("begin immediate")
                await connection.execute("insert into rows (email) values (?)", (f"{next(numbers)}@example.org",))
                if enqueue is not None:
                    await enqueue(connection)
                await connection.execute("commit")

            yield connection, insert
        return
    connection = await asyncpg.connect(url)

    async def insert_too(enqueue: Callable[[Any], Awaitable[Any]] | None) -> None:
        async with connection.transaction():
            await connection.execute("insert into rows (email) values ($1)", f"{next(numbers)}@example.org")
            if enqueue is not None:
                await enqueue(connection)

    try:
        yield connection, insert_too
    finally:
        await connection.close()


@contextlib.asynccontextmanager
async def databases_connection(url: str) -> Any:
    """Give a connection of the `databases` package, and the same function for it."""
    async with Database(url) as database, database.connection() as connection:

        async def insert(enqueue: Callable[[Any], Awaitable[Any]] | None) -> None:
            async with connection.transaction():
                await connection.execute(
                    "insert into rows (email) values (:email)", {"email": f"{next(numbers)}@example.org"}
                )
                if enqueue is not None:
                    await enqueue(connection)

        yield connection, insert


@pytest.mark.parametrize("connect", [raw_connection, databases_connection], ids=["driver", "databases"])
def bench_insert_and_enqueue(benchmark: Any, kind: str, url: str, connect: Any) -> None:
    """At least half as many transactions with a row and a job as with a row alone."""
    with asyncio.Runner() as runner, contextlib.ExitStack() as stack:
        supervisor = _entered(runner, stack, opened(url, serve=False))
        connection, insert = _entered(runner, stack, connect(url))
        serial = "integer primary key" if kind == "sqlite" else "bigserial primary key"
        runner.run(connection.execute(f"create table rows (id {serial}, email text not null unique)"))
        ctx = stack.enter_context(supervisor.context())

        async def rows(enqueue: Any) -> None:
            for _ in range(ROWS):
                await insert(enqueue)

        best = fastest(
            benchmark,
            {
                "deferred": lambda: runner.run(rows(partial(_enqueue, ctx))),
                "bare insert": lambda: runner.run(rows(None)),
            },
            rounds=15,
            per=ROWS,
        )
    where = f"{kind}, {connect.__name__.partition('_')[0]}"
    record(benchmark, "insert and enqueue", where, best, limit=2.0)


async def _enqueue(ctx: Any, connection: Any) -> None:
    await ctx.enqueue(task, 1, connection=connection)


def _entered(runner: asyncio.Runner, stack: contextlib.ExitStack, manager: Any) -> Any:
    """Enter an asynchronous context manager on the runner's loop, until the stack is left."""
    value = runner.run(manager.__aenter__())
    stack.callback(lambda: runner.run(manager.__aexit__(None, None, None)))
    return value


# -- running ----------------------------------------------------------------------------------


async def ours(url: str) -> float:
    """Run the jobs through a supervisor; return the seconds that it takes once they are stored."""
    done, left = asyncio.Event(), JOBS

    async def count(_number: int) -> None:
        nonlocal left
        left -= 1
        if not left:
            done.set()

    supervisor = Supervisor(engine=make_engine(url), max_serving=AT_A_TIME)
    supervisor.task("task")(count)
    await supervisor.ready()
    with supervisor.context() as ctx:
        for start in range(0, JOBS, 500):
            await asyncio.gather(*(ctx.enqueue(count, number) for number in range(start, start + 500)))
    started = time.perf_counter()
    async with supervisor:
        await done.wait()
        return time.perf_counter() - started


async def theirs(url: str) -> float:
    """Run as many jobs on the engine alone."""
    return await (bare_cairnq(url) if url.startswith("sqlite") else bare_pgqueuer(url))


async def bare_cairnq(url: str) -> float:
    store = SQLiteStore(url.removeprefix("sqlite:///"))
    await store.connect()
    await asyncio.gather(*(store.submit(name="bare", payload={"number": n}, queue="bare") for n in range(JOBS)))
    worker = Worker(store, ["bare"], concurrency=AT_A_TIME, poll_interval_ms=50)
    left = JOBS

    async def count(_ctx: Any) -> None:
        nonlocal left
        left -= 1
        if not left:
            worker.stop()

    worker.register("bare", count)
    started = time.perf_counter()
    await worker.run()
    took = time.perf_counter() - started
    await store.close()
    return took


async def bare_pgqueuer(url: str) -> float:
    async with asyncpg.create_pool(url, min_size=2, max_size=10) as pool:
        queries = Queries(AsyncpgPoolDriver(pool))
        await queries.enqueue(["bare"] * JOBS, [b"{}"] * JOBS, [0] * JOBS)
        manager = QueueManager(queries)
        left, done = JOBS, asyncio.Event()

        @manager.entrypoint("bare")
        async def count(_job: Any) -> None:
            nonlocal left
            left -= 1
            if not left:
                done.set()

        started = time.perf_counter()
        running = asyncio.create_task(
            manager.run(
                batch_size=AT_A_TIME // 2,
                max_concurrent_tasks=AT_A_TIME,
                dequeue_timeout=timedelta(seconds=5),
                log_aggregation_interval=timedelta(0),
            )
        )
        await done.wait()
        took = time.perf_counter() - started
        manager.shutdown.set()
        await running
        return took


def bench_jobs(benchmark: Any, kind: str, url: str) -> None:
    """At least 0.85 times as many jobs a second as the engine runs by itself."""
    if benchmark.disabled:
        pytest.skip("benchmarks are run by `make bench`")

    async def prepare() -> None:  # the tables, for the bare engine too
        async with opened(url, serve=False):
            pass

    asyncio.run(prepare())
    best = {"deferred": float("inf"), "bare engine": float("inf")}
    for _ in range(7):
        for name, run in (("deferred", ours), ("bare engine", theirs)):
            best[name] = min(best[name], asyncio.run(run(url)) / JOBS * 1e6)
    benchmark.pedantic(lambda: None)
    notes.append(f"jobs a second on {kind}: " + ", ".join(f"{name} {1e6 / took:,.0f}" for name, took in best.items()))
    record(benchmark, "a job, from claim to verdict", kind, best, limit=1 / 0.85)


# -- waiting ----------------------------------------------------------------------------------


def bench_latency(benchmark: Any, kind: str, url: str) -> None:
    """From commit to start: the median is at most 10 ms on PostgreSQL, 60 ms on SQLite."""
    if benchmark.disabled:
        pytest.skip("benchmarks are run by `make bench`")

    async def measure() -> list[float]:
        waits: list[float] = []
        started: asyncio.Queue[float] = asyncio.Queue()

        async def note() -> None:
            started.put_nowait(time.perf_counter())

        supervisor = Supervisor(engine=make_engine(url))
        supervisor.task("note")(note)
        async with supervisor, raw_connection(url) as (connection, _):
            await asyncio.sleep(0.5)
            with supervisor.context() as ctx:
                for _ in range(150):
                    await asyncio.sleep(0.02)
                    if kind == "sqlite":
                        await connection.execute("begin immediate")
                        await ctx.enqueue(note, connection=connection)
                        await connection.execute("commit")
                    else:
                        async with connection.transaction():
                            await ctx.enqueue(note, connection=connection)
                    committed = time.perf_counter()
                    waits.append(await started.get() - committed)
        return waits

    waits = sorted(asyncio.run(measure()))
    benchmark.pedantic(lambda: None)
    median, late = statistics.median(waits) * 1000, waits[int(len(waits) * 0.99)] * 1000
    limit = 60 if kind == "sqlite" else 10
    notes.append(f"from commit to start on {kind}: p50 {median:.1f} ms (at most {limit}), p99 {late:.1f} ms")
    assert median <= limit
