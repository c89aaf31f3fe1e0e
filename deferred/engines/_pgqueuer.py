"""PgQueuer's queries, with statements of ours beside its own, and a driver with a listener of its own.

Rules of this file: only the worker that holds a job retries or parks it (PgQueuer's own
statements do not look); which delivery it is, is read from the log, because a crash leaves
no other trace; what PgQueuer would delete without having finished it is left to be
delivered again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, NamedTuple, TypeAlias

import asyncpg as untyped  # type: ignore[import-untyped]  # pyright: ignore[reportMissingTypeStubs]  # its documentation has its types
import msgspec
from pgqueuer.adapters.drivers.asyncpg import AsyncpgPoolDriver, Relay
from pgqueuer.adapters.persistence.queries import Queries
from pgqueuer.domain.models import Job as Row
from pgqueuer.domain.types import JobId, QueueEntrypoint, QueueManagerId
from pgqueuer.ports.driver import NotifyCallback
from pgqueuer.ports.repository import EntrypointExecutionParameter

from deferred.engines._leases import Leases
from deferred.engines._protocol import Dead, Job, RetryIn
from deferred.engines._support import stubbornly

__all__ = [
    "LOST",
    "Connection",
    "Driver",
    "Envelope",
    "Pool",
    "Pooled",
    "Statements",
    "Store",
    "arguments",
    "asyncpg",
    "columns",
    "envelope_of",
]

asyncpg: Any = untyped
Pool: TypeAlias = Any
Connection: TypeAlias = Any

LOST: tuple[type[Exception], ...] = (
    OSError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
)
"""What asyncpg raises when the database is away, or refuses; the last where it is cut off at the wrong moment."""


class Pooled(untyped.Connection):  # type: ignore[misc]
    """A connection of a pool, whose closing does not fail. Lives until the pool or the server ends it.

    A pool closes those that `expire_connections` was meant for in tasks that nobody waits for: of
    one that was cut, an error would come out of nowhere. It is closed then: asyncpg has aborted it.
    """

    __slots__ = ()

    async def close(self, *, timeout: float | None = None) -> None:
        """Close it, gracefully where it is still there."""
        with contextlib.suppress(*LOST):
            await super().close(timeout=timeout)  # pyright: ignore[reportUnknownMemberType]  # it has no types


CLAIMED = "SELECT * FROM claimed"
"""How PgQueuer's statement that claims ends, but for the order."""


class Envelope(msgspec.Struct, omit_defaults=True):
    """What is kept in a row's headers, under ``deferred``."""

    id: str
    task: str
    headers: dict[str, str] = {}
    note: str = ""
    reason: str = ""
    error: str = ""


class _Ending(msgspec.Struct, omit_defaults=True):
    """What a verdict changes in the envelope."""

    note: str = ""
    reason: str = ""
    error: str = ""


