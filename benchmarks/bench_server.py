"""A server under load, over a socket: requests a second and the 99th percentile, beside its peers.

Each app is a server in a process of its own; wrk, 32 connections that are kept alive, loads one
after the other in short rounds, and the best round of each counts. Where there are processors
enough the servers have one of their own and wrk has another.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from benchmarks.measure import notes, record

CONNECTIONS = 32
SECONDS = 2
ROUNDS = 7
APPS = ("deferred", "create_task", "BackgroundTask")
UNITS = {"us": 1.0, "ms": 1e3, "s": 1e6}


class Load(NamedTuple):
    """What wrk has measured; times in microseconds."""

    per_request: float
    p99: float
    processor: float  # that the server has used for a request


class Served(NamedTuple):
    """One of the apps, as a process."""

    url: str
    pid: int

    def used(self) -> float:
        """Return the processor time that it has used so far, in microseconds; 0 where that is not known."""
        try:
            fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        except FileNotFoundError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") * 1e6


@contextmanager
def serving(name: str, loop: str, cpu: str) -> Iterator[Served]:
    """Start one of the apps."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.served", name, loop, cpu],
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield Served(f"http://127.0.0.1:{int(process.stdout.readline())}/", process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)


def load(app: Served, cpu: str, seconds: int = SECONDS) -> Load:
    """Load a server, and return what wrk says of it."""
    options = ["--threads", "1", "--connections", str(CONNECTIONS), "--duration", str(seconds), "--latency"]
    command = ["wrk", *options, app.url]
    if cpu:
        command = ["taskset", "--cpu-list", cpu, *command]
    used = app.used()
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    assert "Non-2xx" not in said, said
    assert "Socket errors" not in said, said
    rate = re.search(r"Requests/sec:\s+([\d.]+)", said)
    count = re.search(r"(\d+) requests in", said)
    p99 = re.search(r"99%\s+([\d.]+)(us|ms|s)", said)
    assert rate, said
    assert count, said
    assert p99, said
    return Load(1e6 / float(rate[1]), float(p99[1]) * UNITS[p99[2]], (app.used() - used) / int(count[1]))


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def bench_requests_over_a_socket(benchmark: Any, loop: str) -> None:
    if benchmark.disabled:
        pytest.skip("benchmarks are run by `make bench`")
    if shutil.which("wrk") is None:
        pytest.skip("wrk is not installed (on Debian: apt-get install wrk)")
    if loop == "uvloop" and importlib.util.find_spec("uvloop") is None:
        pytest.skip("uvloop is not installed")
    mine, its = _processors()
    rounds: dict[str, list[Load]] = {name: [] for name in APPS}
    with ExitStack() as stack:
        apps = {name: stack.enter_context(serving(name, loop, mine)) for name in APPS}
        for app in apps.values():
            load(app, its, seconds=1)

        def one_round() -> None:
            for name, app in apps.items():
                rounds[name].append(load(app, its))

        benchmark.pedantic(one_round, rounds=ROUNDS)
    best = {name: Load(*(min(values) for values in zip(*runs, strict=True))) for name, runs in rounds.items()}
    for name, (per_request, p99, processor) in best.items():
        rate = 1e6 / per_request
        benchmark.extra_info.update({f"{name}_rate": round(rate), f"{name}_p99_us": round(p99)})
        notes.append(
            f"uvicorn, {loop}, {name}: {rate:,.0f} requests/s, 99th percentile {p99 / 1e3:.2f} ms, "
            f"{processor:.1f} us of processor a request"
        )
    where = f"uvicorn, {loop}"
    for peer, limit in (("create_task", 1 / 0.95), ("BackgroundTask", 1 / 1.8)):
        times = {name: best[name].per_request for name in ("deferred", peer)}
        record(benchmark, "time per request over a socket", where, times, limit=limit, aim=True)
    times = {name: best[name].p99 for name in ("deferred", "create_task")}
    record(benchmark, "99th percentile over a socket", where, times, limit=1.2, aim=True)


def _processors() -> tuple[str, str]:
    """Return a processor for the servers and one for wrk; empty where there is only one, or no way to choose."""
    if not hasattr(os, "sched_getaffinity") or shutil.which("taskset") is None:
        return "", ""
    first, *others = sorted(os.sched_getaffinity(0))
    return (str(first), str(others[0])) if others else ("", "")
