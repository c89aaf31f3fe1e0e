"""What the app asks of its database, whichever it is, and what may go wrong.

`marathon_app.sqlite` and `marathon_app.postgresql` are the two that there are. Both are on the
`databases` package, which is required and usable if wrapped: its transactions belong to the current
task, and leak their connection when that is cancelled or when a COMMIT fails. So nobody is handed a
transaction here. Who wants one says what is to happen in it; that runs in a task of its own, which
nobody cancels, and ends one way or the other.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final, Literal, Protocol, TypeVar

T = TypeVar("T")

BUSY_TIMEOUT: Final = 5.0  # seconds to wait for a turn, and for locks that others hold
MAX_WAITING: Final = 2_000  # writes; about four seconds of them on an ordinary disk
CLOSE_TIMEOUT: Final = 10.0  # seconds a write that has begun has to end when the app closes

_inside: ContextVar[bool] = ContextVar("inside a write", default=False)


class DatabaseBusyError(RuntimeError):
    """The write was not begun, or was taken back whole, since others were in the way: try again."""


class DatabaseUnavailableError(RuntimeError):
    """The database cannot be opened, went away, or is not the one that was opened."""


class DatabaseOutcomeUnknownError(DatabaseUnavailableError):
    """The database went away during a COMMIT, for longer than it could be asked what became of it."""


class Row(Protocol):
    """One row of a result; values are found by the column's name."""

    def __getitem__(self, column: str, /) -> Any:  # noqa: ANN401 - whatever SQL gives
        """Return the value in a column."""


class Connection(Protocol):
    """What a unit of work may do with the connection that its transaction is open on."""

    async def fetch_one(self, query: str, values: dict[str, Any] | None = None) -> Row | None:
        """Run a query and return its first row."""

    async def fetch_all(self, query: str, values: dict[str, Any] | None = None) -> Sequence[Row]:
        """Run a query and return its rows."""

    @property
    def raw_connection(self) -> Any:  # noqa: ANN401 - aiosqlite's or asyncpg's
        """The driver's connection, for whoever must join the open transaction."""


Work = Callable[[Connection], Awaitable[T]]


class Database(Protocol):
    """The app's database. It lives as long as the app; no connection outlives `close`."""

    @property
    def dialect(self) -> Literal["sqlite", "postgresql"]:
        """Whose SQL it understands."""

    async def open(self) -> None:
        """Connect, and make the tables.

        Raises:
            DatabaseUnavailableError: It cannot be opened; a later write or read tries again.
        """

    async def close(self) -> None:
        """Let a write that has begun end, then close every connection."""

    async def write(self, work: Work[T]) -> T:
        """Run `work` in a transaction of its own.

        It is committed when `work` returns and rolled back when it raises. Cancelled while it
        waits for its turn, nothing happens; cancelled later, the transaction ends all the same.

        Args:
            work: Called with the connection; again where the database took it back whole because
                others were in the way. It must do nothing but queries on that connection.

        Raises:
            DatabaseBusyError: Nothing was written: too many wait, the turn did not come, or others
                have the locks.
            DatabaseUnavailableError: The database is away; the message says what became of the write.
        """

    async def fetch_one(self, query: str, values: dict[str, Any] | None = None) -> Row | None:
        """Read one row of what is committed. It never waits for a write, so a write may wait for it.

        Raises:
            DatabaseUnavailableError: The database is away.
        """

    async def check(self, timeout: float = 2.0) -> None:  # noqa: ASYNC109 - one time for several waits
        """See whether the database answers.

        Args:
            timeout: Seconds it may take.

        Raises:
            DatabaseUnavailableError: It does not; the message says why and names no path, and no host.
        """


class Turns:
    """Who may have one of a few connections now. It lives as long as its database."""

    def __init__(self, places: int, *, patience: float, max_waiting: int = MAX_WAITING) -> None:
        """Let nobody wait yet.

        Args:
            places: How many have a turn at a time.
            patience: Seconds to wait for one.
            max_waiting: How many may wait.
        """
        self._number = places
        self._places = asyncio.Semaphore(places)
        self._patience = patience
        self._max_waiting = max_waiting
        self._waiting = 0
        self._running: set[asyncio.Task[Any]] = set()

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for a turn, then run `work` in a task of its own, which ends though its caller is cancelled.

        Raises:
            DatabaseBusyError: The turn did not come; `work` was not begun.
        """
        try:
            await self._take()
        except BaseException:
            work.close()
            raise
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._over)
        return await asyncio.shield(task)

    async def ended(self, timeout: float) -> bool:  # noqa: ASYNC109 - it returns, and raises nothing
        """Wait for all that have a turn or wait for one, at most `timeout` seconds; say whether they have ended."""
        taken = 0
        try:
            async with asyncio.timeout(timeout):
                while taken < self._number:
                    await self._places.acquire()  # in the order of the queue
                    taken += 1
        except TimeoutError:
            return False
        finally:
            for _ in range(taken):
                self._places.release()
        return True

    async def _take(self) -> None:
        if self._waiting >= self._max_waiting:
            message = f"{self._waiting} writes are waiting already"
            raise DatabaseBusyError(message)
        self._waiting += 1
        try:
            async with asyncio.timeout(self._patience):
                await self._places.acquire()
        except TimeoutError:
            message = f"the database was busy for {self._patience:g} s"
            raise DatabaseBusyError(message) from None
        finally:
            self._waiting -= 1

    def _over(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        self._places.release()


def refuse_nested() -> None:
    """Refuse a write inside a write, which would wait for the turn that it holds itself.

    Raises:
        RuntimeError: This is inside the work of another write.
    """
    if _inside.get():
        message = "a write inside a write would wait for itself: use the connection that the outer one was given"
        raise RuntimeError(message)


@contextmanager
def inside() -> Iterator[None]:
    """Mark what runs here as the work of a write."""
    token = _inside.set(True)
    try:
        yield
    finally:
        _inside.reset(token)
