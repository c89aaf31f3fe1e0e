"""Stored work in memory: for tests, and as the shortest engine there is."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from typing import Any

import msgspec

from deferred.engines._protocol import (
    Capabilities,
    Dead,
    DeadJob,
    Delivery,
    Depth,
    Handle,
    Job,
    RetryIn,
)
from deferred.engines._support import Trouble, answer, clean
from deferred.exceptions import EngineError

__all__ = ["MemoryEngine"]


class _Row(msgspec.Struct, eq=False):
    """A job that is not finished."""

    job: Job
    due: float
    stored_at: float
    number: int = 0
    note: str = ""
    running: bool = False
    dead: Dead | None = None
    died_at: float = 0.0


class MemoryEngine:
    """Jobs in the memory of one process, gone with it: for tests.

    It lives as long as the supervisor, and its jobs as long as it.

    Example:
        >>> import asyncio
        >>> from deferred import Supervisor
        >>> async def main():
        ...     supervisor = Supervisor(engine=MemoryEngine(), serve=False)
        ...     supervisor.task("greet")(greet)
        ...     async with supervisor:
        ...         with supervisor.context() as ctx:
        ...             await ctx.enqueue(greet, "Ada")
        ...     return await supervisor.engine.depth()
        >>> async def greet(name: str): ...
        >>> asyncio.run(main())
        Depth(waiting=1, running=0, dead=0)
    """

    capabilities: Capabilities = Capabilities(durable=False)

    def __init__(self) -> None:
        self._rows: dict[str, _Row] = {}
        self._trouble = Trouble("engine memory://")
        self._changed: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None  # the one that serves

    @classmethod
    def from_url(cls, url: str) -> MemoryEngine:
        """Make one of ``memory://``."""
        if url != "memory://":
            message = f"the URL of the engine in memory is 'memory://', not {url!r}"
            raise ValueError(message)
        return cls()

    async def setup(self) -> None:
        """Do nothing: there is nothing to connect to."""

    async def close(self) -> None:
        """Keep the jobs: the engine may be used again."""

    async def enqueue(self, jobs: Sequence[Job], connection: Any = None) -> list[str]:
        """Store the jobs; see `Engine.enqueue`."""
        if connection is not None:
            message = "the engine in memory has no transaction to join: the job was not stored"
            raise EngineError(message)
        ids: list[str] = []
        for job in jobs:
            known = None if job.key is None else self._live(job.key)
            if known is not None:
                ids.append(known)
            else:
                self._rows[job.id] = _Row(job, _now() + job.delay, time.time())
                ids.append(job.id)
        self._wake()
        return ids

    def _live(self, key: str) -> str | None:
        return next((row.job.id for row in self._rows.values() if row.job.key == key and row.dead is None), None)

    def _wake(self) -> None:
        if self._changed is not None and self._loop is not None and not self._loop.is_closed():
            self._changed.set()

    async def serve(self, handle: Handle, *, queues: Sequence[str], concurrency: int, stop: asyncio.Event) -> None:
        """Deliver jobs until `stop` is set; see `Engine.serve`."""
        self._changed = changed = asyncio.Event()
        if self._loop is not None and self._loop.is_closed():
            for row in self._rows.values():
                row.running = False  # it was, on a loop that is gone
        self._loop = asyncio.get_running_loop()
        stopper = asyncio.create_task(stop.wait())
        stopper.add_done_callback(lambda _: changed.set())
        running: set[asyncio.Task[None]] = set()

        def over(task: asyncio.Task[None]) -> None:
            running.discard(task)
            changed.set()

        try:
            while not stop.is_set():
                changed.clear()
                now = _now()
                waiting = [row for row in self._rows.values() if self._waits(row, queues)]
                for row in [row for row in waiting if row.due <= now + _TICK][: concurrency - len(running)]:
                    row.running = True
                    row.number += 1
                    task = asyncio.create_task(self._deliver(row, handle))
                    running.add(task)
                    task.add_done_callback(over)
                later = [row.due - now for row in waiting if row.due > now + _TICK]
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(later, default=None)):
                        await changed.wait()
        finally:
            stopper.cancel()
            if running:
                await asyncio.wait(running)

    def _waits(self, row: _Row, queues: Sequence[str]) -> bool:
        return row.job.queue in queues and not row.running and row.dead is None

    async def _deliver(self, row: _Row, handle: Handle) -> None:
        job = row.job
        delivery = Delivery(
            id=job.id,
            name=job.name,
            payload=job.payload,
            headers=job.headers,
            queue=job.queue,
            number=row.number,
            note=row.note,
            stored_at=row.stored_at,
        )
        try:
            verdict = await answer(handle, delivery, self._trouble.tell)
        finally:
            row.running = False
        if isinstance(verdict, RetryIn):
            row.due, row.note = _now() + verdict.delay, verdict.note
        elif isinstance(verdict, Dead):
            row.dead, row.died_at = Dead(verdict.reason, clean(verdict.error)), time.time()
        else:
            del self._rows[job.id]

    # -- dead letters ---------------------------------------------------------------------------

    async def dead(self, *, limit: int = 100, ids: Sequence[str] | None = None) -> list[DeadJob]:
        """List dead letters, the latest first."""
        found = [row for row in self._rows.values() if row.dead is not None and (ids is None or row.job.id in ids)]
        return [_dead(row, row.dead or Dead("")) for row in found[::-1][: max(0, limit)]]

    async def requeue(self, ids: Sequence[str]) -> list[str]:
        """Deliver dead letters again."""
        found = self._dead_of(ids)
        for job_id in found:
            row = self._rows[job_id]
            row.dead, row.number, row.note, row.due = None, 0, "", _now()
        self._wake()
        return found

    async def delete(self, ids: Sequence[str]) -> list[str]:
        """Delete dead letters."""
        found = self._dead_of(ids)
        for job_id in found:
            del self._rows[job_id]
        return found

    def _dead_of(self, ids: Sequence[str]) -> list[str]:
        return [job_id for job_id in ids if (row := self._rows.get(job_id)) is not None and row.dead is not None]

    async def depth(self, queues: Sequence[str] | None = None) -> Depth:
        """Count the jobs."""
        rows = [row for row in self._rows.values() if queues is None or row.job.queue in queues]
        dead, running = sum(row.dead is not None for row in rows), sum(row.running for row in rows)
        return Depth(len(rows) - dead - running, running, dead)


_TICK = 1e-6
"""Seconds: who is due within them is due, as a time and a sum of times are not the same float."""


def _now() -> float:
    """Return the event loop's time, which a test may turn as it likes."""
    return asyncio.get_running_loop().time()


def _dead(row: _Row, dead: Dead) -> DeadJob:
    job = row.job
    return DeadJob(
        id=job.id,
        name=job.name,
        payload=job.payload,
        headers=job.headers,
        queue=job.queue,
        number=row.number,
        reason=dead.reason,
        error=dead.error,
        stored_at=row.stored_at,
        died_at=row.died_at,
    )
