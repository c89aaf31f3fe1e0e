"""The runners' table: who is registered, each address once."""

import asyncio
from typing import Final

import msgspec

from marathon_app.database import Connection, Database
from marathon_app.models import Registration

SCHEMA: Final = (
    """
    CREATE TABLE IF NOT EXISTS runners (
        id INTEGER PRIMARY KEY,
        first_name TEXT NOT NULL,
        last_name TEXT NOT NULL,
        email TEXT NOT NULL,
        email_key TEXT NOT NULL UNIQUE,
        address TEXT NOT NULL,
        distance TEXT NOT NULL CHECK (distance IN ('10', 'half', 'full')),
        registered_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
    ) STRICT
    """,
)

# Who comes second finds nothing to do, whichever of the two was sent first: the constraint decides.
_INSERT: Final = """
    INSERT INTO runners (first_name, last_name, email, email_key, address, distance)
    VALUES (:first_name, :last_name, :email, :email_key, :address, :distance)
    ON CONFLICT (email_key) DO NOTHING
    RETURNING id
"""
_REMOVE: Final = "DELETE FROM runners WHERE email_key = :email_key"
_COUNT: Final = "SELECT count(*) AS runners FROM runners"


class Stored(msgspec.Struct, frozen=True):
    """What became of an insert: `new` is false when the address was registered before."""

    new: bool


async def insert(database: Database, registration: Registration, *, delay: float = 0.0) -> Stored:
    """Store a registration unless its address is registered; committed when this returns.

    Safe to run again with the same registration.

    Args:
        database: Where to.
        registration: What to store.
        delay: Seconds to wait first; for the demonstration only.

    Raises:
        DatabaseBusyError: Nothing was stored, and trying again may help.
        DatabaseUnavailableError: Nothing was stored.
    """
    if delay:
        await asyncio.sleep(delay)
    values = msgspec.structs.asdict(registration)

    async def work(connection: Connection) -> Stored:
        row = await connection.fetch_one(_INSERT, values)
        return Stored(new=row is not None)

    return await database.write(work)


async def remove(database: Database, registration: Registration) -> None:
    """Take a registration back; nothing happens where there is none.

    Raises:
        DatabaseBusyError: It is still there.
        DatabaseUnavailableError: It is still there.
    """

    async def work(connection: Connection) -> None:
        await connection.fetch_one(_REMOVE, {"email_key": registration.email_key})

    await database.write(work)


async def count(database: Database) -> int:
    """Return how many runners are registered.

    Raises:
        DatabaseUnavailableError: The file cannot be opened.
    """
    row = await database.fetch_one(_COUNT)
    return int(row["runners"]) if row is not None else 0
