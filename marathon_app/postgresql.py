"""One PostgreSQL database behind `databases`: a bounded pool, nothing leaked.

`databases` is required and usable if wrapped; what this wrapper mends:

- Cancelled around a transaction, or after a COMMIT that failed, it never gives the connection back,
  and then `disconnect` hangs. Here every transaction runs in a task of its own, which nobody
  cancels, and says BEGIN, COMMIT and ROLLBACK itself.
- Ten requests that each wait for a second connection inside their transaction wait for ever. Here
  reads have connections that no write takes, and a write inside a write is refused.
- A COMMIT of a transaction that had failed inside is a ROLLBACK that reports success. Here it is
  an error.
- Whether a COMMIT was done whose answer got lost, nobody knows. Here PostgreSQL is asked.
"""

import asyncio
import contextlib
import logging
import random
from collections.abc import Iterable
from typing import Any, Final, Literal, Self, TypeVar, cast

import asyncpg as untyped  # type: ignore[import-untyped]  # its documentation has its types
import databases

from marathon_app.database import (
    BUSY_TIMEOUT,
    CLOSE_TIMEOUT,
    MAX_WAITING,
    Connection,
    DatabaseBusyError,
    DatabaseOutcomeUnknownError,
    DatabaseUnavailableError,
    Row,
    Turns,
    Work,
    inside,
    refuse_nested,
)

logger = logging.getLogger(__name__)
logging.getLogger("databases").setLevel(logging.WARNING)  # it tells of every connect

T = TypeVar("T")
asyncpg: Any = untyped

WRITERS: Final = 8  # connections
READERS: Final = 4
CONNECT_TIMEOUT: Final = 5.0  # seconds
COMMAND_TIMEOUT: Final = 10.0  # seconds; what takes longer waits for a lock that somebody has forgotten
TRIES: Final = 5  # of a transaction that PostgreSQL takes back because of another
ASKED: Final = 5.0  # seconds to ask what has become of a COMMIT
SCHEMA_LOCK: Final = 7_264_112  # any number: processes that start at once make the tables one after the other

_CONFLICTS: Final = (asyncpg.SerializationError, asyncpg.DeadlockDetectedError)
_BUSY: Final = (
    TimeoutError,  # of a command: a lock was not free
    asyncpg.QueryCanceledError,
    asyncpg.LockNotAvailableError,
    asyncpg.TooManyConnectionsError,
)
_AWAY: Final = (
    ConnectionError,
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
    asyncpg.InternalClientError,  # what is cut off at the moment at which it begins
    asyncpg.ReadOnlySQLTransactionError,  # another server is the primary by now
    asyncpg.DiskFullError,
)


class _Pooled(untyped.Connection):  # type: ignore[misc]
    """A connection of the pool: one that was cut is closed, and no error of that is left to nobody."""

    __slots__ = ()

    async def close(self, *, timeout: float | None = None) -> None:  # noqa: ASYNC109 - asyncpg's own
        with contextlib.suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError):
            await super().close(timeout=timeout)  # what raises has aborted it


class _UnknownOutcomeError(Exception):
    """The connection was lost while COMMIT was under way."""

    def __init__(self, transaction: str, result: object) -> None:
        super().__init__(transaction)
        self.transaction = transaction
        self.result: Any = result


