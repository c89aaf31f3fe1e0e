"""A worker that has lost its lease stops what it runs, in time, and writes nothing."""

import asyncio
import contextlib
import itertools
import secrets

import pytest

from deferred.engines import Done, Job, RetryIn
from deferred.engines._bench import Server as Worker
from deferred.engines._bench import until_settled
from deferred.engines._leases import Leases
from deferred.engines.postgres import PostgresEngine
from deferred.engines.sqlite import SQLiteEngine
from tests.engines.postgresql import Proxy, connected

LEASE = 8.0  # seconds; its worker looks every second


class Store:
    """Where leases are kept: renews those that are there, or does what it is told instead."""

    def __init__(self):
        self.mine = set()
        self.asked = []
        self.trouble = None
        self.told = []

    async def renew(self, keys):
        """Return those that are this worker's."""
        self.asked.append((asyncio.get_running_loop().time(), keys))
        if self.trouble is not None:
            await self.trouble()
        return self.mine.intersection(keys)


@pytest.fixture
def store():
    """Return an empty store."""
    return Store()


@contextlib.asynccontextmanager
async def watched(store):
    """Give the leases of a worker that watches them."""
    leases = Leases(LEASE, store.renew, lambda doing, error: store.told.append((doing, str(error))))
    watching = asyncio.create_task(leases.watch())
    yield leases
    watching.cancel()
    await asyncio.wait({watching})


class Held:
    """A job's work, which ends when it is let go. Lives as long as the test."""

    def __init__(self, leases, key="job", *, age=0.0, stubborn=False):
        self._over = asyncio.Event()
        self._stubborn = stubborn
        self.ended = None  # how many seconds after its claim it was cancelled
        self._since = asyncio.get_running_loop().time() - age
        self.task = asyncio.create_task(self._run(leases, key))

    async def _run(self, leases, key):
        with leases.hold(key, self._since, f"<{key}>"):
            try:
                await self._over.wait()
            except asyncio.CancelledError:
                self.ended = asyncio.get_running_loop().time() - self._since
                if not self._stubborn:
                    raise
        return "done"

    async def finish(self):
        """Let the work end; return its result."""
        self._over.set()
        return await self.task


@pytest.mark.looptime
async def test_what_another_has_is_cancelled(store, caplog):
    """What a beat finds to be another's is cancelled with a reason, once; what is still ours goes on. D09 D41."""
    async with watched(store) as leases:
        held = {key: Held(leases, key) for key in ("mine", "lost", *"abcdef")}
        await asyncio.sleep(0)
        store.mine = {"mine"}
        assert await leases.beat(["mine", "lost", "lost", *"abcdef", "unheard-of"]) == {"mine"}
        assert store.asked[-1][1] == ["mine", "lost", *"abcdef", "unheard-of"]
        with pytest.raises(asyncio.CancelledError, match="the lease of job <lost> is lost"):
            await held["lost"].task
        await leases.beat(held)
        assert await held["mine"].finish() == "done"
        (line,) = [record.getMessage() for record in caplog.records]
        assert line == (
            "7 job(s) whose lease is lost are cancelled here and delivered again "
            "(the store counts them as this worker's no more): <lost>, <a>, <b>, <c>, <d>, ..."
        )


@pytest.mark.looptime
async def test_work_that_ends_in_spite_of_it_is_not_acknowledged(store):
    """Work that swallows its cancellation has been cancelled all the same: nobody hears of its result. D41."""
    async with watched(store) as leases:
        held = Held(leases, stubborn=True)
        await asyncio.sleep(0)
        await leases.beat(["job"])
        with pytest.raises(asyncio.CancelledError, match="the lease of job <job> is lost"):
            await held.task
        assert held.ended is not None


async def fail():
    """Do what a driver does whose database is away."""
    message = "no route"
    raise OSError(message)


async def hang():
    """Do what a driver does whose network swallows everything."""
    await asyncio.Event().wait()


@pytest.mark.looptime
@pytest.mark.parametrize("trouble", [fail, hang])
async def test_what_cannot_be_renewed_ends_before_its_lease(store, trouble, caplog):
    """With the store away or silent the work is cancelled before its lease runs out, and not long before. D41."""
    async with watched(store) as leases:
        store.trouble = trouble
        held = Held(leases)
        with pytest.raises(asyncio.CancelledError):
            await held.task
        assert LEASE * 0.75 <= held.ended <= LEASE
        assert {doing for doing, _ in store.told} == {"renewing a lease"}
        assert "the store could not be asked in time to renew them" in caplog.text


@pytest.mark.looptime
async def test_what_the_engine_does_not_renew_is_renewed(store):
    """Where the engine's own heartbeat has died the lease is kept, at three quarters of its time. D08."""
    async with watched(store) as leases:
        store.mine, began = {"job"}, asyncio.get_running_loop().time()
        held = Held(leases)
        await asyncio.sleep(10 * LEASE)
        times = [began, *(at for at, _ in store.asked)]
        assert 9 <= len(store.asked) <= 13
        assert max(later - earlier for earlier, later in itertools.pairwise(times)) < LEASE
        assert await held.finish() == "done"


