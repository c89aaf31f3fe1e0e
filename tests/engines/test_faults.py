"""Faults between a worker and its store, each tried on the engines that can have it."""

import asyncio
import contextlib
import itertools
import os
import secrets
import signal
import sys
import time
from contextvars import ContextVar
from datetime import datetime, timedelta
from unittest import mock

import asyncpg
import pytest
from pgqueuer.core.heartbeat import Heartbeat
from pgqueuer.core.qm import QueueManager

from deferred.engines import Dead, Done, Job, RetryIn
from deferred.engines._bench import Server as Worker
from deferred.engines._bench import until_settled
from deferred.engines._cairnq import Store
from deferred.engines.postgres import PostgresEngine
from deferred.engines.sqlite import SQLiteEngine
from deferred.engines.testing import CHECKS
from tests.engines.postgresql import Proxy, connected


def job(name="task", **more):
    """Return a job."""
    return Job(id=more.pop("id", secrets.token_hex(8)), name=name, payload=b"{}", **more)


@pytest.fixture
async def engine(postgres_url):
    """Return an engine on an empty database, with a lease long enough for a loaded machine."""
    engine = PostgresEngine(postgres_url, lease=30.0, poll=0.3, connect_timeout=30.0)
    await engine.setup()
    yield engine
    await engine.close()


@pytest.mark.parametrize("done", [True, False])
@pytest.mark.parametrize("keys", [(None,), ("k",), (None, "k", "known")])
async def test_a_job_whose_commit_nobody_has_confirmed_is_stored_once(engine, postgres_url, done, keys):
    """A connection cut while a job is stored: it is looked up by its id, and there once, whatever became of it. D17."""
    known = job(key="known")
    await engine.enqueue([known])
    jobs = [job(key=key) for key in keys]
    async with Proxy(postgres_url) as proxy:
        far = PostgresEngine(proxy.url)
        await far.setup()
        proxy.forwards = done
        # What stores one job is a transaction by itself; of several the commit is cut off.
        proxy.swallow = jobs[0].id.encode() if keys == (None,) else b"COMMIT"
        ids = await far.enqueue(jobs)
        await far.close()
        assert proxy.cuts == 1
    assert ids == [known.id if each.key == "known" else each.id for each in jobs]
    async with Worker(engine) as worker:
        found = [delivery.id for delivery in await worker.all(len({known.id, *ids}))]
        await until_settled(engine)
        assert worker.delivered.empty()
    assert sorted(found) == sorted({known.id, *ids})


HELD = """
create function held() returns trigger language plpgsql as
    $$ begin perform pg_advisory_xact_lock_shared(1); return null; end $$;
create constraint trigger held after insert on pgqueuer deferrable initially deferred for each row
    execute function held();
select pg_advisory_lock(1)
"""
"""Has whoever stores wait, at the very end, for who holds the lock."""


@contextlib.asynccontextmanager
async def held_up(url, swallow):
    """Give an engine whose jobs PostgreSQL waits with, its proxy, which cuts it then, and who has them wait."""
    async with Proxy(url) as proxy, connected(url) as other:
        far = PostgresEngine(proxy.url)
        await far.setup()
        await other.execute(HELD)
        proxy.forwards, proxy.swallow = True, swallow
        yield far, proxy, other
        await far.close()


@pytest.mark.parametrize("count", [1, 2])
async def test_a_job_that_is_still_being_stored_is_stored_once(engine, postgres_url, count):
    """A connection cut while PostgreSQL waits with the job: that one is ended before it is stored anew. D17."""
    jobs = [job() for _ in range(count)]
    # What stores one job is a transaction by itself; of several the commit waits.
    async with held_up(postgres_url, jobs[0].id.encode() if count == 1 else b"COMMIT") as (far, proxy, other):
        storing = asyncio.create_task(far.enqueue(jobs))
        first = await waiting(other)
        proxy.impatient.set()
        await waiting(other, first)
        await other.execute("select pg_advisory_unlock(1)")
        assert await storing == [each.id for each in jobs]
        assert proxy.cuts == 1
    assert (await engine.depth()).waiting == count