_LOG_SETTLED = """
insert into @log (job_id, status, entrypoint, priority, traceback)
select id, status, entrypoint, priority, $4::jsonb from settled
"""
_CHOSEN = "status = 'failed' and headers ? 'deferred' and headers->'deferred'->>'id' = any($1::text[])"
# Of a claimed row, as the log was before. One that nobody has touched is claimed for the first time.
_NUMBER = """
1 + case when (select created = updated from @queue q where q.id = claimed.id) then 0 else (
    select count(*) filter (where status = 'picked') - count(*) filter (where traceback->>'uncounted' is not null)
    from @log l
    where job_id = claimed.id
        and id > coalesce((select max(id) from @log f where f.job_id = claimed.id and f.status = 'failed'), 0)
) end
"""
_STATEMENTS = {
    "number": "@number",
    # What PgQueuer's own does, for one job without a key, in half the time.
    "insert": """
with stored as (
    insert into @queue (priority, entrypoint, payload, execute_after, headers, status)
    values (0, $1, $2, now() + $3::interval, $4::jsonb, 'queued')
    returning id, status, entrypoint, priority
)
insert into @log (job_id, status, entrypoint, priority) select id, status, entrypoint, priority from stored
""",
    "retry": """
with settled as (
    update @queue set status = 'queued', execute_after = now() + $5::interval, attempts = attempts + 1,
        updated = now(), queue_manager_id = null,
        headers = jsonb_set(headers, '{deferred}', (headers->'deferred') || $3::jsonb)
    where id = $1 and queue_manager_id = $2 and status = 'picked'
    returning id, status, entrypoint, priority
) @log_settled
""",
    "park": """
with settled as (
    update @queue set status = 'failed', updated = now(), queue_manager_id = null,
        headers = jsonb_set(headers, '{deferred}', (headers->'deferred') || $3::jsonb)
    where id = $1 and queue_manager_id = $2 and status = 'picked'
    returning id, status, entrypoint, priority
) @log_settled
""",
    # PgQueuer's own would also renew the lease of another.
    "renew": """
update @queue set heartbeat = now()
where id = any($1::bigint[]) and queue_manager_id = $2 and status = 'picked' returning id
""",
    # PgQueuer's own would also delete what another has by now.
    "finish": """
with finished as (
    delete from @queue where id = any($1::bigint[]) and queue_manager_id = $2 and status = 'picked'
    returning id, entrypoint, priority
)
insert into @log (job_id, status, entrypoint, priority) select id, 'successful', entrypoint, priority from finished
""",
    # The same for rows whose claim is in the log, and counts.
    "numbers": "select id, @number - 1 as number from @queue claimed where id = any($1::bigint[])",
    "known": """
select headers->'deferred'->>'id' as id from @queue where headers->'deferred'->>'id' = any($1::text[])
""",
    # Its own text may be cut short where it is shown.
    "end": """
select count(pg_terminate_backend(pid)) from pg_stat_activity
where pid = $1 and datname = current_database() and usename = session_user and state = 'active' and query <> ''
    and exists (select from unnest($2::text[]) storing where starts_with(storing, query))
""",
    "live": """
select headers->'deferred'->>'id' as id from @queue where dedupe_key = $1 and status in ('queued', 'picked')
""",
    "dead": """
select q.*, (select count(*) filter (where status = 'picked') from @log where job_id = q.id) as number
from @queue q
where status = 'failed' and headers ? 'deferred'
    and ($1::text[] is null or headers->'deferred'->>'id' = any($1::text[]))
order by updated desc, id desc limit $2
""",
    # It has its key again, unless another has it by now, or a later one of these.
    "requeue": """
with chosen as (
    select id, row_number() over (partition by dedupe_key order by id desc) = 1 and not exists (
        select 1 from @queue live where live.dedupe_key = dead.dedupe_key and live.status in ('queued', 'picked')
    ) as is_free
    from @queue dead where @chosen
), settled as (
    update @queue q set status = 'queued', execute_after = now(), updated = now(), attempts = 0,
        dedupe_key = case when is_free then dedupe_key end,
        headers = jsonb_set(headers, '{deferred}', (headers->'deferred') - array['note', 'reason', 'error'])
    from chosen where q.id = chosen.id and status = 'failed'
    returning q.id, status, entrypoint, priority, headers
), logged as (
    insert into @log (job_id, status, entrypoint, priority) select id, status, entrypoint, priority from settled
)
select headers->'deferred'->>'id' as id from settled
""",
    "delete": "delete from @queue where @chosen returning headers->'deferred'->>'id' as id",
    "depth": """
select status::text as status, count(*) as number from @queue
where headers ? 'deferred' and ($1::text[] is null or entrypoint = any($1::text[]))
group by status
""",
    "prune": """
delete from @log where id in (
    select id from @log l
    where created < now() - $1::interval and not exists (select 1 from @queue q where q.id = l.job_id)
    order by created limit $2
)
""",
}


