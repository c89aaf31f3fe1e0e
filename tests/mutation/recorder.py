"""Which tests execute which lines of the core, and how long they take."""

import hashlib
import json
import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from coverage import Coverage

from tests.mutation.changes import ROOT

STORE = ROOT / "build" / "mutation.json"
FOLDERS = ("contract", "durable", "faults", "integrations", "proof", "testing", "unit")
FIRST = ("tests/unit/", "tests/proof/")
"""Where tests are that were written for small slips."""
LEFT_OUT = {
    "test_runner_process.py",  # other processes, where no change is put in
    "test_plugin.py",  # same
    "test_endurance.py",  # takes long, and shows nothing that others do not
    "test_versions.py",  # of frameworks
}
OPTIONS = [
    *("-q", "-s", "--no-header", "--no-summary", "-o", "timeout=0"),
    *("-k", "not uvloop", "-p", "no:randomly", "-p", "no:cacheprovider"),
    # What is loaded before the tests are is no test.
    *("-W", "ignore::pytest.PytestAssertRewriteWarning"),
]


def test_files() -> list[str]:
    """Return the files of tests that a change is shown to."""
    files = [path for folder in FOLDERS for path in sorted((ROOT / "tests" / folder).glob("test_*.py"))]
    return [str(path.relative_to(ROOT)) for path in files if path.name not in LEFT_OUT]


class Record:
    """What was recorded, kept in a file from one run to the next."""

    def __init__(self) -> None:
        self.core = ""
        self.files: dict[str, str] = {}
        self.seconds: dict[str, float] = {}
        self.lines: dict[str, dict[int, set[str]]] = {}
        self.killers: dict[str, str] = {}
        self.survived: list[str] = []
        self._seen: dict[str, Counter[str]] = {}

    @classmethod
    def load(cls) -> "Record":
        """Return the last one, or an empty one."""
        record = cls()
        if STORE.exists():
            data = json.loads(STORE.read_text())
            tests = data.pop("tests")
            data["lines"] = {
                module: {int(line): {tests[number] for number in numbers} for line, numbers in lines.items()}
                for module, lines in data["lines"].items()
            }
            vars(record).update(data)
        return record

    def save(self) -> None:
        """Keep it."""
        tests = sorted(self.seconds)
        numbers = {test: number for number, test in enumerate(tests)}
        lines = {
            module: {line: sorted(numbers[test] for test in hit if test in numbers) for line, hit in found.items()}
            for module, found in self.lines.items()
        }
        STORE.parent.mkdir(exist_ok=True)
        STORE.write_text(json.dumps({**self._kept(), "lines": lines, "tests": tests}))

    def _kept(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def refresh(self) -> None:
        """Run the tests that have changed since, or all of them when the core has."""
        core = _digest(sorted((ROOT / "deferred").rglob("*.py")))
        if core != self.core:
            self.core, self.files, self.seconds, self.lines = core, {}, {}, {}
        files = {file: _digest([ROOT / file]) for file in test_files()}
        stale = [file for file, digest in files.items() if self.files.get(file) != digest]
        gone = (*stale, *(file for file in self.files if file not in files))
        for test in [test for test in self.seconds if test.partition("::")[0] in gone]:
            del self.seconds[test]
            for lines in self.lines.values():
                for hit in lines.values():
                    hit.discard(test)
        if stale:
            print(f"recording {len(stale)} files of tests", flush=True)
            _in_child(stale, self)
        self.files = files
        self.save()

    def tests(self, module: str, lines: Iterable[int]) -> list[str]:
        """Return the tests that execute one of these lines, those first that are fast and see much of the module."""
        known = self.lines.get(module, {})
        if module not in self._seen:
            self._seen[module] = Counter(test for hit in known.values() for test in hit)
        seen, found = self._seen[module], set().union(*(known.get(line, set()) for line in lines))
        return sorted(found, key=lambda test: (not test.startswith(FIRST), self.seconds[test] / seen[test]))


def silence(*streams: int) -> None:
    """Let what this process says be lost."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in streams:
        os.dup2(nowhere, stream)


def _digest(files: list[Path]) -> str:
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()


def _in_child(files: list[str], record: Record) -> None:
    """Run these files of tests in a process of their own, and take over what it has seen."""
    part = STORE.with_suffix(".part")
    part.parent.mkdir(exist_ok=True)
    pid = os.fork()
    if not pid:
        code = 3
        silence(1, 2)
        try:
            recorder = Recorder()
            pytest.main([*OPTIONS, *files], plugins=[recorder])
            part.write_text(json.dumps(recorder.result()))
            code = 0
        finally:
            os._exit(code)
    if os.waitpid(pid, 0)[1]:
        raise SystemExit("the tests could not be recorded")
    data = json.loads(part.read_text())
    part.unlink()
    for test in data["failed"]:
        print(f"fails without any change, and is left out: {test}", flush=True)
    record.seconds.update(data["seconds"])
    for module, lines in data["lines"].items():
        known = record.lines.setdefault(module, {})
        for line, tests in lines.items():
            known.setdefault(int(line), set()).update(test for test in tests if test in data["seconds"])


class Recorder:
    """A pytest plugin that notes, test by test, which lines of the core were executed."""

    def __init__(self) -> None:
        self.coverage = Coverage(data_file=None, config_file=False, include=[str(ROOT / "deferred" / "*.py")])
        self.seconds: dict[str, float] = {}
        self.failed: set[str] = set()

    def pytest_sessionstart(self) -> None:
        """Start to look."""
        self.coverage.start()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Any:
        """Look at one test."""
        self.coverage.switch_context(item.nodeid)
        started = time.perf_counter()
        result = yield
        self.seconds[item.nodeid] = time.perf_counter() - started
        self.coverage.switch_context("")
        return result

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note what fails."""
        if report.failed:
            self.failed.add(report.nodeid)

    def result(self) -> dict[str, Any]:
        """Return what was seen."""
        self.coverage.stop()
        data, lines = self.coverage.get_data(), defaultdict(dict)
        for file in data.measured_files():
            for line, tests in data.contexts_by_lineno(file).items():
                lines[Path(file).stem][line] = [test for test in tests if test]
        seconds = {test: spent for test, spent in self.seconds.items() if test not in self.failed}
        return {"seconds": seconds, "failed": sorted(self.failed), "lines": lines}