class PostgresDatabase:
    """The app's database on a server. It lives as long as the app; no connection outlives `close`."""

    dialect: Literal["sqlite", "postgresql"] = "postgresql"

    def __init__(
        self,
        url: str,
        *,
        schema: Iterable[str] = (),
        busy_timeout: float = BUSY_TIMEOUT,
        max_waiting: int = MAX_WAITING,
        command_timeout: float = COMMAND_TIMEOUT,
    ) -> None:
        """Prepare the database; nothing is connected yet.

        Args:
            url: `postgresql://user:password@host/database`, with libpq's options.
            schema: Statements that may be run any number of times, run at the first connection.
            busy_timeout: Seconds to wait for a connection that others have.
            max_waiting: How many writes may wait for one.
            command_timeout: Seconds that a query may take.
        """
        self._schema = tuple(schema)
        self._writing = Turns(WRITERS, patience=busy_timeout, max_waiting=max_waiting)
        self._reading = Turns(READERS, patience=busy_timeout, max_waiting=max_waiting)
        self._opening = asyncio.Lock()
        self._is_ready = False
        # The DSN again, as `databases` leaves out what it does not know, `sslmode` among it.
        self._database = databases.Database(
            url,
            dsn=url,
            min_size=0,
            max_size=WRITERS + READERS,
            timeout=CONNECT_TIMEOUT,
            command_timeout=command_timeout,
            connection_class=_Pooled,
            server_settings={"application_name": "marathon"},
        )

    async def open(self) -> None:
        """Connect and make the tables; see `Database.open`."""
        await self._reading.run(self._ready())

    async def close(self) -> None:
        """Let what has begun end, then close every connection."""
        ended = [await turns.ended(CLOSE_TIMEOUT) for turns in (self._writing, self._reading)]
        self._is_ready = False
        if not self._database.is_connected:
            return
        if not all(ended):
            logger.error("A query did not end within %s s; closing the database", CLOSE_TIMEOUT)
            self._pool.terminate()
        await asyncio.shield(asyncio.create_task(self._database.disconnect()))

    async def write(self, work: Work[T]) -> T:
        """Run `work` in a transaction of its own, several at a time; see `Database.write`."""
        refuse_nested()
        return await self._writing.run(self._transact(work))

    async def fetch_one(self, query: str, values: dict[str, Any] | None = None) -> Row | None:
        """Read one row of what is committed; see `Database.fetch_one`."""
        return await self._reading.run(self._fetch_one(query, values))

    async def check(self, timeout: float = 2.0) -> None:  # noqa: ASYNC109 - one time for several waits
        """See whether the database answers; see `Database.check`."""
        try:
            async with asyncio.timeout(timeout):
                await self.fetch_one("SELECT count(*) FROM pg_database")
        except (TimeoutError, DatabaseBusyError):
            message = f"the database did not answer within {timeout:g} s"
            raise DatabaseUnavailableError(message) from None
        except asyncpg.PostgresError as error:
            message = f"the database answered with {type(error).__name__}"
            raise DatabaseUnavailableError(message) from error

    @property
    def _pool(self) -> Any:  # noqa: ANN401 - asyncpg's, which has no types
        backend: Any = self._database._backend  # noqa: SLF001 - `databases` has no other way
        return backend._pool  # noqa: SLF001 - same

    async def _ready(self) -> None:
        async with self._opening:
            if self._is_ready:
                return
            await self._database.connect()
            try:
                async with _Held(self._database) as held:
                    await self._make_tables(held)
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
                message = f"the database cannot be prepared: {type(error).__name__}"
                raise DatabaseUnavailableError(message) from error
            self._is_ready = True

    async def _make_tables(self, held: "_Held") -> None:
        try:
            await held.raw.execute("BEGIN")
            await held.raw.execute("SELECT pg_advisory_xact_lock($1)", SCHEMA_LOCK)
            for statement in self._schema:
                await held.raw.execute(statement)
            await held.raw.execute("COMMIT")
        except BaseException:
            await held.take_back()
            raise

    async def _fetch_one(self, query: str, values: dict[str, Any] | None) -> Row | None:
        try:
            return await self._try_to_fetch_one(query, values)
        except DatabaseUnavailableError:
            await self._renew()
            return await self._try_to_fetch_one(query, values)

    async def _try_to_fetch_one(self, query: str, values: dict[str, Any] | None) -> Row | None:
        await self._ready()
        async with _Held(self._database) as held:
            try:
                return cast("Row | None", await held.connection.fetch_one(query, values))
            except _BUSY as error:
                raise _busy(error) from error
            except Exception as error:
                if held.is_lost(error):
                    raise _away(error) from error
                raise

    async def _transact(self, work: Work[T]) -> T:
        await self._ready()
        conflict: Exception | None = None
        for attempt in range(TRIES):
            if attempt:
                await asyncio.sleep(random.uniform(0.0, 0.02 * 2**attempt))  # noqa: S311 - jitter, no secret
            try:
                return await self._once(work)
            except _CONFLICTS as error:
                conflict = error
            except _BUSY as error:
                raise _busy(error) from error
            except DatabaseUnavailableError as error:
                if attempt:
                    raise
                await self._renew()
                conflict = error  # it was before the commit: nothing was stored
            except _UnknownOutcomeError as unknown:
                await self._renew()
                if await self._was_committed(unknown):
                    return cast("T", unknown.result)
                conflict = unknown
        message = "others were in the way of the transaction, again and again"
        raise DatabaseBusyError(message) from conflict

    async def _renew(self) -> None:
        """Use no connection any more that was there before: one was lost, perhaps while nobody used it."""
        if self._database.is_connected:
            await self._pool.expire_connections()

    async def _once(self, work: Work[T]) -> T:
        async with _Held(self._database) as held:
            committing = False
            transaction, result = "", None
            try:
                await held.raw.execute("BEGIN")
                transaction = await held.raw.fetchval("SELECT pg_current_xact_id()::text")
                with inside():
                    result = await work(cast("Connection", held.connection))
                committing = True
                said = await held.raw.execute("COMMIT")
            except BaseException as error:
                await held.take_back()
                lost = held.is_lost(error)
                if committing and (lost or isinstance(error, TimeoutError)):
                    raise _UnknownOutcomeError(transaction, result) from error
                if lost:
                    raise _away(error) from error
                raise
            if said != "COMMIT":
                message = "the transaction had failed before it was to be committed: nothing was stored"
                raise RuntimeError(message)
            return result

    async def _was_committed(self, unknown: _UnknownOutcomeError) -> bool:
        """Ask PostgreSQL what became of a transaction whose COMMIT it did not answer."""
        try:
            async with asyncio.timeout(ASKED):
                while True:
                    try:
                        row = await self._fetch_one(
                            "SELECT pg_xact_status(CAST(CAST(:id AS text) AS xid8)) AS status",
                            {"id": unknown.transaction},
                        )
                    except DatabaseUnavailableError:
                        row = None
                    if row is not None and row["status"] != "in progress":
                        return bool(row["status"] == "committed")
                    await asyncio.sleep(0.05)
        except TimeoutError:
            message = "the database went away during the commit, and whether it was done is not known"
            raise DatabaseOutcomeUnknownError(message) from unknown


