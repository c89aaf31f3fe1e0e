"""Change the core, one operator at a time, and see that a test notices: `make mutation`.

mutmut makes the changes (its mutants, but for those of texts). It does not run them: it calls a
changed function through a wrapper, and this package looks at the frames of its callers. Here each
mutant is a process forked from one that has the frameworks loaded already; in it, the import of
one module gives the changed code, and the tests run until one fails.
"""

import argparse
import importlib.machinery
import importlib.util
import os
import random
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import libcst
import pytest
from mutmut.mutation.file_mutation import create_mutations

ROOT = Path(__file__).parent.parent
CORE = ("_call", "_drain", "_hooks", "_launch", "_limits", "_retry", "_run", "_settle", "_supervisor", "_unit")
TEXTS = (libcst.SimpleString, libcst.FormattedString, libcst.ConcatenatedString)
OPTIONS = [
    *("-x", "-q", "--no-header", "--timeout=20", "-k", "not uvloop"),
    *("-p", "no:randomly", "-p", "no:cacheprovider"),
    # What is loaded before the fork is no test.
    *("-W", "ignore::pytest.PytestAssertRewriteWarning"),
]
FIRST = {
    "_call": ["tests/faults/test_runner_arguments.py", "tests/contract/test_arguments.py"],
    "_drain": ["tests/contract/test_draining.py", "tests/faults/test_runner_drain.py"],
    "_hooks": ["tests/faults/test_runner_hooks.py", "tests/faults/test_runner_hook_kinds.py"],
    "_limits": ["tests/faults/test_runner_limits.py"],
    "_retry": ["tests/contract/test_retries.py", "tests/faults/test_runner_retries.py"],
    "_run": ["tests/contract/test_retries.py", "tests/faults/test_runner_failures.py"],
    "_supervisor": ["tests/contract/test_draining.py", "tests/faults/test_runner_reopen.py"],
}
"""The tests that know most of a module; the others come after them."""
SLOW = {"test_runner_process.py", "test_runner_trio.py", "test_litestar.py"}
LIMIT = 240.0
"""Seconds that the tests have with a mutant: one that hangs is noticed too."""
MEMORY = 4 << 30
"""Bytes that a mutant has: one that fills the memory is noticed too."""


class Mutant(NamedTuple):
    """One change of one module."""

    module: str
    line: int
    change: str
    code: str


def mutants(module: str) -> Iterator[Mutant]:
    """Give every change of this module that is one of what it does."""
    path = ROOT / "deferred" / f"{module}.py"
    tree, found, _, _ = create_mutations(str(path), path.read_text())
    lines = tree.code.splitlines()
    for mutation in found:
        if mutation.contained_by_top_level_function is None or isinstance(mutation.original_node, TEXTS):
            continue
        changed: Any = tree.deep_replace(mutation.original_node, mutation.mutated_node)
        pairs = zip(lines, changed.code.splitlines(), strict=False)
        number, (old, new) = next((n, pair) for n, pair in enumerate(pairs, 1) if pair[0] != pair[1])
        yield Mutant(module, number, f"{old.strip()}  ->  {new.strip()}", changed.code)


class Changed(importlib.machinery.SourceFileLoader):
    """Loads one module with other code than its file has."""

    code = ""

    def get_code(self, fullname: str) -> Any:
        """Compile the changed code, never a cached one."""
        return compile(self.code, self.path, "exec")


class Finder:
    """Finds the changed module, and no other."""

    def __init__(self, mutant: Mutant) -> None:
        self.name = f"deferred.{mutant.module}"
        self.code = mutant.code

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> Any:
        """Return how to load it."""
        if fullname != self.name:
            return None
        file = str(ROOT / (fullname.replace(".", "/") + ".py"))
        loader = Changed(fullname, file)
        loader.code = self.code
        return importlib.util.spec_from_file_location(fullname, file, loader=loader)


def selection(module: str) -> list[str]:
    """Return the tests, those that know most of the module first."""
    first = [*FIRST.get(module, ()), "tests/unit"]
    folders = ("tests/contract", "tests/faults")
    files = [str(path.relative_to(ROOT)) for folder in folders for path in sorted((ROOT / folder).glob("test_*.py"))]
    return [*first, *(file for file in files if file not in first and Path(file).name not in SLOW)]


def run(mutant: Mutant | None, module: str) -> None:
    """Run the tests in this process, which ends with their exit code."""
    if mutant is not None:
        sys.meta_path.insert(0, Finder(mutant))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    silence = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(silence, stream)
    code: int = 2
    try:
        code = int(pytest.main([*OPTIONS, *selection(module)]))
    finally:
        os._exit(code)


def start(mutant: Mutant | None, module: str) -> tuple[int, float]:
    """Fork a process for it; return that and when it has to have ended."""
    pid = os.fork()
    if not pid:
        os.setsid()
        run(mutant, module)
    return pid, time.monotonic() + LIMIT


def judge(given: list[Mutant], jobs: int) -> Iterator[tuple[Mutant, str]]:
    """Give each mutant with what became of it: ``killed``, ``timeout`` or ``survived``."""
    waiting, running = list(reversed(given)), {}
    while waiting or running:
        while waiting and len(running) < jobs:
            mutant = waiting.pop()
            pid, until = start(mutant, mutant.module)
            running[pid] = mutant, until
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            yield running.pop(pid)[0], "killed" if status else "survived"
            continue
        for late in [late for late, (_, until) in running.items() if time.monotonic() > until]:
            os.killpg(late, signal.SIGKILL)
            os.waitpid(late, 0)
            yield running.pop(late)[0], "timeout"
        time.sleep(0.05)


def main() -> int:
    """Judge the mutants of the modules named; print who survived, and the score of each module."""
    parser = argparse.ArgumentParser(description="Change the core and see that a test notices.")
    parser.add_argument("modules", nargs="*", default=CORE, help="such as _retry; all of the core without any")
    parser.add_argument("--sample", type=int, help="so many of each module, at random")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--least", type=float, default=0.0, help="the percentage below which this fails")
    given = parser.parse_args()
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    for framework in ("hypothesis", "litestar", "starlette.applications", "httpx", "stamina", "tenacity", "anyio"):
        importlib.import_module(framework)
    pid, _ = start(None, given.modules[0])
    if os.waitpid(pid, 0)[1]:
        print("the tests fail without any change: there is nothing to be seen", file=sys.stderr)
        return 2
    worst = 100.0
    for module in given.modules:
        found = list(mutants(module))
        if given.sample is not None and given.sample < len(found):
            found = random.Random(given.seed).sample(found, given.sample)
        counts: Counter[str] = Counter()
        for mutant, verdict in judge(found, given.jobs):
            counts[verdict] += 1
            if verdict == "survived":
                print(f"  {module}.py:{mutant.line}: {mutant.change}", flush=True)
        score = 100 * (len(found) - counts["survived"]) / max(1, len(found))
        worst = min(worst, score)
        print(f"{module}.py: {score:.1f}% of {len(found)} ({dict(counts)})", flush=True)
    return int(worst < given.least)


if __name__ == "__main__":
    sys.exit(main())