async def test_a_backend_that_does_not_end_is_told_of(engine, postgres_url, monkeypatch):
    """Where what was cut goes on storing nothing is stored anew: the caller is told that nobody knows. D17."""
    monkeypatch.setattr("deferred.engines.postgres._ENDING", 0)
    async with held_up(postgres_url, b"deferred") as (far, proxy, other):
        storing = asyncio.create_task(far.enqueue([job()]))
        backend = await waiting(other)
        os.kill(backend, signal.SIGSTOP)
        try:
            proxy.impatient.set()
            with pytest.raises(TimeoutError, match=f"process {backend} goes on with it"):
                await storing
        finally:
            os.kill(backend, signal.SIGCONT)
        async with asyncio.timeout(30):  # it was told to end, and does
            while await other.fetchval("select count(*) from pg_stat_activity where pid = $1", backend):
                await asyncio.sleep(0.01)
    assert (await engine.depth()).waiting == 0


async def waiting(connection, *others):
    """Wait until one backend, none of these, waits for a lock; return its number."""
    found = []
    async with asyncio.timeout(30):
        while len(found) != 1 or found[0] in others:
            found = [row["pid"] for row in await connection.fetch("select pid from pg_locks where not granted")]
            await asyncio.sleep(0.01)
    return found[0]


async def test_a_second_cut_is_told(engine, postgres_url):
    """Where the connection is cut again the caller is told, and decides. D13 D17."""
    async with Proxy(postgres_url) as proxy:
        far = PostgresEngine(proxy.url)
        await far.setup()
        proxy.swallow, proxy.times = b"deferred", 2
        with pytest.raises((OSError, asyncpg.PostgresError, asyncpg.InterfaceError)):
            await far.enqueue([job()])
        await far.close()
    assert (await engine.depth()).waiting == 0


async def test_connections_that_died_idle_cost_no_job(engine, postgres_url):
    """After every connection of the pool was cut, the next job is stored at the first call. D14 D16."""
    # asyncpg forgets a task of its own where a connection is cut at the moment at which it is used.
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    await asyncio.gather(*(engine.enqueue([job()]) for _ in range(10)))
    async with connected(postgres_url) as admin:
        await admin.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity "
            "where datname = current_database() and pid <> pg_backend_pid()"
        )
    await asyncio.gather(*(engine.enqueue([job()]) for _ in range(10)))
    assert (await engine.depth()).waiting == 20


async def test_a_deadlock_while_storing_is_tried_again(engine):
    """Two batches with the same keys in opposite order are both stored, though PostgreSQL ends one. D20."""
    for number in range(3):
        keys = [f"{number}a", f"{number}b"]
        both = [[job(key=key) for key in order] for order in (keys, keys[::-1])]
        one, two = await asyncio.gather(*(engine.enqueue(jobs) for jobs in both))
        assert one == two[::-1]
    assert (await engine.depth()).waiting == 6


@pytest.mark.parametrize("error", [asyncpg.DeadlockDetectedError, asyncpg.SerializationError])
async def test_what_postgresql_takes_back_is_tried_again_in_bounds(engine, error):
    """A conflict is retried with the same job, and told when it does not end. D20."""
    insert = engine._insert
    for times in (4, 5):
        failures = itertools.chain([error("no")] * times, itertools.repeat(None))

        async def failing(connection, jobs, failures=failures):
            ids = await insert(connection, jobs)
            if (failure := next(failures)) is not None:
                raise failure
            return ids

        engine._insert = failing
        jobs = [job(key="k"), job()]
        if times == 4:
            assert await engine.enqueue(jobs) == [each.id for each in jobs]
        else:
            with pytest.raises(error):
                await engine.enqueue(jobs)
    assert (await engine.depth()).waiting == 2


@pytest.mark.parametrize(
    "error", [asyncpg.QueryCanceledError, asyncpg.DeadlockDetectedError, asyncpg.SerializationError]
)
async def test_a_verdict_that_postgresql_takes_back_is_written_again(engine, error):
    """A statement timeout, a deadlock or a serialization failure keeps no verdict from the store. D20."""
    await engine.enqueue([job(), job()])
    execute, failures = asyncpg.pool.Pool.execute, [error("no"), error("no")]

    async def failing(pool, query, *args, **options):
        if "set status = 'queued'" in query and failures:
            raise failures.pop()
        return await execute(pool, query, *args, **options)

    with mock.patch.object(asyncpg.pool.Pool, "execute", failing):
        async with Worker(engine, lambda d: RetryIn(0.0, "again") if d.number == 1 else done(d)) as worker:
            deliveries = await worker.all(4)
            await until_settled(engine)
            assert worker.delivered.empty()
    assert sorted(delivery.number for delivery in deliveries) == [1, 1, 2, 2]
    assert not failures


def done(_):
    """Finish the job."""
    from deferred.engines import Done

    return Done()


async def nothing(_):
    """Return at once."""