class _Held:
    """A connection of the pool for one task. It is given back at the end of the block."""

    def __init__(self, database: databases.Database) -> None:
        self.connection = database.connection()

    async def __aenter__(self) -> Self:
        try:
            await self.connection.__aenter__()
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            raise _away(error) from error
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            await self.connection.__aexit__()
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
            # What was to be done is done; the pool has dropped the connection.
            logger.warning("A connection could not be given back: %s", type(error).__name__)

    @property
    def raw(self) -> Any:  # noqa: ANN401 - asyncpg's, which has no types
        return self.connection.raw_connection

    @property
    def is_closed(self) -> bool:
        try:
            return bool(self.raw.is_closed())
        except asyncpg.InterfaceError:
            return True  # it is, and the pool has taken it back at once

    def is_lost(self, error: BaseException) -> bool:
        """Say whether this error means that the connection is no more, or of no use."""
        return isinstance(error, _AWAY) or self.is_closed

    async def take_back(self) -> None:
        """Roll back; a connection on which that is not possible is closed, and the pool makes another."""
        if self.is_closed:
            return
        try:
            if self.raw.is_in_transaction():
                await self.raw.execute("ROLLBACK")
        except Exception as error:  # noqa: BLE001 - whatever it is, the connection is of no more use
            logger.warning("A transaction was not rolled back; its connection is closed: %s", type(error).__name__)
            if not self.is_closed:
                self.raw.terminate()


def _busy(error: BaseException) -> DatabaseBusyError:
    return DatabaseBusyError(f"others have the database's locks ({type(error).__name__})")


def _away(error: BaseException) -> DatabaseUnavailableError:
    return DatabaseUnavailableError(f"the database cannot be used, and nothing was stored ({type(error).__name__})")