class Statements:
    """Our SQL, with the names that PgQueuer is configured with. Lives as long as the engine."""

    def __init__(self, queries: Queries) -> None:
        names = queries.qbe.qualified
        self.queue = names.queue_table
        parts = {
            "@log_settled": _LOG_SETTLED,
            "@chosen": _CHOSEN,
            "@number": _NUMBER,
            "@log": names.queue_table_log,
            "@queue": names.queue_table,
        }
        self._texts: dict[str, str] = {}
        for name, template in _STATEMENTS.items():
            text = template
            for part, value in parts.items():
                text = text.replace(part, value)
            self._texts[name] = text

    def __getitem__(self, name: str) -> str:
        """Return a statement."""
        return self._texts[name]

    def numbered(self, claim: str) -> str | None:
        """Return PgQueuer's statement that claims, with the number of the delivery beside each row.

        None where it does not end as we know it: another statement asks for the numbers then.
        """
        text = self._texts.get(claim)
        if text is None:
            head, end, tail = claim.rpartition(CLAIMED)
            if not end:
                return None
            parts = (head, "SELECT claimed.*, ", self["number"], " AS number FROM claimed", tail)
            text = self._texts[claim] = "".join(parts)
        return text


class Driver(AsyncpgPoolDriver):
    """The engine's pool for queries, and a connection of its own for notifications. Lives as long as one manager.

    Args:
        ready: Returns the pool, which is another one once the engine was closed and is used again.
        pool: The pool of now.
        listener: The connection for notifications.
    """

    def __init__(self, ready: Callable[[], Awaitable[Pool]], pool: Pool, listener: Connection) -> None:
        super().__init__(pool)
        self._ready = ready
        self._listener = listener
        self._listening = asyncio.Event()

    async def fetch(self, query: str, *args: object) -> list[dict[str, object]]:
        """Run a query; return its rows."""
        self._pool = await self._ready()
        return await super().fetch(query, *args)

    async def execute(self, query: str, *args: object) -> str:
        """Run a statement; return what PostgreSQL says of it."""
        self._pool = await self._ready()
        return await super().execute(query, *args)

    async def add_listener(self, channel: str, callback: NotifyCallback) -> None:
        """Listen on our own connection, whose end we are told of."""
        await self._listener.add_listener(channel, Relay(callback))
        self._listening.set()

    async def notify(self, channel: str, payload: str) -> None:
        """Notify once there is somebody to hear it: PgQueuer asks for an echo before it listens."""
        await self._listening.wait()
        self._pool = await self._ready()
        await super().notify(channel, payload)


class Claim(NamedTuple):
    """What is known of a row besides the row."""

    since: float  # when its claim was sent, on the event loop's clock
    number: int  # which delivery this is


