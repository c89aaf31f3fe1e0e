"""Durable work in PostgreSQL, on PgQueuer: the engine for several machines.

A job is one row of PgQueuer's own table, its entrypoint the queue, so that its tools show
it. Times are the database's: the clocks of workers need not agree.
"""

from __future__ import annotations

import asyncio
import random
import weakref
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, cast

import msgspec
from pgqueuer.adapters.drivers.asyncpg import AsyncpgDriver
from pgqueuer.adapters.persistence.queries import Queries

from deferred.engines._pgqueuer import LOST, Connection, Envelope, Pool, Pooled, Statements, arguments, asyncpg, columns
from deferred.engines._pgservice import Service
from deferred.engines._protocol import Capabilities, DeadJob, Depth, Handle, Job
from deferred.engines._support import Home, Trouble, Turns, positive, printable, raw_connection, stopped_within
from deferred.exceptions import EngineError

__all__ = ["PostgresEngine"]

PRUNED_AT_A_TIME = 10_000
CONFLICTS: tuple[type[Exception], ...] = (asyncpg.SerializationError, asyncpg.DeadlockDetectedError)
"""What PostgreSQL says when it has taken a transaction back because of another."""

TRIES = 5
"""How often it may say so, before it is the caller's to know."""

CUT: tuple[type[Exception], ...] = (
    ConnectionResetError,
    BrokenPipeError,
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
)
"""What is raised where a connection was lost while it was used, or before that and unnoticed."""

_ENDING = 5.0
"""Seconds that a backend has to end when it is told to; 0.05 are between two looks whether it has."""
COMMAND_TIMEOUT = 30.0
"""Seconds: what takes longer than this is a database that is gone, not one that is slow."""


