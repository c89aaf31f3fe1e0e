"""Importing the package costs little more than importing what it cannot do without."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import measure

LIMIT = 1.3
ROUNDS = 15

# What is timed is the import itself; starting the interpreter is the same for both, and much longer.
PROGRAM = "import time; started = time.perf_counter(); import {}; print(time.perf_counter() - started)"
OURS = "deferred"
PEER = "asyncio, contextvars, msgspec"

# An installed package has its bytecode; a checkout may be told to write none.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
ENVIRONMENT["PYTHONPYCACHEPREFIX"] = str(Path(".benchmarks/bytecode").absolute())


def seconds_to_import(names: str) -> float:
    command = [sys.executable, "-c", PROGRAM.format(names)]
    return float(subprocess.run(command, env=ENVIRONMENT, check=True, capture_output=True, text=True).stdout)


def bench_import(benchmark: Any) -> None:
    if benchmark.disabled:
        pytest.skip("benchmarks are run by `make bench`")
    times: dict[str, list[float]] = {OURS: [], PEER: []}

    def both() -> None:
        for names, taken in times.items():
            taken.append(seconds_to_import(names) * 1e6)

    benchmark.pedantic(both, rounds=ROUNDS, warmup_rounds=1)  # the first writes the bytecode
    best = {names: min(taken) for names, taken in times.items()}
    benchmark.extra_info["median_us"] = {names: statistics.median(taken) for names, taken in times.items()}
    measure.record(benchmark, "import", "fresh process", best, limit=LIMIT)