async def test_a_worker_whose_heartbeat_has_died_is_fenced(engine, postgres_url):
    """Its job goes to another after the lease, and what it says then changes nothing. D08 D41."""
    await engine.enqueue([job()])
    other = PostgresEngine(postgres_url, lease=30.0, poll=0.3)
    lame = PostgresEngine(postgres_url, lease=3600.0, poll=60.0)  # it neither notices nor takes its own job again
    worker = Worker(lame, lambda _: RetryIn(3600.0, "late"))
    worker.hold.clear()
    with mock.patch.object(Heartbeat, "send_heartbeat", nothing):
        async with worker:
            await worker.next()
            async with connected(postgres_url) as admin:  # its lease, ended early
                await admin.execute("update pgqueuer set heartbeat = now() - interval '1 hour'")
            rival = Worker(other)
            rival.hold.clear()
            async with rival:
                assert (await rival.next()).number == 2
                worker.hold.set()
                await worker.stop()
                assert (await engine.depth()).running == 1
                rival.hold.set()
                await until_settled(other)
    assert (await engine.depth()).waiting == 0
    await other.close()
    await lame.close()


async def test_a_job_of_a_worker_that_nobody_knows_is_recovered(engine, postgres_url, tmp_path):
    """A job whose holder left no trace, or whose holder's id another has taken, is delivered all the same. D10."""
    await engine.enqueue([job()])
    async with connected(postgres_url) as admin:
        for holder in ("null", "gen_random_uuid()"):
            await admin.execute(
                f"update pgqueuer set status = 'picked', queue_manager_id = {holder}, "
                "heartbeat = now() - interval '1 hour'"
            )
            async with Worker(engine, lambda _: RetryIn(0.0)) as worker:
                await worker.next()
                worker.stopping()
    local = SQLiteEngine(tmp_path / "jobs.db", lease=1.0, poll=0.01)
    await local.enqueue([job()])
    store = await local._ready()
    await store._conn.execute("update cairnq_tasks set status = 'running', worker_id = 'gone', lease_until_ms = 1")
    await store._conn.commit()
    async with Worker(local) as worker:
        assert (await worker.next()).number == 1
        await until_settled(local)
    await local.close()


async def test_a_jump_of_the_databases_clock_steals_nothing_within_its_margin(engine, postgres_url):
    """A jump of a third of the lease steals no job; one beyond it gives each to another, once, and no storm. D22."""
    await engine.enqueue([job() for _ in range(5)])
    other = PostgresEngine(postgres_url, lease=30.0, poll=0.3)
    worker, rival = Worker(engine, concurrency=10), Worker(other, concurrency=10)
    worker.hold.clear()
    rival.hold.clear()
    async with worker, rival, connected(postgres_url) as admin:
        taken = [
            await worker.delivered.get() if not worker.delivered.empty() else await first(worker, rival)
            for _ in range(5)
        ]
        assert len(taken) == 5
        held = worker.running, rival.running
        await admin.execute("update pgqueuer set heartbeat = heartbeat - interval '10 seconds'")
        await asyncio.sleep(1.0)  # the time in which those that look for abandoned work look three times
        assert (worker.running, rival.running) == held
        await admin.execute("update pgqueuer set heartbeat = heartbeat - interval '1 hour'")
        await asyncio.sleep(1.0)
        assert worker.running + rival.running <= 10
        worker.hold.set()
        rival.hold.set()
        await until_settled(engine)
    assert (await engine.depth()).dead == 0
    await other.close()


OFF = ContextVar("off", default=0.0)
"""Seconds by which the clock of whoever runs is off."""


@pytest.fixture
def clocks(monkeypatch):
    """Have every clock of the wall, ours and PgQueuer's, be off by as much as its reader's context says."""
    right = time.time

    class Wrong(datetime):
        """The time of day on a host whose clock is off."""

        @classmethod
        def now(cls, tz=None):
            """Return it."""
            return datetime.now(tz) + timedelta(seconds=OFF.get())

    modules = [module for name, module in sys.modules.items() if name.startswith("pgqueuer")]
    for module in modules:
        if getattr(module, "datetime", None) is datetime:
            monkeypatch.setattr(module, "datetime", Wrong)
    monkeypatch.setattr(time, "time", lambda: right() + OFF.get())
    return right