class PostgresEngine:
    """Durable work in PostgreSQL: the app's own database, or another.

    It lives as long as the supervisor. PgQueuer's tables are created at the first use; their
    names are configured as PgQueuer's are (``PGQUEUER_PREFIX``, ``PGQUEUER_SCHEMA``).

    Args:
        dsn: ``postgresql://user:password@host/database``, with libpq's options.
        lease: Seconds without a sign of life after which a worker's jobs are delivered again.
        poll: Seconds at most between looks for work. Usually PostgreSQL tells of it at once.
        connect_timeout: Seconds that connecting may take.
        connections: How many connections at most, one for notifications not counted.
        keep: Seconds that the log of finished jobs is kept.
        create: Whether to create missing tables; without, `setup` says how to.

    Raises:
        ValueError: A number is out of its range.

    Example:
        >>> PostgresEngine("postgresql://localhost/app").capabilities.joins
        ('asyncpg', 'databases', 'sqlalchemy')
    """

    capabilities: Capabilities = Capabilities(durable=True, joins=("asyncpg", "databases", "sqlalchemy"))

    def __init__(
        self,
        dsn: str,
        *,
        lease: float = 30.0,
        poll: float = 5.0,
        connect_timeout: float = 5.0,
        connections: int = 10,
        keep: float = 86_400.0,
        create: bool = True,
    ) -> None:
        scheme, separator, rest = dsn.partition("://")
        if not separator or scheme.partition("+")[0] not in {"postgres", "postgresql"}:
            message = "PostgresEngine needs a URL such as postgresql://user:password@host/database"
            raise ValueError(message)
        if connections < 2:
            message = f"connections must be 2 or more, not {connections!r}: one claims while another settles"
            raise ValueError(message)
        self._dsn = f"postgresql://{rest}"
        self._lease = positive(lease, "lease")
        self._poll = positive(poll, "poll")
        self._connect_timeout = positive(connect_timeout, "connect_timeout")
        self._connections = connections
        self._keep = timedelta(seconds=positive(keep, "keep"))
        self._create = create
        self._pool: Pool | None = None
        self._opening = asyncio.Lock()
        self._checked = False
        self._table: tuple[Any, ...] | None = None
        self._statements: Statements | None = None
        self._joined: weakref.WeakSet[Any] = weakref.WeakSet()
        self._turns = Turns()
        # Neither the user nor the password of the URL is ever shown.
        name = f"engine postgresql://{rest.rpartition('@')[2].partition('?')[0]}"
        self._trouble = Trouble(name)
        self._home = Home(name, self.close, self._forget)

    @classmethod
    def from_url(cls, url: str) -> PostgresEngine:
        """Make one of ``postgresql://...``; a ``+driver`` in the scheme is left out."""
        return cls(url)

    # -- its life -----------------------------------------------------------------------------

    async def setup(self) -> None:
        """Connect, and create PgQueuer's tables where they are missing."""
        await self._ready()

    async def _ready(self) -> Pool:
        if self._home.loop is not asyncio.get_running_loop():
            await self._home.enter()
            self._opening = asyncio.Lock()
        if self._pool is not None and self._checked:
            return self._pool
        async with self._opening:
            if self._pool is None:
                self._pool = await asyncpg.create_pool(
                    self._dsn,
                    min_size=0,
                    max_size=self._connections,
                    timeout=self._connect_timeout,
                    command_timeout=COMMAND_TIMEOUT,
                    connection_class=Pooled,
                )
            if not self._checked:
                pool: Pool = self._pool
                async with pool.acquire(timeout=self._connect_timeout) as connection:
                    await self._check_schema(Queries(AsyncpgDriver(connection)))
                    self._table = await self._identity(connection)
                self._checked = True
        return self._pool

    async def _check_schema(self, queries: Queries) -> None:
        self._statements = Statements(queries)
        async with queries.schema_lock():
            if not await queries.schema_is_installed():
                if not self._create:
                    message = f"the table {self._statements.queue} is missing: create it with `pgq install`"
                    raise EngineError(message)
                await queries.install()
        if (await queries.plan_upgrade()).statements:
            message = (
                f"the table {self._statements.queue} is of an older PgQueuer: bring it up to date with `pgq upgrade`, "
                "once no worker of the older version runs"
            )
            raise EngineError(message)

    async def _identity(self, connection: Connection) -> tuple[Any, ...]:
        """Return what tells this queue from another: the table, and the database that it is in."""
        row = await connection.fetchrow(
            "select oid, current_database(), to_regclass($1)::oid from pg_database where datname = current_database()",
            self._sql.queue,
        )
        return tuple(row)

    @property
    def _sql(self) -> Statements:
        if self._statements is None:
            message = "setup() comes first"
            raise EngineError(message)
        return self._statements

    def _forget(self) -> None:
        self._pool, self._checked = None, False

    async def close(self) -> None:
        """Close every connection."""
        await self._home.leave()
        pool, self._pool = self._pool, None
        self._checked = False
        if pool is not None:
            try:
                async with asyncio.timeout(self._connect_timeout):
                    await pool.close()
            except LOST:
                pool.terminate()  # somebody still holds a connection, or the server is gone

    # -- storing --------------------------------------------------------------------------------

    async def enqueue(self, jobs: Sequence[Job], connection: Any = None) -> list[str]:
        """Store the jobs; see `Engine.enqueue`."""
        pool = await self._ready()
        if connection is not None:
            async with self._turns.of(connection):
                return await self._insert(await self._join(connection), jobs)
        conflicts, cut = 0, False
        before: int | None = None
        while True:
            backend = None
            try:
                async with pool.acquire(timeout=self._connect_timeout) as own:
                    backend = own.get_server_pid()
                    if before is not None:
                        await self._end(own, before)
                    return await self._store(own, jobs, perhaps_there=cut)
            except CONFLICTS:
                conflicts += 1
                if conflicts == TRIES:
                    raise  # it was taken back whole, again and again
            except CUT:
                # Whether it was stored nobody has said. A second cut is the caller's to know of.
                if cut:
                    raise
                cut, before = True, backend
                await pool.expire_connections()

    async def _end(self, connection: Any, backend: int) -> None:
        """End what a connection that was cut is still storing: it would be committed after it was looked for.

        Behind a pooler the number is not that of a backend, and may be another's: only one that is
        storing just now is ended, which stores it anew then.
        """
        storing = [self._sql["insert"], "COMMIT;"]
        until = asyncio.get_running_loop().time() + _ENDING
        while await connection.fetchval(self._sql["end"], backend, storing):
            if asyncio.get_running_loop().time() >= until:
                message = (
                    f"a connection was cut while it stored a job, and PostgreSQL's process {backend} goes on with it "
                    f"after {_ENDING:g} s: whether the job is stored nobody can say yet"
                )
                raise TimeoutError(message)
            await asyncio.sleep(0.05)

    async def _store(self, connection: Any, jobs: Sequence[Job], *, perhaps_there: bool) -> list[str]:
        """Store the jobs in a transaction of their own; what is there from a try before is not stored twice."""
        if len(jobs) == 1 and jobs[0].key is None and not perhaps_there:
            return await self._insert(connection, jobs)
        async with connection.transaction():
            if not perhaps_there:
                return await self._insert(connection, jobs)
            ids = [job.id for job in jobs]
            known = {row["id"] for row in await connection.fetch(self._sql["known"], ids)}
            if not known:  # not stored; or else all done by now, and then they are done once more
                return await self._insert(connection, jobs)
            keyed = [job for job in jobs if job.key is not None and job.id not in known]
            found = dict(zip((job.id for job in keyed), await self._insert(connection, keyed), strict=True))
            return [found.get(job_id, job_id) for job_id in ids]

    async def _insert(self, connection: Any, jobs: Sequence[Job]) -> list[str]:
        ids = [job.id for job in jobs]
        if len(jobs) == 1 and jobs[0].key is None:
            await connection.execute(self._sql["insert"], *arguments(jobs[0]))
            return ids
        queries = Queries(AsyncpgDriver(connection))
        rest = [*range(len(jobs))]
        while rest:
            if all(jobs[index].key is None for index in rest):
                await queries.enqueue(*columns([jobs[index] for index in rest]))
                break
            stored = await queries.enqueue(*columns([jobs[index] for index in rest]), on_conflict="skip")
            skipped = [index for index, found in zip(rest, stored, strict=True) if found is None]
            rest.clear()
            for index in skipped:
                live = await connection.fetchval(self._sql["live"], jobs[index].key)
                if live is None:  # it has finished since: the key is free
                    rest.append(index)
                else:
                    ids[index] = live
        return ids

    async def _join(self, connection: Any) -> Any:
        """Return the asyncpg connection whose transaction is to be joined, or refuse."""
        raw = await raw_connection(connection)
        if not isinstance(raw, asyncpg.Connection | asyncpg.pool.PoolConnectionProxy):
            message = (
                "connection must be one of asyncpg, or of SQLAlchemy or `databases` on asyncpg, not a "
                f"{type(raw).__module__}.{type(raw).__qualname__}: the job was not stored. Without a connection it is "
                "stored at once, in a transaction of its own"
            )
            raise EngineError(message)
        try:
            is_open = bool(raw.is_in_transaction())
        except asyncpg.InterfaceError:  # its pool has it back
            is_open = False
        if not is_open:
            message = (
                "no transaction is open on that connection, so nothing could be joined and the job was not stored: "
                "open one (`async with connection.transaction():`), or leave `connection` out"
            )
            raise EngineError(message)
        own: Any = getattr(raw, "_con", raw)  # inside a pool's proxy
        if own not in self._joined:
            if await self._identity(raw) != self._table:
                message = (
                    "that connection is to another database, or finds another table, than this engine: the job was not "
                    "stored. A transaction can hold a job only in the database that the engine works on"
                )
                raise EngineError(message)
            self._joined.add(own)
        return raw

    # -- delivering -----------------------------------------------------------------------------

    async def serve(self, handle: Handle, *, queues: Sequence[str], concurrency: int, stop: asyncio.Event) -> None:
        """Deliver jobs until `stop` is set; see `Engine.serve`."""

        async def listen() -> Connection:
            return await asyncpg.connect(self._dsn, timeout=self._connect_timeout, command_timeout=COMMAND_TIMEOUT)

        service = Service(
            self._ready,
            listen,
            lambda: self._sql,
            handle,
            queues,
            concurrency,
            stop,
            lease=self._lease,
            poll=self._poll,
            trouble=self._trouble,
        )
        pruning = asyncio.create_task(self._prune_until(stop))
        try:
            await service.run()
        finally:
            pruning.cancel()

    async def _prune_until(self, stop: asyncio.Event) -> None:
        """Delete the log of finished jobs, which PgQueuer keeps for ever."""
        while not await stopped_within(stop, max(60.0, self._keep.total_seconds() / 24) * random.uniform(0.5, 1.0)):  # noqa: S311  # jitter
            try:
                await self.prune()
            except LOST as error:
                self._trouble.tell("deleting the log of finished jobs", error)

    async def prune(self) -> int:
        """Delete the log of jobs that finished more than `keep` seconds ago; return how many rows went."""
        pool = await self._ready()
        pruned = 0
        while True:
            status = await pool.execute(self._sql["prune"], self._keep, PRUNED_AT_A_TIME)
            rows = int(status.rpartition(" ")[2])
            pruned += rows
            if rows < PRUNED_AT_A_TIME:
                return pruned

    # -- dead letters ---------------------------------------------------------------------------

    async def dead(self, *, limit: int = 100, ids: Sequence[str] | None = None) -> list[DeadJob]:
        """List dead letters, the latest first."""
        pool = await self._ready()
        known = None if ids is None else printable(ids)
        return [_dead(row) for row in await pool.fetch(self._sql["dead"], known, max(0, limit))]

    async def requeue(self, ids: Sequence[str]) -> list[str]:
        """Deliver dead letters again."""
        pool = await self._ready()
        taken = 0
        while True:
            try:
                return [row["id"] for row in await pool.fetch(self._sql["requeue"], printable(ids))]
            except asyncpg.UniqueViolationError:  # another has got one of their keys at this moment
                taken += 1
                if taken == TRIES:
                    raise

    async def delete(self, ids: Sequence[str]) -> list[str]:
        """Delete dead letters."""
        pool = await self._ready()
        return [row["id"] for row in await pool.fetch(self._sql["delete"], printable(ids))]

    async def depth(self, queues: Sequence[str] | None = None) -> Depth:
        """Count the jobs."""
        pool = await self._ready()
        known = None if queues is None else printable(queues)
        counts = {row["status"]: row["number"] for row in await pool.fetch(self._sql["depth"], known)}
        return Depth(counts.get("queued", 0), counts.get("picked", 0), counts.get("failed", 0))


def _dead(row: Any) -> DeadJob:
    kept = msgspec.json.decode(row["headers"])["deferred"]
    try:
        envelope = msgspec.convert(kept, Envelope)
    except msgspec.ValidationError:
        known = cast("dict[str, Any]", kept) if isinstance(kept, dict) else {}
        job_id, task, reason, error = (str(known.get(name, "")) for name in ("id", "task", "reason", "error"))
        envelope = Envelope(job_id, task, reason=reason, error=error)
    return DeadJob(
        id=envelope.id,
        name=envelope.task,
        payload=row["payload"] or b"",
        headers=envelope.headers,
        queue=row["entrypoint"],
        number=row["number"],
        reason=envelope.reason,
        error=envelope.error,
        stored_at=row["created"].timestamp(),
        died_at=row["updated"].timestamp(),
    )
