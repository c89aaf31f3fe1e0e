"""One SQLite file behind `databases`: one writer, one reader, nothing leaked.

`databases` is required and usable if wrapped; what this wrapper mends:

- Left alone it opens a connection, and a thread, for every query. Here two connections are held
  open as long as the app runs: one writes, one reads.
- Its transactions are `BEGIN DEFERRED`, belong to the current task, and leak their connection when
  cancelled. Here `write` takes a turn (one writer at a time, so no transaction ever meets
  another), says `BEGIN IMMEDIATE` itself, and runs in a task of its own: whoever waits for it may
  be cancelled at any point, the transaction still ends, one way or the other.
- After a failed COMMIT its later writes report success and are lost. Here a connection that could
  not be rolled back is closed, and the next write opens another.
- Its `?timeout=` becomes part of the file's name. Here the path is a path.

The file is in WAL mode (readers never wait for the writer) with `synchronous=FULL`: what was
answered 201 survives a power cut.
"""

import asyncio
import logging
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any, Final, Literal, TypeVar, cast
from urllib.parse import quote

import aiosqlite
import databases

from marathon_app.database import (
    BUSY_TIMEOUT,
    CLOSE_TIMEOUT,
    MAX_WAITING,
    Connection,
    DatabaseBusyError,
    DatabaseUnavailableError,
    Row,
    Turns,
    Work,
    inside,
    refuse_nested,
)

logger = logging.getLogger(__name__)

T = TypeVar("T")

_WRITER: Final = ("PRAGMA journal_mode=WAL", "PRAGMA synchronous=FULL", "PRAGMA foreign_keys=ON")
_READER: Final = ("PRAGMA query_only=ON",)
_NO_ROOM: Final = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY)  # what the disk says


