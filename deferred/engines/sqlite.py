"""Durable work in a SQLite file, on cairnq: the embedded engine.

A job is one row of cairnq's own table, so that its tools show it; the number of attempts
there is without bound, because ours is the policy.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sqlite3
import time
import weakref
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import aiosqlite
import msgspec
from cairnq.context import TaskContext
from cairnq.errors import LostLease, ProtocolVersionMismatch, StoreClosed
from cairnq.models import Task
from cairnq.worker import Worker

from deferred.engines._cairnq import NAME, UNBOUNDED, Store
from deferred.engines._leases import Leases
from deferred.engines._protocol import (
    Capabilities,
    Dead,
    DeadJob,
    Delivery,
    Depth,
    Handle,
    Job,
    RetryIn,
    Verdict,
)
from deferred.engines._support import (
    Home,
    Trouble,
    UnreachableError,
    answer,
    clean,
    foreign,
    logger,
    persist,
    positive,
    raw_connection,
    stubbornly,
)
from deferred.exceptions import EngineError

__all__ = ["SQLiteEngine"]


PRUNED_AT_A_TIME = 1000

IN_THE_WAY = {sqlite3.SQLITE_OK, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY}
"""What opening a file ends with where its path or its permissions are wrong; OK is where there is no folder."""


IN_VAIN: tuple[type[Exception], ...] = (sqlite3.Error, StoreClosed)
"""What a write ends with where others hold the lock for too long, the disk is full, or the file is being closed."""


class _Metadata(msgspec.Struct, omit_defaults=True):
    """What cairnq keeps beside the payload."""

    task: str
    headers: dict[str, str] = {}


class _Ending(msgspec.Struct, omit_defaults=True):
    """What cairnq keeps of a delivery that did not finish its job."""

    message: str = ""
    reason: str = ""
    note: str = ""


class SQLiteEngine:
    """Durable work in a SQLite file: the app's own, or one beside it.

    It lives as long as the supervisor. The file is put into WAL mode and gets cairnq's tables at
    the first use. One machine: SQLite's locks do not reach further.

    Args:
        path: The file; created when it does not exist.
        lease: Seconds that a worker's claim lasts without a sign of life from it; a killed
            worker's jobs are delivered again after that.
        poll: Seconds at most between looks for work. Jobs stored by this process without a
            connection of the caller's are found at once.
        busy_timeout: Seconds to wait for SQLite's write lock before a call fails.
        keep: Seconds that finished jobs stay in the table.

    Raises:
        ValueError: A number is out of its range, or the path names no file.

    Example:
        >>> SQLiteEngine("jobs.db").capabilities.joins
        ('aiosqlite', 'databases', 'sqlalchemy')
    """

    capabilities: Capabilities = Capabilities(durable=True, joins=("aiosqlite", "databases", "sqlalchemy"))

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        lease: float = 30.0,
        poll: float = 0.05,
        busy_timeout: float = 5.0,
        keep: float = 3600.0,
    ) -> None:
        self.path: str = os.fspath(path)
        if not self.path or ":memory:" in self.path or self.path.startswith("file:"):
            message = f"SQLiteEngine needs the path of a file, not {self.path!r}: work in memory is not durable"
            raise ValueError(message)
        self._lease_ms = int(positive(lease, "lease") * 1000)
        self._poll_ms = max(1, int(positive(poll, "poll") * 1000))
        self._busy_ms = int(positive(busy_timeout, "busy_timeout") * 1000)
        self._keep_ms = int(positive(keep, "keep") * 1000)
        self._store: Store | None = None
        self._trouble = Trouble(f"engine sqlite:///{self.path}")
        self._home = Home(f"engine sqlite:///{self.path}", self.close, self._forget)
        self._joined: weakref.WeakSet[aiosqlite.Connection] = weakref.WeakSet()

    @classmethod
    def from_url(cls, url: str) -> SQLiteEngine:
        """Make one of ``sqlite:///relative/path`` or ``sqlite:////absolute/path``."""
        _, _, rest = url.partition("://")
        host, _, path = rest.partition("/")
        if host or not path or "?" in path:
            message = f"an engine's URL is sqlite:///path, or sqlite:////absolute/path, without options; not {url!r}"
            raise ValueError(message)
        return cls(unquote(path))

    # -- its life -----------------------------------------------------------------------------

    async def setup(self) -> None:
        """Open the file, and create cairnq's tables where they are missing."""
        await self._ready()

    async def _ready(self, *, look: bool = True) -> Store:
        if self._home.loop is not asyncio.get_running_loop():
            await self._home.enter()
        if self._store is None:
            # It reads its statements from files.
            store = await asyncio.to_thread(self._open)
            if self._store is None:
                self._store = store
        try:
            if await self._store.enter(look=look):
                logger.warning("engine sqlite:///%s: its file was removed or replaced: it was opened anew", self.path)
        except ProtocolVersionMismatch as error:
            await self.close()
            message = f"{self.path} cannot be used: {error}. It needs the version of cairnq that wrote it"
            raise EngineError(message) from error
        return self._store

    def _open(self) -> Store:
        """Make the store, after a look whether there can be one: what cairnq fails to open it leaves open."""
        try:
            Path(self.path).parent.mkdir(parents=True, exist_ok=True)
            with contextlib.closing(sqlite3.connect(self.path, timeout=0, isolation_level=None)) as connection:
                connection.execute("begin immediate")
                connection.execute("rollback")
        except (OSError, sqlite3.Error) as error:
            code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK) & 0xFF
            if code == sqlite3.SQLITE_NOTADB:
                message = f"{self.path} cannot be used: {error}. It is somebody else's file: name another"
                raise EngineError(message) from error
            if code in IN_THE_WAY:
                message = f"{self.path} cannot be used: {error}. It has to be a file that this process may write"
                raise UnreachableError(message) from error
            # Somebody else is writing, or the disk is full: cairnq waits, or says so itself.
        return Store(self.path, busy_timeout_ms=self._busy_ms)

    def _forget(self) -> None:
        store, self._store = self._store, None
        if store is not None:
            asyncio.get_running_loop().run_in_executor(None, store.leave)

    async def close(self) -> None:
        """Close the file."""
        await self._home.leave()
        store = self._store
        if store is not None:
            if not store.leases:  # who serves opens it again, and has no other
                self._store = None
            await store.close()

    # -- storing --------------------------------------------------------------------------------

    async def enqueue(self, jobs: Sequence[Job], connection: Any = None) -> list[str]:
        """Store the jobs; see `Engine.enqueue`."""
        store = await self._ready(look=connection is None)
        if connection is not None:
            raw = await self._join(connection)
            return [await self._insert_joined(store, raw, job) for job in jobs]
        ids: list[str] = []
        if len(jobs) == 1 and jobs[0].key is None:
            await store._fetch("deferred_insert", _row(jobs[0]))
            ids.append(jobs[0].id)
        else:
            async with store._transaction() as fetch:
                for job in jobs:
                    if job.key is None:
                        await fetch("deferred_insert", _row(job))
                    elif await fetch("deferred_insert_key", _row(job)):
                        await fetch("upsert_key", {"key": job.key, "task_id": job.id})
                    else:
                        ids.append((await fetch("deferred_live", {"key": job.key}))[0]["task_id"])
                        continue
                    ids.append(job.id)
        store.stored.set()
        return ids

    async def _insert_joined(self, store: Store, raw: aiosqlite.Connection, job: Job) -> str:
        """Insert on the caller's connection; the key is looked up by the statement that writes."""
        row = _row(job)

        async def run(name: str, params: dict[str, Any]) -> list[Any]:
            sql = store._sql[name]
            return list(await raw.execute_fetchall(sql, store._bind(sql, params)))

        if job.key is None:
            await run("deferred_insert", row)
        elif await run("deferred_insert_key", row):
            await run("upsert_key", {"key": job.key, "task_id": job.id})
        else:
            return str((await run("deferred_live", {"key": job.key}))[0][0])
        return job.id

    async def _join(self, connection: Any) -> aiosqlite.Connection:
        """Return the aiosqlite connection whose transaction is to be joined, or refuse."""
        raw = await raw_connection(connection)
        if not isinstance(raw, aiosqlite.Connection):
            message = (
                "connection must be one of aiosqlite, or of SQLAlchemy or `databases` on aiosqlite, not a "
                f"{type(raw).__module__}.{type(raw).__qualname__}: the job was not stored. Without a connection it is "
                "stored at once, in a transaction of its own"
            )
            raise EngineError(message)
        try:
            is_open = raw.in_transaction or raw.isolation_level is not None
        except ValueError:  # it is closed
            is_open = False
        if not is_open:
            message = (
                "no transaction is open on that connection, so nothing could be joined and the job was not stored: "
                "open one (`async with connection.transaction():`, or BEGIN), or leave `connection` out"
            )
            raise EngineError(message)
        if raw not in self._joined:
            await self._ready()  # it may be the first on a file that has replaced the other
            files = [row[2] for row in await raw.execute_fetchall("pragma database_list") if row[1] == "main"]
            if not await asyncio.to_thread(_same_file, files[0], self.path):
                message = (
                    f"that connection's database is {files[0] or 'in memory'!r} and this engine's {self.path!r}: the "
                    "job was not stored. A transaction can hold a job only in the file that the engine works on"
                )
                raise EngineError(message)
            self._joined.add(raw)
        return raw

    # -- delivering -----------------------------------------------------------------------------

    async def serve(self, handle: Handle, *, queues: Sequence[str], concurrency: int, stop: asyncio.Event) -> None:
        """Deliver jobs until `stop` is set; see `Engine.serve`."""
        tell = partial(self._trouble.tell, "claiming work")

        async def attempt() -> None:
            store = await self._ready()
            worker = Worker(
                store,
                list(queues),
                concurrency=concurrency,
                lease_ms=self._lease_ms,
                poll_interval_ms=self._poll_ms,
                on_error=lambda error, info: self._trouble.tell(str(info.get("phase", "work")), error),
            )
            leases = Leases(
                self._lease_ms / 1000,
                lambda ids: store.renew(ids, worker.worker_id, self._lease_ms),
                self._trouble.tell,
            )
            store.leases[worker.worker_id] = leases
            worker.register(NAME, partial(self._deliver, store, leases, handle))
            watching = asyncio.create_task(leases.watch())
            tending = asyncio.create_task(self._tend())
            stopper = asyncio.create_task(stop.wait())
            stopper.add_done_callback(lambda _: worker.stop())
            try:
                await worker.run()
            finally:
                for task in (stopper, watching, tending):
                    task.cancel()
                del store.leases[worker.worker_id]

        await persist(attempt, stop, tell)

    async def _tend(self) -> None:
        """Keep the table in order while this process serves; until cancelled."""
        pause = max(1.0, min(self._lease_ms, self._keep_ms / 4) / 1000)
        while True:
            try:
                await (await self._ready())._fetch("deferred_turn_back", {})
                await self.prune()
            except Exception as error:  # noqa: BLE001  # a driver raises what it likes; told, and tried again
                self._trouble.tell("keeping the table in order", error)
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311  # jitter, no secret

    async def prune(self) -> int:
        """Delete jobs that finished more than `keep` seconds ago; return how many."""
        store = await self._ready()
        pruned = 0
        for status in ("succeeded", "canceled"):
            rows = PRUNED_AT_A_TIME
            while rows == PRUNED_AT_A_TIME:
                rows = len(
                    await store.purge(older_than_ms=self._keep_ms, status=status, name=NAME, limit=PRUNED_AT_A_TIME)
                )
                pruned += rows
        return pruned

    async def _deliver(self, store: Store, leases: Leases, handle: Handle, ctx: TaskContext) -> None:
        """Run one delivery, and write down what came of it."""
        self._trouble.over()
        task = ctx._task
        claimed = (task.lease_until_ms or 0) - self._lease_ms
        age = max(0.0, time.time() - claimed / 1000)
        with leases.hold(task.id, asyncio.get_running_loop().time() - age, task.id):
            verdict = await self._run(handle, task)
        try:
            await stubbornly(
                partial(self._settle, store, ctx, verdict), self._lease_ms / 1000, IN_VAIN, self._trouble.tell
            )
        except IN_VAIN as error:
            raise LostLease(task.id) from error  # of any other cairnq would write an ending of its own
        ctx._mark_settled()

    @staticmethod
    async def _settle(store: Store, ctx: TaskContext, verdict: Verdict) -> None:
        if isinstance(verdict, RetryIn):
            ending, delay = _Ending(message=clean(verdict.error), note=verdict.note), round(verdict.delay * 1000)
        elif isinstance(verdict, Dead):
            ending, delay = _Ending(message=clean(verdict.error), reason=verdict.reason), 0
        else:
            await store.complete(task_id=ctx.task_id, worker_id=ctx.worker_id, result=None)
            return
        await store.fail(
            task_id=ctx.task_id,
            worker_id=ctx.worker_id,
            error=msgspec.to_builtins(ending),
            retryable=isinstance(verdict, RetryIn),
            delay_ms=delay,
        )

    async def _run(self, handle: Handle, task: Task) -> Verdict:
        try:
            metadata = msgspec.json.decode(str(task.metadata), type=_Metadata)
        except msgspec.MsgspecError as error:
            return foreign(task.id, error)
        return await answer(
            handle,
            Delivery(
                id=task.id,
                name=metadata.task,
                payload=str(task.payload).encode(),
                headers=metadata.headers,
                queue=task.queue,
                number=task.attempt,
                note=_ending(task.error).note,
                stored_at=task.created_at_ms / 1000,
            ),
            self._trouble.tell,
        )

    # -- dead letters ---------------------------------------------------------------------------

    async def dead(self, *, limit: int = 100, ids: Sequence[str] | None = None) -> list[DeadJob]:
        """List dead letters, the latest first."""
        store = await self._ready()
        rows = await store._fetch("deferred_dead", {"ids": ids, "limit": max(0, limit)})
        return [_dead(row) for row in rows]

    async def requeue(self, ids: Sequence[str]) -> list[str]:
        """Deliver dead letters again."""
        store = await self._ready()
        rows = await store._fetch("deferred_requeue", {"ids": ids})
        store.stored.set()
        return [str(row["id"]) for row in rows]

    async def delete(self, ids: Sequence[str]) -> list[str]:
        """Delete dead letters."""
        store = await self._ready()
        return [str(row["id"]) for row in await store._fetch("deferred_delete", {"ids": ids})]

    async def depth(self, queues: Sequence[str] | None = None) -> Depth:
        """Count the jobs."""
        store = await self._ready()
        counts = {row["status"]: row["number"] for row in await store._fetch("deferred_depth", {"queues": queues})}
        return Depth(counts.get("queued", 0), counts.get("running", 0), counts.get("failed", 0))


