"""The runners' table: who is registered, each address once.

Whether a row was stored is not always known: a database may go away in the middle of a COMMIT. Such an
address counts as new when it is registered again, for as long as this process remembers it: it may be
stored by now, and its confirmation was never begun. So does one that could not be taken back.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final
from weakref import WeakValueDictionary

import msgspec

from marathon_app.batches import Batches
from marathon_app.database import Connection, Database, DatabaseOutcomeUnknownError
from marathon_app.models import Registration

_COLUMNS: Final = """
    first_name TEXT NOT NULL,
    last_name TEXT NOT NULL,
    email TEXT NOT NULL,
    email_key TEXT NOT NULL UNIQUE,
    address TEXT NOT NULL,
    distance TEXT NOT NULL CHECK (distance IN ('10', 'half', 'full')),
"""
SCHEMA: Final = {
    "sqlite": (
        f"""
        CREATE TABLE IF NOT EXISTS runners (
            id INTEGER PRIMARY KEY,
            {_COLUMNS}
            registered_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
        ) STRICT
        """,
    ),
    "postgresql": (
        f"""
        CREATE TABLE IF NOT EXISTS runners (
            id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            {_COLUMNS}
            registered_at TIMESTAMPTZ NOT NULL DEFAULT now()
        )
        """,
    ),
}

# Who comes second finds nothing to do, in this batch or an earlier one: the constraint decides.
# The rows travel as one parameter, so that a batch of any size is one statement. (`WHERE true` tells
# SQLite that the ON after it belongs to the INSERT.)
_INSERT: Final = {
    "sqlite": """
    INSERT INTO runners (first_name, last_name, email, email_key, address, distance)
    SELECT json_extract(value, '$.first_name'), json_extract(value, '$.last_name'), json_extract(value, '$.email'),
        json_extract(value, '$.email_key'), json_extract(value, '$.address'), json_extract(value, '$.distance')
    FROM json_each(:rows)
    WHERE true
    ON CONFLICT (email_key) DO NOTHING
    RETURNING email_key
""",
    "postgresql": """
    INSERT INTO runners (first_name, last_name, email, email_key, address, distance)
    SELECT first_name, last_name, email, email_key, address, distance
    FROM jsonb_to_recordset(CAST(CAST(:rows AS text) AS jsonb)) AS runner (
        first_name text, last_name text, email text, email_key text, address text, distance text
    )
    ON CONFLICT (email_key) DO NOTHING
    RETURNING email_key
""",
}
_REMOVE: Final = "DELETE FROM runners WHERE email_key = :email_key"
_MOST_DOUBTFUL: Final = 10_000  # addresses that are remembered; the oldest are forgotten first
_COUNT: Final = "SELECT count(*) AS runners FROM runners"


class Stored(msgspec.Struct, frozen=True):
    """What became of an insert: `new` is false when the address was registered before."""

    new: bool


class Registrations:
    """The runners in one database. They outlive the app; this object lives as long as it."""

    def __init__(self, database: Database, *, delay: float = 0.0) -> None:
        """Stand before the table.

        Args:
            database: Where it is.
            delay: Seconds that an insert waits first; for the demonstration only.
        """
        self._database = database
        self._delay = delay
        self._sql = _INSERT[database.dialect]
        self._batches = Batches(self._insert_batch)
        self._doubtful: dict[str, None] = {}  # in the order in which they came
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def turn(self, registration: Registration) -> asyncio.Lock:
        """Return what holds an address for one request at a time, to be used by `async with`.

        A registration may be taken back as its confirmation is not accepted. Who registers the same
        address meanwhile has to wait for that: they would be thanked for a row that goes.
        """
        return self._turns.setdefault(registration.email_key, asyncio.Lock())

    async def insert(self, registration: Registration) -> Stored:
        """Store a registration unless its address is registered; committed when this returns.

        Safe to run again with the same registration.

        Raises:
            DatabaseBusyError: Nothing was stored, and trying again may help.
            DatabaseOutcomeUnknownError: Whether it was stored is not known; trying again says that it is new.
            DatabaseUnavailableError: Nothing was stored.
        """
        if self._delay:
            await asyncio.sleep(self._delay)
        try:
            stored = await self._batches.add(registration)
        except DatabaseOutcomeUnknownError:
            self._doubt(registration)
            raise
        return Stored(new=self._was_doubtful(registration) or stored.new)

    async def insert_with(self, registration: Registration, then: Callable[[Connection], Awaitable[object]]) -> Stored:
        """Store a registration and what `then` stores in the same transaction: both, or neither.

        Args:
            registration: Whose address is not registered yet; else nothing is stored at all.
            then: Called with the connection on which the runner was stored.

        Raises:
            DatabaseBusyError: Nothing was stored, and trying again may help.
            DatabaseOutcomeUnknownError: Whether both were stored is not known; trying again does no harm.
            DatabaseUnavailableError: Nothing was stored.
        """
        if self._delay:
            await asyncio.sleep(self._delay)
        rows = msgspec.json.encode([registration]).decode()

        async def work(connection: Connection) -> Stored:
            new = bool(await connection.fetch_all(self._sql, {"rows": rows})) or doubtful
            if new:
                await then(connection)
            return Stored(new=new)

        doubtful = self._was_doubtful(registration)
        try:
            return await self._database.write(work)
        except BaseException:
            if doubtful:
                self._doubt(registration)
            raise

    async def remove(self, registration: Registration) -> None:
        """Take a registration back; nothing happens where there is none.

        Raises:
            DatabaseBusyError: It is still there, and counts as new when it is registered again.
            DatabaseUnavailableError: The same.
        """

        async def work(connection: Connection) -> None:
            await connection.fetch_one(_REMOVE, {"email_key": registration.email_key})

        try:
            await self._database.write(work)
        except BaseException:
            self._doubt(registration)
            raise

    async def count(self) -> int:
        """Return how many runners are registered.

        Raises:
            DatabaseUnavailableError: The database is away.
        """
        row = await self._database.fetch_one(_COUNT)
        return int(row["runners"]) if row is not None else 0

    async def _insert_batch(self, batch: Sequence[Registration]) -> list[Stored]:
        rows = msgspec.json.encode(batch).decode()

        async def work(connection: Connection) -> set[str]:
            return {row["email_key"] for row in await connection.fetch_all(self._sql, {"rows": rows})}

        new = await self._database.write(work)
        stored: list[Stored] = []
        for registration in batch:
            stored.append(Stored(new=registration.email_key in new))
            new.discard(registration.email_key)  # of twins in one batch the first is the new one
        return stored

    def _doubt(self, registration: Registration) -> None:
        if len(self._doubtful) >= _MOST_DOUBTFUL:
            del self._doubtful[next(iter(self._doubtful))]
        self._doubtful[registration.email_key] = None

    def _was_doubtful(self, registration: Registration) -> bool:
        """Say whether an address may be stored without a confirmation; whoever asks first sees to that."""
        return self._doubtful.pop(registration.email_key, 0) is None