class SQLiteDatabase:
    """The app's database in a file. It lives as long as the app; no connection outlives `close`."""

    dialect: Literal["sqlite", "postgresql"] = "sqlite"

    def __init__(
        self,
        path: Path,
        *,
        schema: Iterable[str] = (),
        busy_timeout: float = BUSY_TIMEOUT,
        max_waiting: int = MAX_WAITING,
    ) -> None:
        """Prepare the database; nothing is opened yet.

        Args:
            path: The file. It and its folder are made when they are not there.
            schema: Statements that may be run any number of times, run whenever the file is opened.
            busy_timeout: Seconds to wait for a turn, and for other processes' locks.
            max_waiting: How many writes may wait for their turn.
        """
        self.path = path.absolute()
        self._schema = tuple(schema)
        self._turns = Turns(1, patience=busy_timeout, max_waiting=max_waiting)
        self._opening = asyncio.Lock()
        self._writer: databases.core.Connection | None = None
        self._reader: databases.core.Connection | None = None
        self._inode = 0
        self._database = databases.Database(f"sqlite:///{quote(str(self.path))}", timeout=busy_timeout)

    async def open(self) -> None:
        """Open both connections and make the tables.

        Raises:
            DatabaseUnavailableError: The file cannot be opened; a later write or read tries again.
        """
        await self._connections()

    async def close(self) -> None:
        """Let a write that has begun end, then close both connections."""
        if not await self._turns.ended(CLOSE_TIMEOUT):
            logger.error("A write did not end within %s s; closing the database", CLOSE_TIMEOUT)
        await self._disconnect()

    async def _disconnect(self) -> None:
        async with self._opening:  # whoever was opening them may be gone, that goes on
            held = (self._reader, self._writer)
            self._writer = self._reader = None
        await asyncio.gather(*(_release(connection) for connection in held if connection is not None))

    async def write(self, work: Work[T]) -> T:
        """Run `work` in a transaction of its own, the only one at its time; see `Database.write`."""
        refuse_nested()
        return await self._turns.run(self._transact(work))

    async def fetch_one(self, query: str, values: dict[str, Any] | None = None) -> Row | None:
        """Read one row of what is committed.

        Raises:
            DatabaseUnavailableError: The file cannot be opened.
        """
        _, reader = await self._connections()
        return cast("Row | None", await reader.fetch_one(query, values))

    async def check(self, timeout: float = 2.0) -> None:  # noqa: ASYNC109 - one time for two waits
        """See whether the database answers.

        Args:
            timeout: Seconds it may take.

        Raises:
            DatabaseUnavailableError: It does not; the message says why and names no path.
        """
        try:
            async with asyncio.timeout(timeout):
                await self._connections()
                if await asyncio.to_thread(_inode, self.path) != self._inode:
                    message = "the database file was removed or replaced while the app was running"
                    raise DatabaseUnavailableError(message)
                await self.fetch_one("SELECT count(*) FROM sqlite_schema")
        except TimeoutError:
            message = f"the database did not answer within {timeout:g} s"
            raise DatabaseUnavailableError(message) from None
        except sqlite3.Error as error:
            message = f"the database answered with {type(error).__name__}"
            raise DatabaseUnavailableError(message) from error

    async def _transact(self, work: Work[T]) -> T:
        if self._writer is not None and await asyncio.to_thread(_inode, self.path) != self._inode:
            logger.error("The database file was removed or replaced while the app was running; it is opened anew")
            await self._disconnect()  # what is written to the file that is gone is lost
        writer, _ = await self._connections()
        raw = cast("aiosqlite.Connection", writer.raw_connection)
        try:
            await raw.execute_fetchall("BEGIN IMMEDIATE")
            with inside():
                result = await work(cast("Connection", writer))
            await raw.execute_fetchall("COMMIT")
        except BaseException as error:
            await self._take_back(writer)
            if _is_busy(error):
                message = "another process holds the database's lock"
                raise DatabaseBusyError(message) from error
            if _code(error) in _NO_ROOM:
                message = f"nothing was stored: {error}"
                raise DatabaseUnavailableError(message) from error
            raise
        return result

    async def _take_back(self, connection: databases.core.Connection) -> None:
        raw = cast("aiosqlite.Connection", connection.raw_connection)
        try:
            if raw.in_transaction:
                await raw.execute_fetchall("ROLLBACK")
        except Exception:
            logger.exception("A transaction could not be rolled back; its connection is closed")
            self._writer = None
            await _release(connection)

    async def _connections(self) -> tuple[databases.core.Connection, databases.core.Connection]:
        """Return the writer and the reader, opened first where they are not open."""
        if self._writer is not None and self._reader is not None:
            return self._writer, self._reader
        # Cancelled, it leaves what is being opened to the next one.
        return await asyncio.shield(asyncio.create_task(self._connect()))

    async def _connect(self) -> tuple[databases.core.Connection, databases.core.Connection]:
        async with self._opening:
            try:
                if self._writer is None:
                    await asyncio.to_thread(_make_folder, self.path.parent)
                    self._writer = await asyncio.create_task(self._acquire((*_WRITER, *self._schema)))
                    self._inode = await asyncio.to_thread(_inode, self.path)
                if self._reader is None:
                    self._reader = await asyncio.create_task(self._acquire(_READER))
            except (sqlite3.Error, OSError) as error:
                raise _unavailable(error) from error
            return self._writer, self._reader

    async def _acquire(self, statements: Iterable[str]) -> databases.core.Connection:
        """Connect: in a task of its own, which `databases` takes for the owner, so that it hands it to no other."""
        connection = self._database.connection()
        await connection.__aenter__()
        try:
            for statement in statements:
                await connection.raw_connection.execute_fetchall(statement)
        except BaseException:
            await _release(connection)
            raise
        return connection


def probe(path: Path) -> None:
    """See, without waiting, whether a file can be this app's database; it blocks for a moment.

    A file that another process has locked can.

    Raises:
        DatabaseUnavailableError: It cannot; the message says why and names no path.
    """
    try:
        _make_folder(path.absolute().parent)
        with closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
    except (sqlite3.Error, OSError) as error:
        if not _is_busy(error):
            raise _unavailable(error) from error


async def _release(connection: databases.core.Connection) -> None:
    """Close a connection, even if whoever waits for that is cancelled."""
    await asyncio.shield(asyncio.create_task(connection.__aexit__()))


def _unavailable(error: sqlite3.Error | OSError) -> DatabaseUnavailableError:
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return DatabaseUnavailableError(f"the database cannot be opened: {reason}")


def _make_folder(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def _inode(path: Path) -> int:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return 0


def _is_busy(error: BaseException) -> bool:
    return _code(error) in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}


def _code(error: BaseException) -> int:
    code: int = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the low byte is the primary code
    return code if isinstance(error, sqlite3.OperationalError) else sqlite3.SQLITE_OK
