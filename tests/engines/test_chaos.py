"""Hours of bad luck in minutes: kills at every point, workers killed at random, restarts, stopped workers.

Run by `make chaos`, which writes what it found to build/chaos.md.
"""

import asyncio
import contextlib
import random
import signal
import time
from pathlib import Path

import pytest

from tests.engines.processes import Shop, ended, terminate
from tests.engines.shop import LEASE
from tests.engines.test_crashes import AFTER, BEFORE, WORKING

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1800)]

KILLS = 20
JOBS = 1500
RANDOM_KILLS = 26


@pytest.fixture(scope="module")
def report():
    """Collect findings, and write them down at the end."""
    lines = ["# Chaos", ""]
    yield lines
    path = Path("build/chaos.md")
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture(params=["sqlite", "postgres"])
async def shop(request, tmp_path):
    """Return the shop on an empty store of each kind."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'shop.db'}"
    else:
        url = await request.getfixturevalue("postgres_server").new_database()
    shop = Shop(url, tmp_path)
    shop.kind = request.param
    await shop.engine.setup()
    yield shop
    await shop.close()


async def test_twenty_kills_at_each_point(shop, report):
    """Killed twenty times at each point, nothing that was accepted is lost. D01 D02 D04 D05 D06."""
    number = 0
    committed = set()
    for point in BEFORE + AFTER:
        for _ in range(KILLS):
            number += 1
            assert await shop.register(number, kill=point) == -signal.SIGKILL
            if point in AFTER:
                committed.add(number)
    assert set(await shop.rows()) == committed
    assert (await shop.engine.depth()).waiting == len(committed)
    async with shop.serving():
        await shop.empty()
    assert set(shop.numbers("effect")) == committed
    for point in WORKING:
        for _ in range(KILLS):
            number += 1
            await shop.enqueue("effect", number)
            committed.add(number)
            assert await ended(await shop.worker(kill=point)) == -signal.SIGKILL
            async with shop.serving():
                await shop.empty()
    lost = committed - set(shop.numbers("effect"))
    dead = await shop.engine.dead()
    report.append(
        f"- {shop.kind}: {KILLS} kills at each of {len(BEFORE + AFTER + WORKING)} points: "
        f"{len(committed)} jobs accepted, {len(lost)} lost, {len(dead)} dead, "
        f"{len(shop.lines('effect')) - len(committed)} effects repeated"
    )
    assert not lost
    assert not dead


async def replaced(shop, workers):
    """Start a worker for each that has died."""
    for index, worker in enumerate(workers):
        if worker.returncode is not None:
            workers[index] = await shop.worker()


async def kill_at_random(shop, workers, restart):
    """Kill workers, and restart the database now and then."""
    chance = random.Random(20_261_124)
    for kill in range(RANDOM_KILLS):
        await asyncio.sleep(chance.uniform(0.5, 2.5))
        if kill in {6, 13, 20}:
            await restart()
        victim = workers[chance.randrange(3)]
        with contextlib.suppress(ProcessLookupError):  # the poison was quicker
            victim.kill()
        await victim.wait()
        await replaced(shop, workers)


async def test_workers_killed_at_random(shop, report, request):
    """1,500 jobs, 3 workers, 26 kills, 3 restarts of PostgreSQL, one poison: nothing else is lost. D14 D25."""
    restarts = 0

    async def restart():
        nonlocal restarts
        if shop.kind == "postgres":
            server = request.getfixturevalue("postgres_server")
            await asyncio.to_thread(server.stop)
            await asyncio.to_thread(server.start)
            restarts += 1

    started = time.monotonic()
    await shop.enqueue("poison")
    for start in range(0, JOBS, 100):
        await asyncio.gather(*(shop.enqueue("slow", start + each, each % 30 / 100) for each in range(100)))
    workers = [await shop.worker() for _ in range(3)]
    await kill_at_random(shop, workers, restart)
    async with asyncio.timeout(600):
        while (depth := await shop.engine.depth()).waiting or depth.running:
            await replaced(shop, workers)
            await asyncio.sleep(0.2)
    for worker in workers:
        if worker.returncode is None:
            await terminate(worker)
    dead = [letter.name for letter in await shop.engine.dead(limit=JOBS)]
    missing = set(range(JOBS)) - set(shop.numbers("effect"))
    runs = len(shop.lines("begin")) / JOBS
    report.append(
        f"- {shop.kind}: {JOBS} jobs, 3 workers, {RANDOM_KILLS} kills, {restarts} restarts of the database, lease "
        f"{LEASE:g} s: {len(missing)} not done, {runs:.2f} runs a job, "
        f"{len(dead) - dead.count('poison')} innocent dead letters, "
        f"poison buried after {len(shop.lines('poison'))} runs, {time.monotonic() - started:.0f} s"
    )
    assert not missing
    assert runs <= 1.2
    assert dead == ["poison"]


async def test_a_worker_stopped_for_longer_than_its_lease(shop, report):
    """A worker that sleeps through its lease loses its jobs to another, and does no harm when it wakes. D09 D41."""
    for number in range(5):
        await shop.enqueue("slow", number, 1.0)
    sleeper = await shop.worker()
    await shop.until("begin", 5)
    sleeper.send_signal(signal.SIGSTOP)
    await asyncio.sleep(3 * LEASE)
    async with shop.serving():
        await shop.empty()
        sleeper.send_signal(signal.SIGCONT)
        await asyncio.sleep(2)
        await shop.empty()
    assert await terminate(sleeper) == 0
    runs = len(shop.lines("begin"))
    report.append(f"- {shop.kind}: a worker stopped for 3 leases with 5 jobs: {runs} runs, 0 lost, 0 stuck")
    assert set(shop.numbers("effect")) == set(range(5))
    assert runs <= 10
    assert not await shop.engine.dead()
