"""What an engine is asked to do, and the data that passes.

Policy stays in the core: which function a name means, how often to retry, after how long,
when to give up. An engine stores, delivers, delivers again later, and parks. Rules of this
file: every class is frozen and slotted; times are seconds; an engine never looks into a
payload or a note.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

import msgspec

__all__ = [
    "Capabilities",
    "Dead",
    "DeadJob",
    "Delivery",
    "Depth",
    "Done",
    "Engine",
    "Handle",
    "Job",
    "RetryIn",
    "Verdict",
]

DEFAULT_QUEUE = "deferred"
"""The queue of tasks that name none; a name of our own, since the tables may be shared."""


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """Work to be stored. Lives until an engine has taken it.

    Attributes:
        id: Chosen by the core, different for each job; also its idempotency key.
        name: The task's name, as it was registered.
        payload: The arguments: JSON in UTF-8.
        headers: What travels beside them, such as ``traceparent``.
        queue: Which workers it is for.
        delay: Seconds before it may be delivered, on the store's own clock.
        key: While a job with this key is unfinished, no other is stored.
    """

    id: str
    name: str
    payload: bytes
    headers: dict[str, str] = {}
    queue: str = DEFAULT_QUEUE
    delay: float = 0.0
    key: str | None = None


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """A job handed over to be run. Lives until its verdict.

    Attributes:
        id: The id that the job was stored with; the same on every delivery.
        name: The task's name.
        payload: The arguments, byte for byte.
        headers: What travels beside them.
        queue: The queue it came from.
        number: Which delivery this is, from 1; those that ended with a dead process count.
        note: What the last `RetryIn` said; empty at first.
        stored_at: When it was stored, in seconds since the epoch, on the store's own clock.
        delivered_at: When it was delivered, likewise; 0 where the store's clock is the worker's.
    """

    id: str
    name: str
    payload: bytes
    headers: dict[str, str] = {}
    queue: str = DEFAULT_QUEUE
    number: int = 1
    note: str = ""
    stored_at: float = 0.0
    delivered_at: float = 0.0

    @property
    def now(self) -> float:
        """The time of this delivery, in seconds since the epoch: the same clock whichever worker asks."""
        return self.delivered_at or time.time()


class Done(msgspec.Struct, frozen=True):
    """The job is finished: never deliver it again."""


class RetryIn(msgspec.Struct, frozen=True):
    """Deliver the job again.

    Attributes:
        delay: Seconds until then, at least.
        note: A short text to be given to the next delivery.
        error: What went wrong, for people; empty when nothing did.
    """

    delay: float
    note: str = ""
    error: str = ""


class Dead(msgspec.Struct, frozen=True):
    """Park the job: a dead letter, kept until somebody retries or deletes it.

    Attributes:
        reason: Why, in one word, such as ``"crash_loop"``.
        error: What went wrong, for people.
    """

    reason: str
    error: str = ""


Verdict: TypeAlias = Done | RetryIn | Dead
Handle: TypeAlias = Callable[[Delivery], Awaitable[Verdict]]


class DeadJob(msgspec.Struct, frozen=True, kw_only=True):
    """A dead letter.

    Attributes:
        id: The job's id.
        name: The task's name.
        payload: The arguments, byte for byte.
        headers: What travelled beside them.
        queue: The queue it came from.
        number: How many deliveries there were.
        reason: Why it is dead, in one word.
        error: What went wrong.
        stored_at: When it was stored, in seconds since the epoch.
        died_at: When it was parked, in seconds since the epoch.
    """

    id: str
    name: str
    payload: bytes
    headers: dict[str, str]
    queue: str
    number: int
    reason: str
    error: str
    stored_at: float
    died_at: float


class Depth(msgspec.Struct, frozen=True):
    """How many jobs there are: waiting (also for their time to come), running, dead."""

    waiting: int = 0
    running: int = 0
    dead: int = 0


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine can do; what it cannot is refused by name, never done otherwise.

    Attributes:
        durable: Whether a stored job survives a SIGKILL of every process.
        joins: The drivers whose open transaction `enqueue` can join.
        counts_crashes: Whether `Delivery.number` counts deliveries that ended with their process.
        fenced: Whether a worker that has lost a job can still retry or park it (False), or not (True).
        dedupes: Whether `Job.key` is understood.
    """

    durable: bool
    joins: tuple[str, ...] = ()
    counts_crashes: bool = True
    fenced: bool = True
    dedupes: bool = True


@runtime_checkable
class Engine(Protocol):
    """An existing job system, seen from the core. Lives as long as the supervisor.

    It belongs to one event loop at a time: once that is closed, or the engine is, another may use it.
    Methods may be called at the same time. `deferred.engines.testing` checks an implementation.
    """

    @property
    def capabilities(self) -> Capabilities:
        """What it can do."""
        ...

    async def setup(self) -> None:
        """Connect, and create what is missing in the store; further calls do nothing.

        Raises:
            EngineError: The store cannot be used as it is; the message says what to do.
        """
        ...

    async def enqueue(self, jobs: Sequence[Job], connection: Any = None) -> list[str]:
        """Store all of `jobs`, or none.

        Args:
            jobs: What to store.
            connection: A connection with an open transaction. The jobs are then part of it, and
                exist when it has been committed.

        Returns:
            The ids, in the order of `jobs`; of the unfinished job with the same key where there is one.

        Raises:
            EngineError: That connection cannot be joined.
        """
        ...

    async def serve(self, handle: Handle, *, queues: Sequence[str], concurrency: int, stop: asyncio.Event) -> None:
        """Deliver jobs until `stop` is set and the last verdict is in.

        It outlives the loss of its store: it reconnects, however long that takes. A call
        of `handle` that raises, or is cancelled, leaves its job and its note to be delivered again. Where
        a job is lost to another worker, or may be soon, it cancels its call of `handle`.

        Args:
            handle: Runs one delivery.
            queues: Which queues to take from.
            concurrency: How many deliveries at a time.
            stop: When set, nothing more is taken.
        """
        ...

    async def dead(self, *, limit: int = 100, ids: Sequence[str] | None = None) -> list[DeadJob]:
        """List dead letters, the latest first; only those of `ids` if given."""
        ...

    async def requeue(self, ids: Sequence[str]) -> list[str]:
        """Deliver dead letters again, counted from 1; return the ids of those that were dead."""
        ...

    async def delete(self, ids: Sequence[str]) -> list[str]:
        """Delete dead letters; return the ids of those that were dead."""
        ...

    async def depth(self, queues: Sequence[str] | None = None) -> Depth:
        """Count the jobs, of these queues if given."""
        ...

    async def close(self) -> None:
        """Let go of the store; `setup` connects again."""
        ...
