"""Who is tried, alone, and who is turned away meanwhile."""

import asyncio
import contextlib

import pytest

from deferred._suspects import HUSH, PATIENCE, QUIET, Suspects

pytestmark = pytest.mark.looptime


async def hold(suspects, seconds, *, suspect=False, log=None):
    """Run a delivery that takes so long; note when it begins."""
    async with suspects.alone() if suspect else beside(suspects):
        if log is not None:
            log.append(asyncio.get_running_loop().time())
        await asyncio.sleep(seconds)


@contextlib.asynccontextmanager
async def beside(suspects):
    """Count a delivery of no suspect."""
    suspects.begin()
    try:
        yield
    finally:
        suspects.end()


async def test_without_suspects_everybody_is_let_in():
    """As long as nobody is tried, any number run at a time. D25."""
    suspects = Suspects()
    async with asyncio.TaskGroup() as group:
        for _ in range(5):
            assert suspects.turn_away(suspect=False) == 0
            group.create_task(hold(suspects, 1))


async def test_a_suspect_begins_when_the_others_have_ended():
    """A trial waits for what runs, and for the store to learn of it; others are turned away. D25."""
    suspects, began = Suspects(), []
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as group:
        group.create_task(hold(suspects, 2))
        await asyncio.sleep(0)
        start = loop.time()
        assert suspects.turn_away(suspect=True) == 0
        group.create_task(hold(suspects, 1, suspect=True, log=began))
        await asyncio.sleep(0)
        assert 2 * HUSH <= suspects.turn_away(suspect=False) <= 6 * HUSH
        assert suspects.turn_away(suspect=True) > 0
    assert began[0] - start == pytest.approx(2 + HUSH)
    assert suspects.turn_away(suspect=False) == suspects.turn_away(suspect=True) == 0


async def test_a_suspect_does_not_wait_for_ever():
    """Those that take long run on beside a trial: they have a crash to spare. D25."""
    suspects, began = Suspects(), []
    loop = asyncio.get_running_loop()
    long = asyncio.create_task(hold(suspects, 3600))
    await asyncio.sleep(0)
    start = loop.time()
    await hold(suspects, 1, suspect=True, log=began)
    assert began[0] - start == pytest.approx(PATIENCE + HUSH)
    long.cancel()


async def test_a_long_trial_keeps_no_others_out():
    """A suspect that has run for a while lets others in again, but no other suspect. D25."""
    suspects = Suspects()
    trial = asyncio.create_task(hold(suspects, 3600, suspect=True))
    await asyncio.sleep(HUSH + QUIET + 0.1)
    assert suspects.turn_away(suspect=False) == 0
    assert suspects.turn_away(suspect=True) > 0
    await hold(suspects, 1)
    trial.cancel()
    await asyncio.gather(trial, return_exceptions=True)
    assert suspects.turn_away(suspect=True) == 0
