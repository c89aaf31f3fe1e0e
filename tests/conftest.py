"""What every test shares."""

import asyncio
from collections.abc import Generator, Iterator

import pytest
from blockbuster import BlockBuster, blockbuster_ctx
from hypothesis import HealthCheck, settings

# A machine that stands still for a moment is no fault of an example.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")

READ_ONCE = {
    "<frozen importlib._bootstrap>": {"_find_and_load"},
    "deferred/engines/_lookup.py": {"find_engine"},
    "cairnq/store/sqlite.py": {"connect"},
    "cairnq/_sql.py": {"load_migrations"},
    "asyncpg/connect_utils.py": {"_parse_connect_arguments"},
}
"""Where files are read when something is opened: modules, entry points, an engine's statements, a password file."""


@pytest.fixture(autouse=True, scope="session")
def no_blocking_calls() -> Iterator[BlockBuster]:
    """Raise where code of `deferred` blocks the event loop (a file, a socket, a sleep)."""
    with blockbuster_ctx("deferred") as watch:
        # `make coverage` counts the lines of the loop's code under a lock of its own.
        watch.functions["threading.Lock.acquire"].can_block_in("coverage/collector.py", "lock_data")
        for function in watch.functions.values():
            for file, names in READ_ONCE.items():
                function.can_block_in(file, names)
        yield watch


@pytest.fixture(scope="session")
def postgres_server():
    """Give a real PostgreSQL that all tests share; each makes a database of its own."""
    from tests.engines.postgresql import Server

    server = Server()
    yield server
    server.close()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """Tell looptime that a synchronous test has no event loop.

    Its plugin (0.9) asks the policy for one, which makes a loop that nobody closes: its
    warning then fails whatever test the garbage collector runs in.
    """
    if pyfuncitem.get_closest_marker("asyncio") is None:
        asyncio.set_event_loop(None)
    return (yield)


@pytest.fixture(autouse=True)
def nothing_loose(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail a test after which asyncio's loop had to report an error of its own: a callback that raised, a lost task."""
    found: list[dict[str, object]] = []
    monkeypatch.setattr(
        asyncio.BaseEventLoop, "default_exception_handler", lambda _loop, context: found.append(context)
    )
    yield
    assert found == []