class Store(Queries):
    """PgQueuer's queries for one manager: numbered deliveries, fenced verdicts. Lives as long as it.

    Args:
        driver: The connections.
        statements: Our SQL.
        lease: Seconds that a job stays this manager's without a sign of life; a verdict is written as long.
        tell: Told what keeps something from being written.
    """

    def __init__(
        self, driver: Driver, statements: Statements, lease: float, tell: Callable[[str, BaseException], None]
    ) -> None:
        super().__init__(driver)
        self._statements = statements
        self._patience = lease
        self._tell = tell
        self._settled: dict[int, Row] = {}  # by identity: a job may be here twice
        self._claims: dict[int, Claim] = {}
        self.leases = Leases(lease, self._renew, tell)
        self.manager: QueueManagerId | None = None

    async def dequeue(
        self,
        batch_size: int,
        entrypoints: dict[QueueEntrypoint, EntrypointExecutionParameter],
        queue_manager_id: QueueManagerId,
        global_concurrency_limit: int | None,
        heartbeat_timeout: timedelta,
    ) -> list[Row]:
        """Claim jobs, and learn which deliveries these are."""
        since = asyncio.get_running_loop().time()
        query = self.qbq.build_dequeue_query(
            batch_size=batch_size,
            entrypoints=list(entrypoints),
            concurrency_limits=[entrypoint.concurrency_limit for entrypoint in entrypoints.values()],
            queue_manager_id=queue_manager_id,
            global_concurrency_limit=global_concurrency_limit,
            heartbeat_timeout=heartbeat_timeout,
        )
        numbered = self._statements.numbered(query.sql)
        found = await self.driver.fetch(numbered or query.sql, *query.args)
        numbers = found
        if found and numbered is None:
            numbers = await self.driver.fetch(self._statements["numbers"], [each["id"] for each in found])
        # One that its manager runs is not run again: an own claim of what had run out is a renewal.
        for each in numbers:
            key = int(str(each["id"]))
            if not self.leases.renewed(key, since):
                self._claims[key] = Claim(since, int(str(each["number"])))
        return [Row.model_validate(each) for each in found]

    def claim(self, row: Row) -> Claim:
        """Return what is known of a row that was claimed; once."""
        return self._claims.pop(row.id)

    async def update_heartbeat(self, job_ids: list[JobId]) -> None:
        """Renew leases, and have what is no longer this manager's cancelled."""
        await self.leases.beat(job_ids)

    async def _renew(self, ids: list[JobId]) -> set[int]:
        rows = await self.driver.fetch(self._statements["renew"], ids, self.manager)
        return {int(str(row["id"])) for row in rows}

    async def log_jobs(self, job_status: list[Any]) -> None:
        """Delete the finished; a job that ended in any other way is ours to settle, or its lease ends."""
        finished = [
            row.id
            for row, status, _ in job_status
            if self._settled.pop(id(row), None) is None and status == "successful"
        ]
        if finished:
            await self._stubbornly(lambda: self.driver.execute(self._statements["finish"], finished, self.manager))

    async def settle(self, row: Row, verdict: RetryIn | Dead, *, counted: bool = True) -> None:
        """Retry or park a job, if it is still this manager's."""
        self._settled[id(row)] = row
        trace = msgspec.json.encode({"error": verdict.error} if counted else {"uncounted": True}).decode()
        holder = (row.id, self.manager)
        if isinstance(verdict, RetryIn):
            ending = msgspec.json.encode(_Ending(verdict.note, "", verdict.error)).decode()
            delay = timedelta(seconds=verdict.delay)
            await self._stubbornly(
                lambda: self.driver.execute(self._statements["retry"], *holder, ending, trace, delay)
            )
        else:
            ending = msgspec.json.encode(_Ending("", verdict.reason, verdict.error)).decode()
            await self._stubbornly(lambda: self.driver.execute(self._statements["park"], *holder, ending, trace))

    async def _stubbornly(self, write: Callable[[], Awaitable[object]]) -> None:
        await stubbornly(write, self._patience, LOST, self._tell)


def columns(jobs: list[Job]) -> tuple[list[Any], ...]:
    """Return the jobs as the columns that PgQueuer inserts."""
    return (
        [job.queue for job in jobs],
        [job.payload for job in jobs],
        [0] * len(jobs),
        [timedelta(seconds=job.delay) for job in jobs],
        [job.key for job in jobs],
        [{"deferred": msgspec.to_builtins(Envelope(job.id, job.name, job.headers))} for job in jobs],
    )


def arguments(job: Job) -> tuple[Any, ...]:
    """Return one job as the arguments of our own insert."""
    headers = msgspec.json.encode({"deferred": Envelope(job.id, job.name, job.headers)}).decode()
    return job.queue, job.payload, timedelta(seconds=job.delay), headers


def envelope_of(row: Row) -> Envelope:
    """Return what a row's headers hold; raise msgspec.ValidationError if it is not one of ours."""
    return msgspec.convert((row.headers or {}).get("deferred"), Envelope)
