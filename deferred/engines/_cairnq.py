"""cairnq's store for SQLite, with statements of ours beside its own.

They read and write its table directly, and use what it keeps private: hence the pinned
version, and the conformance suite, which fails where one of them no longer holds.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import sqlite3
from pathlib import Path
from typing import Any, cast

import aiosqlite
from cairnq.errors import StoreClosed
from cairnq.store import sqlite as cairnq
from cairnq.store.base import check_protocol_version

from deferred.engines._leases import Leases

__all__ = ["NAME", "UNBOUNDED", "Store"]

NAME = "deferred"
UNBOUNDED = 2**31 - 1

_ROW = """
insert into cairnq_tasks (
    id, name, queue, status, payload, metadata, max_attempts, priority, run_at_ms, root_id, created_at_ms, updated_at_ms
)
select :id, 'deferred', :queue, 'queued', :payload, :metadata, :max_attempts, 0, :run_at_ms, :id, :now_ms, :now_ms
"""
_LIVE = """
select task_id from cairnq_task_keys join cairnq_tasks on cairnq_tasks.id = task_id
where key = :key and status in ('queued', 'running')
"""
_STATEMENTS = {
    "deferred_insert": _ROW,
    "deferred_insert_key": f"{_ROW} where not exists ({_LIVE}) returning id",
    "deferred_live": _LIVE,
    "deferred_dead": """
select * from cairnq_tasks
where name = 'deferred' and status = 'failed' and (:ids is null or id in (select value from json_each(:ids)))
order by completed_at_ms desc, id desc limit :limit
""",
    "deferred_requeue": """
update cairnq_tasks
set status = 'queued', error = null, worker_id = null, lease_until_ms = null, run_at_ms = :now_ms,
    cancel_requested_at_ms = null, completed_at_ms = null, attempt = 0, updated_at_ms = :now_ms
where name = 'deferred' and status = 'failed' and id in (select value from json_each(:ids))
returning id
""",
    "deferred_delete": """
delete from cairnq_tasks
where name = 'deferred' and status = 'failed' and id in (select value from json_each(:ids))
returning id
""",
    # What was written by a clock that has been put back since waits no longer than it would have.
    "deferred_turn_back": """
update cairnq_tasks
set run_at_ms = run_at_ms - (updated_at_ms - :now_ms), lease_until_ms = lease_until_ms - (updated_at_ms - :now_ms),
    updated_at_ms = :now_ms
where name = 'deferred' and status in ('queued', 'running') and updated_at_ms > :now_ms + 10000
returning id
""",
    "deferred_depth": """
select status, count(*) as number from cairnq_tasks
where name = 'deferred' and status in ('queued', 'running', 'failed')
  and (:queues is null or queue in (select value from json_each(:queues)))
