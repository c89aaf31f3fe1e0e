"""Killed at each point of a job's life, in processes of their own: what was accepted is done."""

import asyncio
import contextlib
import signal
import sqlite3

import psutil
import pytest

from tests.engines.processes import Shop, ended, terminate

BEFORE = ["before the enqueue", "before the commit"]
AFTER = ["after the commit"]
WORKING = ["claimed", "during", "after the effect", "before the ack"]


@pytest.fixture(params=["sqlite", "postgres"])
async def shop(request, tmp_path):
    """Return the shop on an empty store of each kind."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'shop.db'}"
    else:
        url = await request.getfixturevalue("postgres_server").new_database()
    shop = Shop(url, tmp_path)
    await shop.engine.setup()
    yield shop
    await shop.close()


async def test_a_kill_loses_nothing_that_was_accepted(shop):
    """Neither row nor job before the commit, both after it, and every job done. D01 D02 D04 D05 D06 C08."""
    for number, point in enumerate(BEFORE + AFTER):
        assert await shop.register(number, kill=point) == -signal.SIGKILL
    assert await shop.rows() == [2]
    assert (await shop.engine.depth()).waiting == 1
    for number, point in enumerate(WORKING, 3):
        assert await ended(await shop.worker(kill=point)) == -signal.SIGKILL
        async with shop.serving():
            await shop.empty()
        await shop.enqueue("effect", number)
    async with shop.serving():
        await shop.empty()
    assert set(shop.numbers("effect")) == {2, 3, 4, 5, 6}
    keys = {(words[0], words[2]) for words in shop.lines("begin")}
    assert len(keys) == 5  # the same idempotency key on every delivery
    attempts = {words[0]: words[1] for words in shop.lines("effect")}  # the last of each
    assert list(attempts.values()) == ["2", "2", "2", "2", "1"]
    assert not await shop.engine.dead()


async def test_poison_is_buried_and_the_rest_flows(shop):
    """A job that kills every worker is a dead letter after three recoveries, and the others are done. D25."""
    async with asyncio.timeout(60):
        await shop.enqueue("poison")
        for number in range(5):
            await shop.enqueue("effect", number)
        workers = 0
        while not await shop.engine.dead():
            worker = await shop.worker()
            code = asyncio.ensure_future(ended(worker))
            while not code.done() and not await shop.engine.dead():
                await asyncio.sleep(0.05)
            if code.done():
                assert code.result() == -signal.SIGKILL
                workers += 1
            else:
                await shop.empty()
                worker.send_signal(signal.SIGTERM)
                assert await code == 0
    (letter,) = await shop.engine.dead()
    assert (letter.name, letter.reason, workers) == ("poison", "crash_loop", 4)
    assert [words[0] for words in shop.lines("poison")] == ["1", "2", "3", "4"]
    assert set(shop.numbers("effect")) == set(range(5))


async def test_a_worker_ends_as_it_is_told(shop):
    """SIGTERM: what runs is finished, what waits stays stored, its surroundings are closed, and it ends well. C01."""
    await shop.enqueue("slow", 1, 0.5)
    await shop.enqueue("slow", 2, 0.5, delay=3600)
    worker = await shop.worker()
    await shop.until("begin", 1)
    assert await terminate(worker) == 0
    assert shop.numbers("effect") == [1]
    assert len(shop.lines("closed")) == 1
    assert (await shop.engine.depth()).waiting == 1


async def test_a_worker_told_twice_hands_back(shop):
    """A second signal cuts the drain: what runs is handed back, and runs again uncounted elsewhere. C04 D12."""
    await shop.enqueue("slow", 1, 3600)
    worker = await shop.worker()
    await shop.until("begin", 1)
    worker.send_signal(signal.SIGINT)
    await asyncio.sleep(0.1)  # two signals at once are one
    worker.send_signal(signal.SIGINT)
    assert await ended(worker) == 0
    assert (await shop.engine.depth()).waiting == 1
    other = await shop.worker()
    await shop.until("begin", 2)
    assert [words[1] for words in shop.lines("begin")] == ["1", "1"]
    other.kill()


async def stop(process, url):
    """Stop a process, but not while it holds the lock of an SQLite file, which nobody could take from it."""
    while True:
        process.send_signal(signal.SIGSTOP)
        while psutil.Process(process.pid).status() != psutil.STATUS_STOPPED:
            await asyncio.sleep(0)
        if not url.startswith("sqlite"):
            return
        with contextlib.closing(sqlite3.connect(url.removeprefix("sqlite:///"), timeout=0)) as connection:
            try:
                connection.execute("begin immediate")
            except sqlite3.OperationalError:
                process.send_signal(signal.SIGCONT)
            else:
                return
        await asyncio.sleep(0.01)


async def test_a_worker_that_slept_through_its_lease_ends_its_copy(shop):
    """A worker that wakes to find its job with another cancels its own run of it, and ends well. D09 D41."""
    await shop.enqueue("slow", 1, 3600)
    sleeper = await shop.worker()
    await shop.until("begin", 1)
    await stop(sleeper, shop.url)
    other = await shop.worker()
    await shop.until("begin", 2)
    sleeper.send_signal(signal.SIGCONT)
    await shop.until("cancelled", 1)
    assert shop.lines("cancelled") == [["1", "1"]]  # of the first attempt, while the second runs
    assert await terminate(sleeper) == 0
    assert (await shop.engine.depth()).running == 1
    other.kill()
