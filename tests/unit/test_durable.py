"""What durable work does where scenarios come by chance alone."""

import asyncio

import pytest

from deferred import Supervisor
from deferred._delivery import error_text
from deferred._suspects import Suspects
from deferred.exceptions import EngineError


class MuteError(Exception):
    """Cannot be shown."""

    def __str__(self):
        raise ValueError


def test_errors_as_texts():
    """An error is told by its class, words and traceback; one that cannot be shown by its class alone."""
    assert error_text(None) == ""
    assert error_text(MuteError()) == "MuteError"
    assert error_text(OSError("down")).startswith("OSError: down\n\n")


async def test_a_context_without_durable_work():
    """S15: a context whose owner knows no durable work says so when it is asked to store some."""
    supervisor = Supervisor()
    supervisor._launcher.durable = None
    with supervisor.context() as ctx, pytest.raises(EngineError, match="no supervisor with durable work"):
        ctx._store(None, (), {})


@pytest.mark.looptime
async def test_a_trial_that_is_broken_off():
    """D25: a suspect that is cancelled before its trial begins keeps nobody out."""
    suspects = Suspects()

    async def trial():
        async with suspects.running(suspect=True):
            raise AssertionError

    trying = asyncio.ensure_future(trial())
    await asyncio.sleep(0)
    assert suspects.turn_away(suspect=False)
    trying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await trying
    assert not suspects.turn_away(suspect=False)
    assert not suspects.turn_away(suspect=True)
