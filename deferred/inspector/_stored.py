"""Which stored jobs belong to which recorded requests, in the process that runs them too."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from deferred._events import Outcome
from deferred.inspector._records import Attempt, Ended, Trace

__all__ = ["StoredWork", "fill", "postpone"]

MOST = 10_000


class StoredWork:
    """The jobs that recorded requests have stored. Lives as long as its recorder.

    A delivery runs in a context of its own. Where the request that stored the job is still
    recorded, what happens in that context is shown with the request, and not as one more.
    """

    def __init__(self) -> None:
        self.jobs: OrderedDict[str, tuple[Trace, Ended]] = OrderedDict()
        self.units: dict[Any, Trace] = {}  # of deliveries that are known, to the record of their request

    def note(self, trace: Trace, ended: Ended) -> None:
        """Remember who has stored a job."""
        self.jobs[ended.id] = (trace, ended)
        if len(self.jobs) > MOST:
            self.jobs.popitem(last=False)

    def find(self, task: Any) -> tuple[Trace, Ended] | None:
        """Return the record of the request that has stored this delivery's job, and its row."""
        return None if task._options.redelivery is None else self.jobs.get(task._id)

    def forget(self, trace: Trace) -> None:
        """Forget the jobs of a request that is recorded no longer."""
        for ended in trace.ended or ():
            self.jobs.pop(ended.id, None)


def fill(ended: Ended, task: Any, at: float, outcome: Outcome) -> None:
    """Write the end of a delivery into the row of its job."""
    ended.started, ended.ended, ended.outcome, ended.attempts = task._started, at, outcome, task._attempts
    ended.word = ""


def postpone(ended: Ended, task: Any, at: float, failure: Attempt) -> None:
    """Write a delivery that failed, and is followed by another, into the row of its job."""
    ended.failures = [*(ended.failures or ()), failure]
    ended.error = failure.error
    ended.started, ended.ended, ended.attempts = task._started, at + failure.delay, task._attempts
