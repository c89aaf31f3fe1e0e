"""One delivery of stored work: which attempt it is, and what its end means.

Rules of this file: an attempt that ended with its process counts, one that a drain handed
back does not; what has to be remembered from one delivery to the next is a `Note`, a few
bytes that the engine keeps without looking at them.
"""

from __future__ import annotations

import secrets
import time
import traceback
from typing import Any

import msgspec

from deferred._events import Outcome
from deferred._redelivery import Redelivery
from deferred._task import TaskHandle
from deferred.engines._protocol import Dead, Delivery, Done, RetryIn, Verdict

__all__ = ["CRASHES", "SUSPECT", "Note", "error_text", "new_job_id", "read_note", "verdict_of"]

CRASHES = 4
"""How many processes a job may take down before it is a dead letter: it is recovered three times."""

SUSPECT = 2
"""From how many on it is tried alone: two of the four deaths are then nobody else's."""

ABANDONED_FOR = 10.0
"""Seconds that a job is left alone whose task did not end when cancelled: its process ends meanwhile."""

LONGEST_TRACE = 3000
"""Characters of a traceback that are kept; the end of it, where the user's code is."""


class Note(msgspec.Struct, omit_defaults=True, frozen=True):
    """What the next delivery has to know of the earlier ones.

    Attributes:
        settled: How many ended with a verdict; the others ended with their process.
        uncounted: How many of these were no attempts.
        since: When the first attempt began, in seconds since the epoch; 0 before.
        unknown: Since when nobody has known the task's name; 0 when somebody does.
    """

    settled: int = 0
    uncounted: int = 0
    since: float = 0.0
    unknown: float = 0.0

    def after(self, *, counted: bool = True, unknown: float = 0.0) -> str:
        """Return the note for the next delivery, as text."""
        note = Note(
            settled=self.settled + 1,
            uncounted=self.uncounted + (not counted),
            since=self.since,
            unknown=unknown,
        )
        return msgspec.json.encode(note).decode()

    def begun(self, delivery: Delivery) -> Note:
        """Return the note as it is once an attempt begins."""
        if 0.0 < self.since <= delivery.now:  # else there was none, or the clock has been put back
            return self
        return Note(settled=self.settled, uncounted=self.uncounted, since=delivery.now, unknown=self.unknown)

    def crashes(self, delivery: Delivery) -> int:
        """Return how many earlier deliveries ended with their process."""
        return max(0, delivery.number - 1 - self.settled)

    def redelivery(self, delivery: Delivery) -> Redelivery:
        """Return what the task is told of this delivery."""
        return Redelivery(
            key=delivery.id,
            attempts=max(0, delivery.number - 1 - self.uncounted),
            elapsed=max(0.0, delivery.now - self.since),
            headers=delivery.headers,
        )


_NONE = Note()
_reader = msgspec.json.Decoder(Note)


def read_note(text: str) -> Note:
    """Return the note that an engine kept; one that cannot be read is as good as none."""
    try:
        return _reader.decode(text) if text else _NONE
    except msgspec.DecodeError:
        return _NONE


def verdict_of(task: TaskHandle[Any], note: Note, redelivery: Redelivery) -> Verdict:
    """Return what the end of a delivery's task means for its job."""
    outcome = task.outcome
    if outcome is Outcome.SUCCEEDED:
        return Done()
    if outcome is Outcome.POSTPONED:
        return RetryIn(redelivery.delay, note.after(), error_text(task.error))
    if outcome is Outcome.CANCELLED_BY_DRAIN or outcome is Outcome.CANCELLED_AT_DEADLINE:
        return RetryIn(0.0, note.after(counted=False))
    if outcome is Outcome.ABANDONED:
        return RetryIn(ABANDONED_FOR, note.after(counted=False))
    return Dead(outcome.value if outcome is not None else "unknown", error_text(task.error))


def error_text(error: BaseException | None) -> str:
    """Return an error as text: what it says, and where; no value of any variable."""
    if error is None:
        return ""
    name = type(error).__name__
    try:
        said = str(error)
        trace = "".join(traceback.format_exception(error))
    except Exception:  # noqa: BLE001  # an error may refuse to be shown
        return name
    return f"{name}: {said[:500]}\n\n{trace[-LONGEST_TRACE:]}"


def new_job_id() -> str:
    """Return an id that no other job has, in any database: its idempotency key. Later ones sort later."""
    return f"{time.time_ns() // 1_000_000:012x}{secrets.token_hex(10)}"
