"""What the benchmarks share: their loops, their names, their table."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from benchmarks import measure
from deferred import Supervisor


def pytest_configure(config: pytest.Config) -> None:
    # Said here and not in pyproject.toml, so that `pytest tests` can never collect one.
    config.addinivalue_line("python_files", "bench_*.py")
    config.addinivalue_line("python_functions", "bench_*")
    if config.getoption("benchmark_enable"):
        Path(".benchmarks").mkdir(exist_ok=True)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_pyfunc_call() -> Generator[None, object, object]:
    """Tell looptime that a benchmark has no event loop but its own; else it makes one that nobody closes."""
    asyncio.set_event_loop(None)
    return (yield)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.timeout(900))  # a million tasks take their time


@pytest.fixture(params=["asyncio", "uvloop"])
def loop(request: pytest.FixtureRequest) -> str:
    if request.param == "uvloop" and importlib.util.find_spec("uvloop") is None:
        pytest.skip("uvloop is not installed")
    return request.param


@pytest.fixture
def runner(loop: str) -> Iterator[asyncio.Runner]:
    if loop == "uvloop":
        import uvloop  # noqa: PLC0415  # not on every platform

        factory = uvloop.new_event_loop
    else:
        factory = None
    with asyncio.Runner(loop_factory=factory) as runner:
        yield runner


@pytest.fixture
def supervisor(runner: asyncio.Runner) -> Iterator[Supervisor]:
    """A supervisor that is open and has no limit that a benchmark could meet."""
    supervisor = Supervisor(max_running=10**8, max_pending=10**8, max_per_context=10**8)
    runner.run(supervisor.__aenter__())
    yield supervisor
    runner.run(supervisor.close())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print each measure beside its peers."""
    if not measure.rows and not measure.notes:
        return
    write = terminalreporter.write_line
    terminalreporter.section(f"deferred beside its peers, Python {measure.python}")
    write(f"{'measure':<34} {'where':<16} {'ours':>10}  {'peer':<26} {'theirs':>10} {'ratio':>6}  limit")
    for row in sorted(measure.rows, key=lambda row: (row.measure, row.where)):
        limit = "" if row.limit is None else f"{row.limit:g}" + ("" if row.ratio <= row.limit else "  MISSED")
        write(
            f"{row.measure:<34} {row.where:<16} {row.ours:>8.2f}us  {row.peer:<26} {row.theirs:>8.2f}us "
            f"{row.ratio:>6.2f}  {limit}"
        )
    for note in measure.notes:
        write(note)
