"""Show changes to the tests: processes forked from one that has collected them all."""

import gc
import os
import resource
import select
import signal
import time
from collections.abc import Iterable, Iterator
from itertools import pairwise

import pytest

from tests.mutation.changes import Mutant, compiled, known_functions, path_of, put_in
from tests.mutation.recorder import silence

PATIENCE = 3.0
"""Seconds that a test has at least: a change may make it hang."""
SLOWER = 10
"""Times as long as usual that a test may take."""
MEMORY = 4 << 30
"""Bytes that a change has: one that fills the memory is noticed too."""
BROKEN = 2
"""The exit code of a process that got no further than the change."""


class Trial:
    """One change before the tests. Lives as long as its process."""

    def __init__(self, mutant: Mutant, tests: list[str], seconds: dict[str, float], pid: int, pipe: int) -> None:
        self.mutant = mutant
        self.tests = tests
        self.begun = 0
        self.started = time.monotonic()
        self.until = self.started + 60
        self.pid, self.pipe = pid, pipe
        self._seconds = seconds

    def read(self) -> bool:
        """Note how far it has come; say whether it goes on."""
        news = os.read(self.pipe, 4096)
        if news:
            self.begun += len(news)
            self.until = time.monotonic() + max(PATIENCE, SLOWER * self._seconds[self.tests[self.begun - 1]])
        return bool(news)

    def end(self, *, late: bool) -> tuple[str, str]:
        """Return ``killed``, ``timeout`` or ``survived``, and the test that did it."""
        os.close(self.pipe)
        if late:
            os.killpg(self.pid, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        if status == BROKEN:
            raise RuntimeError(f"a change could not be put in: {self.mutant.key}")
        if not status:
            return "survived", ""
        return "timeout" if late else "killed", self.tests[self.begun - 1]


class Judge:
    """Runs tests in processes of their own. Lives as long as the session that has collected them."""

    def __init__(self, session: pytest.Session, seconds: dict[str, float], modules: Iterable[str]) -> None:
        self.items = {item.nodeid: item for item in session.items}
        self.seconds = seconds
        self.failed = False
        session.config.pluginmanager.register(self)
        for module in modules:
            compiled(module)
            known_functions(path_of(module))
        gc.collect()
        gc.freeze()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note what fails."""
        self.failed |= report.failed

    def judge(self, given: Iterable[tuple[Mutant, list[str]]], jobs: int) -> Iterator[tuple[Trial, str, str]]:
        """Give each change as soon as it is known what became of it, and by which test."""
        waiting, running = iter(given), {}
        while True:
            while len(running) < jobs and (following := next(waiting, None)) is not None:
                trial = self._start(*following)
                running[trial.pipe] = trial
            if not running:
                return
            until = min(trial.until for trial in running.values())
            ready = select.select(list(running), [], [], max(0.0, until - time.monotonic()))[0]
            ended = [pipe for pipe in ready if not running[pipe].read()]
            late = [pipe for pipe, trial in running.items() if pipe not in ended and trial.until <= time.monotonic()]
            for pipe in (*ended, *late):
                trial = running.pop(pipe)
                yield trial, *trial.end(late=pipe in late)

    def _start(self, mutant: Mutant, tests: list[str]) -> Trial:
        tests = [test for test in tests if test in self.items]
        reading, writing = os.pipe()
        pid = os.fork()
        if not pid:
            code = BROKEN
            try:
                os.setsid()
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                os.close(reading)
                code = self._run(mutant, tests, writing)
            finally:
                os._exit(code)
        os.close(writing)
        return Trial(mutant, tests, self.seconds, pid, reading)

    def _run(self, mutant: Mutant, tests: list[str], pipe: int) -> int:
        put_in(mutant)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        silence(0, 1, 2)
        try:
            for item, following in pairwise([*(self.items[test] for test in tests), None]):
                os.write(pipe, b".")
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
                if self.failed:
                    return 1
        except BaseException:  # noqa: BLE001  # what breaks pytest itself was noticed
            return 1
        return 0