group by status
""",
}


class Store(cairnq.SQLiteStore):
    """cairnq's store, with our statements, texts left as they are, and a wake-up of our own."""

    _json_is_text = False

    def __init__(self, path: str, *, busy_timeout_ms: int) -> None:
        super().__init__(path, busy_timeout_ms=busy_timeout_ms)
        self._sql.update(_STATEMENTS)
        self._writes.update(dict.fromkeys(_STATEMENTS, True))
        self._writes.update(deferred_dead=False, deferred_depth=False, deferred_live=False)
        self.stored = asyncio.Event()
        self.leases: dict[str, Leases] = {}
        self._file: tuple[int, int] | None = None
        self._entering = asyncio.Lock()

    async def enter(self, *, look: bool) -> bool:
        """Open the file where that has not been done; say whether another one, or none, was at its path by now.

        What would be stored in the one that is gone would be lost: the other one is opened.

        Args:
            look: Whether to look for that, which costs a visit to the connection's thread.
        """
        async with self._entering:
            await self.connect()
            if not look or not await self._is_elsewhere():
                return False
            await self.close()
            await self.connect()
            return True

    async def connect(self) -> None:
        """Open the file, once.

        As cairnq does it, which leaves open what it fails to open, with a thread that the process waits for.
        """
        if self._closing:
            raise StoreClosed
        if self._conn is None:
            async with self._init_lock:
                if self._conn is None:
                    await self._open()
                    check_protocol_version(await self.protocol_version())

    async def _open(self) -> None:
        generation = self._generation
        connection: Any = aiosqlite.connect(self._path, isolation_level=None, check_same_thread=False)
        connection._thread.daemon = True
        opening = asyncio.create_task(_opened(connection))
        try:
            await asyncio.shield(opening)
        except asyncio.CancelledError:  # aiosqlite closes nothing that it opens for somebody who is gone
            opening.add_done_callback(lambda _: connection.stop())
            raise
        try:
            connection.row_factory = aiosqlite.Row
            await connection.execute(f"pragma busy_timeout = {self._busy_timeout_ms}")
            await cairnq._enable_wal(connection)
            await connection.execute("pragma foreign_keys = ON")
            await self._apply_migrations(connection)
            with contextlib.suppress(sqlite3.OperationalError):  # somebody else writes: the next one is soon
                await cairnq._refresh_statistics(connection)
            await connection.execute("pragma busy_timeout = 0")
            file = await _file_of(connection, self._path)
            if generation != self._generation:
                raise StoreClosed  # noqa: TRY301  # to be closed as well
        except BaseException:
            await connection.close()
            raise
        self._file = file
        self._next_stats_refresh_at = asyncio.get_running_loop().time() + cairnq._STATS_REFRESH_INTERVAL_S
        self._conn = connection

    async def _is_elsewhere(self) -> bool:
        connection = self._conn
        if connection is None or self._closing:
            return False
        moved = await _file_of(connection, self._path) != self._file
        return moved and connection is self._conn and not self._closing

    def leave(self) -> None:
        """Close the file in another thread than its own, which may have ended with the event loop; waits for it."""
        connection: Any = self._conn
        self._conn = None
        if connection is not None:
            connection.stop()
            connection._thread.join(1.0)
            if connection._connection is not None:
                connection._connection.close()
                connection._connection = None

    def _bind(self, sql: str, params: dict[str, Any]) -> dict[str, Any]:
        empty = {name: None for name in ("ids", "queues") if name in params and params[name] is None}
        if not empty:
            return super()._bind(sql, params)
        return super()._bind(sql, {**params, **dict.fromkeys(empty, ())}) | empty

    async def heartbeat_batch(self, *, task_ids: list[str], worker_id: str, lease_ms: int = 30_000) -> dict[str, bool]:
        """Renew leases; those who hold them are told."""
        leases = self.leases.get(worker_id)
        if leases is None:
            return await self.renew(task_ids, worker_id, lease_ms)
        return cast("dict[str, bool]", await leases.beat(task_ids))  # what `renew` returns

    async def renew(self, ids: list[str], worker_id: str, lease_ms: int) -> dict[str, bool]:
        """Renew the leases of these jobs; return those that are this worker's, and whether to cancel them."""
        return await super().heartbeat_batch(task_ids=ids, worker_id=worker_id, lease_ms=lease_ms)

    async def claim_wake(self, queues: list[str], timeout_ms: int) -> None:  # noqa: ARG002  # cairnq's signature
        """Wait for a job stored by this process, or a part of the poll, so that workers do not poll in step."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_ms / 1000 * random.uniform(0.5, 1.0)):  # noqa: S311  # no secret
                await self.stored.wait()
        self.stored.clear()


async def _opened(connection: Any) -> None:
    await connection


async def _file_of(connection: Any, path: str) -> tuple[int, int] | None:
    """Return what tells the file at `path` from any other; looked up in the connection's thread, as it may block."""
    found: tuple[int, int] | None = await connection._execute(_identity, path)
    return found


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = Path(path).stat()
    except OSError:  # the folder may be gone too, or be no folder
        return None
    return found.st_dev, found.st_ino