def _row(job: Job) -> dict[str, Any]:
    return {
        "id": job.id,
        "queue": job.queue,
        "payload": job.payload.decode(),
        "metadata": msgspec.json.encode(_Metadata(job.name, job.headers)).decode(),
        "max_attempts": UNBOUNDED,
        "delay_ms": round(job.delay * 1000),
        "key": job.key,
    }


def _ending(text: object) -> _Ending:
    """Return what is kept of the last delivery; one that cannot be read is as good as none."""
    try:
        return msgspec.json.decode(str(text), type=_Ending) if text else _Ending()
    except msgspec.MsgspecError:
        return _Ending()


def _dead(row: sqlite3.Row) -> DeadJob:
    try:
        metadata = msgspec.json.decode(row["metadata"], type=_Metadata)
    except msgspec.MsgspecError:
        metadata = _Metadata("")
    ending = _ending(row["error"])
    return DeadJob(
        id=row["id"],
        name=metadata.task,
        payload=row["payload"].encode(),
        headers=metadata.headers,
        queue=row["queue"],
        number=row["attempt"],
        reason=ending.reason,
        error=ending.message,
        stored_at=row["created_at_ms"] / 1000,
        died_at=(row["completed_at_ms"] or time.time() * 1000) / 1000,
    )


def _same_file(one: str, other: str) -> bool:
    try:
        return Path(one).samefile(other)
    except OSError:  # one of them is no file
        return False
