"""The watchdog names whoever blocks the event loop, and ends with its loop."""

import asyncio
import logging
import threading
import time
from unittest import mock

import pytest

from deferred import Supervisor
from deferred._watchdog import Watchdog

THRESHOLD = 0.02  # seconds


class Heard(logging.Handler):
    """Keeps the messages."""

    def __init__(self):
        super().__init__()
        self.messages = []
        self.more = threading.Condition()

    def emit(self, record):
        """Keep it."""
        with self.more:
            self.messages.append(record.getMessage())
            self.more.notify_all()

    def wait_for(self, text):
        """Wait, in a thread, until there is a message with this text."""
        with self.more:
            assert self.more.wait_for(lambda: self.about(text), timeout=30)

    def about(self, text):
        """Return the first message with this text; the machine itself may be slow enough for others."""
        return next((message for message in self.messages if text in message), None)


@pytest.fixture
def heard():
    """Give what the watchdog logs; none that the test has begun is left after it."""
    handler, logger = Heard(), logging.getLogger("deferred")
    handler.setLevel(logging.WARNING)
    logger.addHandler(handler)
    yield handler
    list(map(threading.Thread.join, watching()))
    logger.removeHandler(handler)


def watching():
    """Return the threads that watch."""
    return [thread for thread in threading.enumerate() if thread.name == "deferred-watchdog"]


async def test_a_task_that_blocks_is_named(heard):
    """A16: a task that blocks the loop is named with the place that deferred it, once for each time."""
    async with Supervisor(watchdog=THRESHOLD) as supervisor:
        with supervisor.context() as ctx:

            async def greedy():
                while not heard.about("blocked by task"):
                    until = time.monotonic() + 1
                    while time.monotonic() < until and not heard.about("blocked by task"):
                        pass
                    await asyncio.sleep(0)  # the machine has blocked the loop before: this is the next time

            handle = ctx.defer(greedy)
        await handle
        await asyncio.to_thread(heard.wait_for, "the event loop turns again, after")
    blocked = heard.about("blocked by task")
    assert f"blocked by task {handle.name!r} (deferred at {handle.site})" in blocked
    assert f"{__file__}:" in blocked


async def test_code_that_is_no_task(heard):
    """A loop that is blocked by other code is reported with the place where it is."""
    async with Supervisor(watchdog=THRESHOLD):
        while not heard.about("blocked by code that is no deferred task, at "):
            pass


async def test_a_loop_that_turns(heard):
    """A loop that gives signs of life is left alone."""
    watchdog = Watchdog.__new__(Watchdog)
    watchdog._loop, watchdog._threshold, watchdog._alive = asyncio.get_running_loop(), 30, threading.Event()
    watchdog._stop = mock.Mock()
    watchdog._stop.wait.side_effect = [False, False, True]
    watchdog._stop.is_set.return_value = False
    await asyncio.to_thread(watchdog._watch)
    assert heard.messages == []


def test_it_is_stopped_as_it_asks(heard):
    """A stop between two looks is not wiped out with the sign of life before it: nothing is blocked then."""

    class Alive(threading.Event):
        def clear(self):
            watchdog.stop()
            super().clear()

    watchdog = Watchdog.__new__(Watchdog)
    watchdog._loop, watchdog._threshold = mock.Mock(), THRESHOLD
    watchdog._loop_thread = threading.get_ident()
    watchdog._alive, watchdog._stop = Alive(), threading.Event()
    thread = threading.Thread(target=watchdog._watch, daemon=True)
    thread.start()
    thread.join(30)
    assert not thread.is_alive()
    assert heard.messages == []


async def test_it_ends_with_its_supervisor(heard):
    """A supervisor that was closed is not watched, one that was opened again is, by one thread."""
    supervisor = Supervisor(watchdog=THRESHOLD)
    for _ in range(2):
        async with supervisor:
            (thread,) = watching()
            async with supervisor:
                assert watching() == [thread]
        thread.join()
    assert watching() == []


def test_a_loop_that_is_gone(heard):
    """The watchdog of a loop that was closed ends by itself."""
    loop = asyncio.new_event_loop()
    loop.close()
    Watchdog(loop, THRESHOLD)
    list(map(threading.Thread.join, watching()))
    assert heard.messages == []


def test_a_thread_that_is_gone(heard):
    """A loop whose thread has ended is reported as blocked at an unknown place."""
    loop = asyncio.new_event_loop()
    made = []
    thread = threading.Thread(target=lambda: made.append(Watchdog(loop, THRESHOLD)))
    thread.start()
    thread.join()
    heard.wait_for("at an unknown place")
    made[0].stop()
    loop.close()


def test_a_loop_that_is_closed_while_it_is_blocked(heard):
    """The watchdog of a loop that never turns again waits for it no longer than it is open."""
    loop = mock.Mock()  # what it is asked it never does
    loop.is_closed.side_effect = [False, True]
    loop.call_soon_threadsafe.side_effect = [None, RuntimeError("Event loop is closed")]
    Watchdog(loop, THRESHOLD)
    list(map(threading.Thread.join, watching()))
    assert heard.about("the event loop is blocked")
    assert heard.about("turns again") is None
