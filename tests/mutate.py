"""Change the core, one operator at a time, and see that a test notices: `make mutation`.

Each change is shown to the tests that execute its line, the fastest first, in a process forked
from one that has collected them. What no test can notice is listed in `mutation/equivalent.toml`
with the reason; an entry that fits no change, or one that a test does notice, is an error.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
import tomllib
from collections import Counter, deque
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)
os.chdir(ROOT)
os.environ["MUTATION"] = "yes"

import pytest  # noqa: E402  # the checkout comes first on the path
from hypothesis.configuration import set_hypothesis_home_dir  # noqa: E402  # same

from tests.mutation.changes import Mutant, mutants  # noqa: E402  # same
from tests.mutation.judge import Judge  # noqa: E402  # same
from tests.mutation.recorder import OPTIONS, Record, test_files  # noqa: E402  # same

EQUIVALENT = ROOT / "tests" / "mutation" / "equivalent.toml"
CORE = (
    *("_run", "_retry", "_limits", "_context", "_registration", "_unit"),
    *("_supervisor", "_lifecycle", "_accept", "_settle", "_launch", "_drain", "_hooks", "_call"),
    *("_rooms", "_waits"),
)

QUICK = 0.5
"""Seconds: a test that takes longer comes in its turn, whatever it has noticed."""


class Round:
    """One run of the command, as a pytest plugin that does something else with the tests it has collected."""

    def __init__(self, given: argparse.Namespace, record: Record) -> None:
        self.given = given
        self.record = record
        self.equivalent: dict[str, str] = tomllib.loads(EQUIVALENT.read_text()) if EQUIVALENT.exists() else {}
        self.recent: dict[str, deque[str]] = {}  # by function, who noticed its last changes
        self.code = 0

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Judge the changes of each module, instead of the code as it is."""
        judge = Judge(session, self.record.seconds, self.given.modules)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to end"))
        try:
            for module in self.given.modules:
                self.judge_module(judge, module)
        finally:
            self.record.save()
        return True

    def judge_module(self, judge: Judge, module: str) -> None:
        """Print who survives in one module, and its score."""
        found = [mutant for mutant in mutants(module) if self.wanted(mutant)]
        unknown = {key for key in self.equivalent if key.startswith(f"{module}.")} - {mutant.key for mutant in found}
        if self.given.sample is not None and self.given.sample < len(found):
            found = random.Random(self.given.seed).sample(found, self.given.sample)
        counts: Counter[str] = Counter()
        given = ((mutant, self.order(mutant)) for mutant in found)
        for trial, verdict, killer in judge.judge(given, self.given.jobs):
            mutant = trial.mutant
            if self.given.verbose:
                spent = time.monotonic() - trial.started
                print(f"  {verdict} in {spent:.1f} s of {len(trial.tests)}: {mutant.key} {killer}", flush=True)
            self.note(mutant, verdict, killer)
            known = mutant.key in self.equivalent
            counts["equivalent" if known and verdict == "survived" else verdict] += 1
            if known and verdict != "survived":
                print(f"  is no equivalent: {mutant.key} {killer}", flush=True)
                self.code = 1
            elif verdict == "survived" and not known:
                print(f"  {module}.py:{mutant.line}: {mutant.function}: {mutant.change}", flush=True)
        if not (self.given.again or self.given.only):
            for key in sorted(unknown):
                print(f"  fits no change: {key}", flush=True)
                self.code = 1
        noticed, total = counts["killed"] + counts["timeout"], len(found) - counts["equivalent"]
        score = 100 * noticed / max(1, total)
        self.code |= score < self.given.least
        print(f"{module}.py: {score:.1f}%, {noticed} of {total} {dict(counts)}", flush=True)

    def wanted(self, mutant: Mutant) -> bool:
        """Say whether the change is one of those asked for."""
        if self.given.again and mutant.key in self.record.killers:
            return False
        return self.given.only is None or self.given.only in mutant.key

    def order(self, mutant: Mutant) -> list[str]:
        """Return the tests to show it to: who has noticed it before, then its neighbours, then the fast ones."""
        tests = self.record.tests(mutant.module, mutant.statement)
        known = [self.record.killers.get(mutant.key), *self.recent.get(f"{mutant.module}.{mutant.function}", ())]
        first = [test for test in dict.fromkeys(known) if test in self.record.seconds]
        return [*first, *(test for test in tests if test not in first)][: self.given.most]

    def note(self, mutant: Mutant, verdict: str, killer: str) -> None:
        """Remember what became of it, for the next run."""
        if mutant.key in self.record.survived:
            self.record.survived.remove(mutant.key)
        if verdict == "survived":
            self.record.survived.append(mutant.key)
            self.record.killers.pop(mutant.key, None)
        else:
            self.record.killers[mutant.key] = killer
        if verdict == "killed" and self.record.seconds[killer] < QUICK:
            recent = self.recent.setdefault(f"{mutant.module}.{mutant.function}", deque(maxlen=8))
            if killer not in recent:
                recent.appendleft(killer)


def main() -> int:
    """Judge the changes of the modules named; print who survived, and the score of each module."""
    parser = argparse.ArgumentParser(description="Change the core and see that a test notices.")
    parser.add_argument("modules", nargs="*", default=CORE, help="such as _retry; all of the core without any")
    parser.add_argument("--sample", type=int, help="so many of each module, at random")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="how many at a time; most of those that hang sleep")
    parser.add_argument("--again", action="store_true", help="only those that no test has noticed yet")
    parser.add_argument("--only", help="only those of which this is a part, such as the name of a function")
    parser.add_argument("--most", type=int, help="to how many tests a change is shown; to all that execute it without")
    parser.add_argument("--verbose", action="store_true", help="tell of each change what became of it")
    parser.add_argument("--least", type=float, default=0.0, help="the percentage below which this fails")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        set_hypothesis_home_dir(folder)  # what a change breaks is no example of anything
        record = Record.load()
        record.refresh()
        round_ = Round(given, record)
        code = pytest.main([*OPTIONS, *test_files()], plugins=[round_])
    return int(code) or round_.code


if __name__ == "__main__":
    sys.exit(main())
