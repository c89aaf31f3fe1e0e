"""PgQueuer's manager, kept running though its database comes and goes.

Rules of this file: a manager whose connection for notifications is lost is replaced at once,
and finishes what it runs beside the next; a delivery that was claimed and not begun when the
stop comes is given back uncounted; one whose lease is lost is cancelled, and nothing is written.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from functools import partial

import msgspec
from pgqueuer.core.qm import QueueManager
from pgqueuer.domain.models import Job as Row

from deferred.engines._pgqueuer import LOST, Connection, Driver, Envelope, Pool, Statements, Store, envelope_of
from deferred.engines._protocol import Dead, Delivery, Handle, RetryIn, Verdict
from deferred.engines._support import Trouble, answer, clean, foreign, persist

__all__ = ["Service"]

Open = Callable[[], Awaitable[Connection]]


class Service:
    """One call of `serve`. Lives until it is stopped."""

    def __init__(
        self,
        ready: Callable[[], Awaitable[Pool]],
        listen: Open,
        statements: Callable[[], Statements],
        handle: Handle,
        queues: Sequence[str],
        concurrency: int,
        stop: asyncio.Event,
        *,
        lease: float,
        poll: float,
        trouble: Trouble,
    ) -> None:
        self._ready = ready
        self._listen = listen
        self._statements = statements
        self._handle = handle
        self._queues = queues
        self._concurrency = concurrency
        self._stop = stop
        self._lease = lease
        self._poll = poll
        self._trouble = trouble
        self._slots = asyncio.Semaphore(concurrency)
        self._running: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Serve until the stop, then wait for what runs."""
        try:
            await persist(self._attempt, self._stop, partial(self._trouble.tell, "serving"))
        finally:
            for left in tuple(self._running):
                with contextlib.suppress(*LOST):
                    await left

    async def _attempt(self) -> None:
        """Serve until the stop, or until the connection for notifications is lost."""
        pool = await self._ready()
        listener = await self._listen()
        store = Store(Driver(self._ready, pool, listener), self._statements(), self._lease, self._trouble.tell)
        manager = QueueManager(store)
        store.manager = manager.queue_manager_id

        def lost(_: Connection) -> None:
            manager.shutdown.set()

        listener.add_termination_listener(lost)
        for queue in self._queues:
            manager.entrypoint(queue, accepts_context=False, on_failure="hold")(partial(self._deliver, manager, store))
        running = asyncio.create_task(self._manage(manager, store, listener))
        self._running.add(running)
        running.add_done_callback(self._over)
        over = [asyncio.create_task(event.wait()) for event in (self._stop, manager.shutdown)]
        try:
            await asyncio.wait({running, *over}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            manager.shutdown.set()
            for waiting in over:
                waiting.cancel()
        if self._stop.is_set() or running.done():
            await running
        if not self._stop.is_set():
            message = "the connection for notifications was lost"
            raise ConnectionError(message)

    def _over(self, running: asyncio.Task[None]) -> None:
        """Take note of the end of a manager, which nobody may wait for any more."""
        self._running.discard(running)
        if not running.cancelled() and (error := running.exception()) is not None:
            self._trouble.tell("serving", error)

    async def _manage(self, manager: QueueManager, store: Store, listener: Connection) -> None:
        batch = max(1, min(25, self._concurrency // 2))
        watching = asyncio.create_task(store.leases.watch())
        try:
            await manager.run(
                # Jittered, so that idle workers do not poll in step.
                dequeue_timeout=timedelta(seconds=self._poll * random.uniform(0.75, 1.0)),  # noqa: S311  # no secret
                batch_size=batch,
                max_concurrent_tasks=max(self._concurrency, 2 * batch),
                shutdown_on_listener_failure=True,
                heartbeat_timeout=timedelta(seconds=self._lease),
                log_aggregation_interval=timedelta(0),
            )
        finally:
            watching.cancel()
            listener.terminate()

    async def _deliver(self, manager: QueueManager, store: Store, row: Row) -> None:
        """Run one delivery; what returns unsettled is finished, and PgQueuer deletes it."""
        claim = store.claim(row)
        try:
            envelope = envelope_of(row)
        except msgspec.ValidationError as error:
            await store.settle(row, foreign(row.id, error))
            return
        with store.leases.hold(row.id, claim.since, envelope.id):
            async with self._slots:
                begun = not self._stop.is_set()
                verdict = await self._run(row, envelope, claim.number) if begun else RetryIn(0.0, envelope.note)
        if isinstance(verdict, RetryIn | Dead):
            # Its next delivery may come to this very process before this one has returned.
            manager.job_context.pop(row.id, None)
            await store.settle(row, msgspec.structs.replace(verdict, error=clean(verdict.error)), counted=begun)

    async def _run(self, row: Row, envelope: Envelope, number: int) -> Verdict:
        self._trouble.over()
        return await answer(
            self._handle,
            Delivery(
                id=envelope.id,
                name=envelope.task,
                payload=row.payload or b"",
                headers=envelope.headers,
                queue=row.entrypoint,
                number=number,
                note=envelope.note,
                stored_at=row.created.timestamp(),
                delivered_at=row.updated.timestamp(),
            ),
            self._trouble.tell,
        )
