"""How two things are compared: interleaved, many times, the fastest of each.

The fastest run is the one that nothing has disturbed; that the runs take turns means that a
slow minute of the machine is slow for all of them. What is asserted is a ratio.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest


class Row(NamedTuple):
    """A line of the table at the end; times in microseconds."""

    measure: str
    where: str
    ours: float
    peer: str
    theirs: float
    limit: float | None

    @property
    def ratio(self) -> float:
        return self.ours / self.theirs


rows: list[Row] = []
notes: list[str] = []
python = f"{sys.version_info[0]}.{sys.version_info[1]}"


@contextmanager
def quiet_collector() -> Iterator[None]:
    """Keep what is alive already out of every collection: pytest is a large program."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def fastest(benchmark: Any, runs: dict[str, Callable[[], Any]], *, rounds: int, per: int = 1) -> dict[str, float]:
    """Return the shortest time of each run, in microseconds divided by `per`.

    The first run is the one that pytest-benchmark records; the others take their turns in
    its set-up, which it does not measure.
    """
    if benchmark.disabled:
        pytest.skip("benchmarks are run by `make bench`")
    (name, subject), *others = runs.items()
    best = dict.fromkeys(runs, float("inf"))

    def timed(name: str, run: Callable[[], Any]) -> None:
        started = time.perf_counter()
        run()
        best[name] = min(best[name], (time.perf_counter() - started) / per * 1e6)

    def peers() -> None:
        for other, run in others:
            timed(other, run)

    with quiet_collector():
        benchmark.pedantic(timed, args=(name, subject), setup=peers, rounds=rounds, warmup_rounds=1)
    benchmark.extra_info.update({f"{name}_us": round(took, 4) for name, took in best.items()})
    return best


def record(
    benchmark: Any, measure: str, where: str, best: dict[str, float], *, limit: float | None = None, aim: bool = False
) -> None:
    """Note our time (the first) beside each peer's for the table, and assert the limit for the first peer.

    Args:
        benchmark: The fixture of pytest-benchmark, which keeps the figures.
        measure: What was measured.
        where: On what.
        best: The shortest times in microseconds, ours first.
        limit: How many times the first peer's ours may be.
        aim: The limit is what we aim at and have not reached: the table says so, and nothing fails.
    """
    (_, ours), *peers = best.items()
    for place, (peer, theirs) in enumerate(peers):
        rows.append(Row(measure, where, ours, peer, theirs, limit if not place else None))
    if limit is not None:
        peer, theirs = peers[0]
        benchmark.extra_info.update({"ratio": round(ours / theirs, 3), "limit": limit})
        assert aim or ours <= limit * theirs, (
            f"{measure} costs {ours / theirs:.2f} times {peer}; at most {limit} is promised"
        )
