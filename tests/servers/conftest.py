"""The tests here wait for processes: they run side by side, in threads, but for the asynchronous ones."""

import inspect
import logging
import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

SIDE_BY_SIDE = 2 + (os.cpu_count() or 1)
"""How many tests run at a time: they wait more than they work."""

started: dict[pytest.Item, Future[None]] = {}


def waits(item: pytest.Item) -> bool:
    """Say whether a test of this folder waits for processes, rather than for an event loop."""
    return item.path.parent == Path(__file__).parent and not inspect.iscoroutinefunction(item.function)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give those tests time: each wait has a bound of its own, and the first of them waits for a pool of others."""
    for item in items:
        if waits(item):
            item.add_marker(pytest.mark.timeout(600))  # seconds


@pytest.fixture(autouse=True, scope="session")
def side_by_side(request: pytest.FixtureRequest):
    """Start the tests of this folder that were chosen, some at a time, before the first of them is asked for."""
    logging.getLogger("httpx").setLevel(logging.WARNING)  # else what they ask is in the log of whichever test runs
    pool = ThreadPoolExecutor(SIDE_BY_SIDE)
    for item in request.session.items:
        if waits(item):
            arguments = item.callspec.params if hasattr(item, "callspec") else {}
            started[item] = pool.submit(item.function, **arguments)
    yield
    pool.shutdown(cancel_futures=True)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Wait for the test, which runs in a thread already."""
    if pyfuncitem not in started:
        return None
    started[pyfuncitem].result()
    return True
