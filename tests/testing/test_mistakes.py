"""Mistakes in a test: refused with what to write instead, so that none passes for a good result."""

import asyncio

import pytest
from aiohttp import web

from deferred import EventLoopError, Supervisor, defer
from deferred.testing import Kit, UnfinishedWorkWarning, client, create_context
from tests.testing.support import BoomError, fine


@pytest.mark.parametrize("wrong", ["BoomError", BoomError("an instance"), [BoomError], int])
def test_errors_are_allowed_by_their_classes(wrong):
    """Anything else would be found out when a task fails, far from here."""
    with pytest.raises(TypeError, match="allowed by their classes, such as `ValueError`, not by"):
        Kit().allow_errors(wrong)


@pytest.mark.parametrize(("times", "error"), [(0, ValueError), (-1, ValueError), ("2", TypeError), (True, TypeError)])
def test_a_fault_that_could_never_strike_is_refused(times, error):
    """How many attempts it hits is a whole number of at least one."""
    with pytest.raises(error, match="times must be"):
        Kit().fail(fine, BoomError, times=times)


def test_how_often_comes_before_the_function():
    """``assert_deferred_times(func, 2)`` is told which order it is."""
    with pytest.raises(TypeError, match=r"`assert_deferred_times\(2, func\)`, not <function fine"):
        Kit().assert_deferred_times(fine, 2)


def test_a_mode_that_is_none_is_refused_when_it_is_set():
    """The kit stays as it was, instead of running what was to be captured."""
    kit = Kit("capture")
    with pytest.raises(ValueError, match="mode must be one of 'run', 'inline', 'capture', not 'captured'"):
        kit.mode = "captured"
    assert kit.mode == "capture"


@pytest.mark.parametrize("wrong", ["supervisor", Supervisor])
def test_what_is_no_supervisor_is_not_watched(wrong):
    """By hand or as the owner of a context."""
    for mistake in (Kit().watch, lambda wrong: create_context(supervisor=wrong)):
        with pytest.raises(TypeError, match="a kit watches supervisors, not"):
            mistake(wrong)


@pytest.mark.parametrize(
    ("wrong", "mend"),
    [
        (None, "an ASGI app, not None$"),
        (web.Application(), r"for an application of aiohttp there is aiohttp_client\(\)$"),
    ],
)
async def test_what_is_no_asgi_app_has_no_client(wrong, mend):
    """An application of aiohttp is told its own client."""
    with pytest.raises(TypeError, match=mend):
        async with client(wrong):
            pass


async def test_a_synchronous_wait_on_a_running_loop_is_refused_though_nothing_is_left():
    """So that it does not pass until the first time there is something to wait for."""
    with pytest.raises(RuntimeError, match="await the method without `_sync`"):
        Kit().wait_sync()


@pytest.mark.parametrize("mode", ["run", "capture"])
def test_deferring_without_a_loop_names_the_synchronous_way(mode):
    """Without a server's words alone: a test has a loop inside ``with create_context()``."""
    ctx = create_context(mode)
    with pytest.raises(EventLoopError, match="inside `with create_context"):
        ctx.defer(fine)


async def test_the_mend_for_no_loop_is_not_named_where_another_one_runs():
    """On a running loop the core's message, which names both loops, is the one that helps."""
    supervisor = Supervisor()
    async with supervisor:
        with Kit():
            ctx = supervisor.context().__enter__()

            async def elsewhere():
                ctx.defer(fine)

            with pytest.raises(EventLoopError, match="another one") as caught:
                await asyncio.to_thread(asyncio.run, elsewhere())
            ctx.end()
    assert "create_context" not in str(caught.value)


def test_work_on_a_loop_that_is_over_is_told_of():
    """B40: ``asyncio.run`` inside a synchronous context closes the loop under the work that waits for the end."""

    async def handler():
        defer(fine)

    with pytest.warns(UnfinishedWorkWarning, match="'fine'.*its event loop is closed") as warned, create_context():
        asyncio.run(handler())
    assert warned[0].filename == __file__


def test_work_on_a_loop_that_stands_still_is_run_there():
    """A synchronous context turns the loop that the code under test was run on."""
    loop = asyncio.new_event_loop()

    async def handler():
        return defer(fine, 7)

    with create_context():
        handle = loop.run_until_complete(handler())
    loop.close()
    assert handle.result() == 7