@pytest.mark.looptime
async def test_a_beat_in_time_needs_no_other(store):
    """While the engine renews its leases in time nobody else does; an own claim counts as one, too. D22."""
    async with watched(store) as leases:
        store.mine = {"job"}
        held = Held(leases)
        for _ in range(10):
            await asyncio.sleep(LEASE / 2)
            assert leases.renewed("job", asyncio.get_running_loop().time())
        assert store.asked == []
        assert not leases.renewed("another", 0.0)
        assert await held.finish() == "done"


@pytest.mark.looptime
@pytest.mark.parametrize("taken", [False, True])
async def test_after_a_stall_the_store_is_asked(store, taken):
    """A worker that wakes after its lease goes on if nobody has taken the job, and else is cancelled at once. D09."""
    async with watched(store) as leases:
        store.mine = set() if taken else {"job"}
        held = Held(leases, age=3 * LEASE)
        await asyncio.sleep(LEASE / 4)
        assert len(store.asked) == 1
        assert held.task.done() is taken
        assert await held.finish() == "done" if not taken else held.task.cancelled()


@pytest.mark.looptime
async def test_an_answer_of_before_the_claim_says_nothing(store):
    """A beat on its way while the job ends and is claimed anew does not judge the new claim. QU-18."""
    async with watched(store) as leases:
        first, answer = Held(leases), asyncio.Event()
        store.trouble = answer.wait
        await asyncio.sleep(0)
        beat = asyncio.create_task(leases.beat(["job"]))
        await asyncio.sleep(0)
        await first.finish()
        second = Held(leases)
        await asyncio.sleep(0)
        answer.set()
        assert await beat == set()
        store.mine = {"job"}
        assert await second.finish() == "done"


# -- the engines ------------------------------------------------------------------------------


@pytest.fixture(params=["sqlite", "postgres"])
async def pair(request, tmp_path):
    """Return what makes engines of each kind on one store, and what gives all its jobs to somebody else."""
    engines = []
    if request.param == "sqlite":

        def make(poll):
            return SQLiteEngine(tmp_path / "jobs.db", lease=1.0, poll=poll)

        async def steal():
            connection = (await engines[0]._ready())._conn
            await connection.execute("update cairnq_tasks set worker_id = 'thief'")
            await connection.commit()
    else:
        url = await request.getfixturevalue("postgres_server").new_database()

        def make(poll):
            return PostgresEngine(url, lease=1.0, poll=poll)

        async def steal():
            async with connected(url) as connection:
                await connection.execute("update pgqueuer set queue_manager_id = gen_random_uuid()")

    def made(poll):
        engines.append(make(poll))
        return engines[-1]

    yield made, steal
    for engine in engines:
        await engine.close()


def job(name="task"):
    """Return a job."""
    return Job(id=secrets.token_hex(8), name=name, payload=b"{}")


@pytest.mark.parametrize("verdict", [Done(), RetryIn(3600.0)])
async def test_a_stolen_job_is_cancelled_and_delivered_again(pair, verdict, caplog):
    """Its call of the handle is cancelled, and what it says nevertheless does not reach the thief's job. D41."""
    make, steal = pair
    engine = make(60.0)
    await engine.setup()
    await engine.enqueue([job()])
    begun, cancelled, deliveries = asyncio.Event(), asyncio.Event(), []

    async def handle(delivery):
        deliveries.append(delivery)
        if len(deliveries) > 1:
            return Done()
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
        return verdict

    stop = asyncio.Event()
    serving = asyncio.create_task(engine.serve(handle, queues=["deferred"], concurrency=2, stop=stop))
    async with asyncio.timeout(30):
        await begun.wait()
        await steal()
        await cancelled.wait()
        stop.set()
        await serving
        depth = await engine.depth()
        assert (depth.waiting, depth.running, depth.dead) == (0, 1, 0)  # the thief's
        async with Worker(make(0.1)) as worker:  # the thief shows no sign of life
            assert (await worker.next()).number == 2
            await until_settled(engine)
    assert "1 job(s) whose lease is lost are cancelled here and delivered again" in caplog.text


async def test_a_worker_without_its_database_stops_in_time(postgres_url):
    """A worker that can no longer reach its database has ended its work when another begins it. D41."""
    near = PostgresEngine(postgres_url, lease=6.0, poll=0.3)
    await near.setup()
    await near.enqueue([job()])
    begun, cancelled = asyncio.Event(), asyncio.Event()

    async def handle(_):
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return Done()

    stop = asyncio.Event()
    async with asyncio.timeout(30):
        async with Proxy(postgres_url) as proxy:
            far = PostgresEngine(proxy.url, lease=6.0, poll=0.3, connect_timeout=0.5)
            serving = asyncio.create_task(far.serve(handle, queues=["deferred"], concurrency=2, stop=stop))
            await begun.wait()
            proxy.delay = 3600.0
            async with Worker(near) as other:
                assert (await other.next()).number == 2
                assert cancelled.is_set()
                await until_settled(near)
            stop.set()
        await serving
        await far.close()
    await near.close()