async def test_workers_whose_clocks_are_off(engine, postgres_url, clocks):
    """Two workers, ten minutes fast and ten slow: nothing is stolen, early, late or older than it is. D21."""
    workers, judged = [], []

    def answer(delivery):  # by the clock of its worker
        judged.append(delivery.now)
        return Done()

    async with contextlib.AsyncExitStack() as stack:
        for off in (600.0, -600.0):
            OFF.set(off)  # for the worker, which has a copy of this context
            own = PostgresEngine(postgres_url, lease=6.0, poll=0.3)
            await own.setup()
            stack.push_async_callback(own.close)
            worker = Worker(own, answer, concurrency=10)
            worker.hold.clear()
            workers.append(await stack.enter_async_context(worker))
            await own.enqueue([job("now"), job("later", delay=300.0)])
        OFF.set(0.0)
        taken = [await first(*workers) for _ in range(2)]
        assert [delivery.name for delivery in taken] == ["now", "now"]
        assert all(abs(delivery.stored_at - clocks()) < 60 for delivery in taken)
        held = [worker.running for worker in workers]
        await asyncio.sleep(6.5)  # more than a lease: each is renewed, and abandoned work looked for
        assert [worker.running for worker in workers] == held
        assert all(worker.delivered.empty() for worker in workers)
        for worker in workers:
            worker.hold.set()
        while (await engine.depth()).running:
            await asyncio.sleep(0.02)
        assert (await engine.depth()).waiting == 2  # what is due in five minutes
    assert [abs(at - clocks()) < 60 for at in judged] == [True, True]


async def first(*workers):
    """Return what the first of the workers is given."""
    waiting = [asyncio.ensure_future(worker.delivered.get()) for worker in workers]
    try:
        over, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED, timeout=30)
        return over.pop().result()
    finally:
        for each in waiting:
            each.cancel()


async def test_leases_hold_on_a_slow_network(engine, postgres_url):
    """At a sixtieth of the lease there and back (half a second of the default) a job stays with its worker. D42."""
    async with Proxy(postgres_url) as proxy:
        far = PostgresEngine(proxy.url, lease=6.0, poll=0.5)
        await far.setup()
        await engine.enqueue([job()])
        worker = Worker(far)
        worker.hold.clear()
        async with worker:
            await worker.next()
            proxy.delay = 0.05
            near = PostgresEngine(postgres_url, lease=6.0, poll=0.3)
            async with Worker(near) as rival:
                await asyncio.sleep(9.0)  # one and a half leases
                worker.hold.set()
                await until_settled(engine)
                assert rival.delivered.empty()
            await near.close()
            proxy.delay = 0.0
        await far.close()


async def test_what_came_due_while_nobody_ran_is_run_once(bench):
    """Scheduled jobs whose time passed during an outage run once after it, as many at a time as ever. D36."""
    async with bench.engine() as engine:
        stored = [job(delay=0.2 + number / 100) for number in range(20)]
        await engine.enqueue(stored)
        await asyncio.sleep(0.5)
        async with Worker(engine, concurrency=4) as worker:
            found = [delivery.id for delivery in await worker.all(20)]
            await until_settled(engine)
            assert worker.delivered.empty()
        assert sorted(found) == sorted(each.id for each in stored)
        assert worker.most <= 4


async def test_idle_workers_do_not_poll_in_step(engine, postgres_url):
    """Fifty idle workers each wait a time of their own between looks, on both engines, and none less than half. D34."""
    waits = []

    async def run(manager, *, dequeue_timeout, **_):
        waits.append(dequeue_timeout.total_seconds() / 0.3)
        await manager.shutdown.wait()

    stop = asyncio.Event()
    with mock.patch.object(QueueManager, "run", run):
        serving = [
            asyncio.create_task(engine.serve(done, queues=["deferred"], concurrency=2, stop=stop)) for _ in range(50)
        ]
        while len(waits) < 50:
            await asyncio.sleep(0.01)
        stop.set()
        await asyncio.gather(*serving)
    assert len(set(waits)) >= 45  # microseconds, of which two may be the same
    assert min(waits) >= 0.5
    assert max(waits) <= 1.0


@pytest.mark.looptime
async def test_idle_workers_of_a_file_do_not_poll_in_step(tmp_path):
    """Between looks into a file each worker waits a time of its own, none less than half of the poll. D34."""
    loop, ends = asyncio.get_running_loop(), []
    # Each reads its statements from files.
    stores = [await asyncio.to_thread(Store, str(tmp_path / f"{n}.db"), busy_timeout_ms=1000) for n in range(50)]

    async def wait(store):
        await store.claim_wake(["deferred"], 100_000)
        ends.append(loop.time() - began)

    began = loop.time()
    await asyncio.gather(*map(wait, stores))
    assert len({round(end, 3) for end in ends}) >= 45
    assert 50 <= min(ends) <= max(ends) <= 101


async def test_ids_that_nobody_has(bench):
    """What no id can be finds nothing, as any other that is not there; so does a limit below 0."""
    async with bench.engine() as engine:
        await engine.enqueue([job()])
        async with Worker(engine, lambda _: Dead("failed")) as worker:
            await worker.next()
            await until_settled(engine)
        odd = ["x\0", "\ud800", ""]
        assert await engine.dead(ids=odd) == await engine.requeue(odd) == await engine.delete(odd) == []
        assert await engine.dead(limit=-1) == []
        assert (await engine.depth(odd)).dead == 0
        assert (await engine.depth()).dead == 1


async def test_an_engine_that_is_closed_while_it_serves(bench):
    """Closed by somebody else, it is opened again: what runs has its verdict noted, and what comes is served. C30."""
    async with bench.engine() as engine, asyncio.timeout(30), Worker(engine) as worker:
        await engine.enqueue([job("before")])
        worker.hold.clear()
        assert (await worker.next()).number == 1
        await engine.close()
        worker.hold.set()
        await until_settled(engine)
        await engine.enqueue([job("after")])
        assert (await worker.next()).name == "after"
        await until_settled(engine)
        assert worker.delivered.empty()


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_no_check_touches_other_peoples_jobs(check, bench):
    """Each check of the suite refuses a store that is in use, and leaves every job in it as it was. D30."""
    if bench.argument == "":
        return  # an engine in memory is always the check's own
    engine = await used(bench)
    with pytest.raises(AssertionError, match="have touched nothing"):
        await check(bench)
    assert (await engine.depth()).waiting == 1
    await engine.close()


async def used(bench):
    """Return an engine on a store that holds somebody's job."""
    from deferred.engines._bench import make

    engine = make(bench.factory, bench.argument)
    await engine.setup()
    await engine.enqueue([job(delay=3600)])
    return engine


async def test_pruning_goes_in_batches(engine, postgres_url, monkeypatch):
    """The log of what has finished is deleted so many rows at a time, until none is left. D33."""
    async with connected(postgres_url) as admin:
        await admin.execute(
            "insert into pgqueuer_log (job_id, status, entrypoint, priority, created) "
            "select number, 'successful', 'deferred', 0, now() - interval '2 days' from generate_series(1, 95) number"
        )
        monkeypatch.setattr("deferred.engines.postgres.PRUNED_AT_A_TIME", 10)
        batches = []
        pool = await engine._ready()
        execute = pool.execute
        monkeypatch.setattr(type(pool), "execute", lambda _, *args: batches.append(args) or execute(*args))
        assert await engine.prune() == 95
        assert len(batches) == 10
        assert await admin.fetchval("select count(*) from pgqueuer_log") == 0


async def test_claims_do_not_look_through_what_has_finished(engine, postgres_url):
    """With a hundred thousand finished jobs in the log a claim reads a handful of pages, by an index. D33."""
    async with connected(postgres_url) as admin:
        await admin.execute(
            "insert into pgqueuer_log (job_id, status, entrypoint, priority) "
            "select number, 'successful', 'deferred', 0 from generate_series(1000000, 1100000) number"
        )
        await admin.execute("analyze pgqueuer_log")
        plan = await admin.fetch(f"explain select id, {engine._sql['number']} from pgqueuer claimed")
    assert not any("Seq Scan on pgqueuer_log" in row[0] for row in plan)
    assert any("pgqueuer_log_job_id" in row[0] for row in plan)


@pytest.mark.parametrize("known", [True, False])
async def test_deliveries_are_numbered_by_their_claim(engine, monkeypatch, known):
    """The claim itself says which delivery it is; with a PgQueuer that claims otherwise a query says the same."""
    if not known:
        monkeypatch.setattr("deferred.engines._pgqueuer.CLAIMED", "select what is not there")
    await engine.enqueue([job()])
    async with Worker(engine, lambda d: RetryIn(0.0, "again") if d.number < 3 else Dead("failed")) as worker:
        assert [delivery.number for delivery in await worker.all(3)] == [1, 2, 3]
        await until_settled(engine)
        (letter,) = await engine.dead()
        await engine.requeue([letter.id])
        assert [delivery.number for delivery in await worker.all(3)] == [1, 2, 3]
        await until_settled(engine)
    assert any(text.startswith("WITH") for text in engine._sql._texts) is known
