"""What the app and a worker of its own both work with, made from the settings."""

import importlib
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from deferred.engines import Engine
from deferred.engines.sqlite import SQLiteEngine
from marathon_app.database import Database, DatabaseUnavailableError
from marathon_app.mail import Mailer
from marathon_app.messages import LetterWriter
from marathon_app.registrations import SCHEMA, Registrations
from marathon_app.settings import MailServer, PostgresServer, Settings
from marathon_app.sqlite import SQLiteDatabase
from marathon_app.tasks import Tasks

logger = logging.getLogger(__name__)

# Nothing here keeps the loop from showing that it lives: that long a mail waits after a kill.
LEASE: Final = 5.0  # seconds
POLL: Final = 1.0  # seconds; PostgreSQL tells of work at once, and this is for when it could not


def make_engine(settings: Settings) -> Engine:
    """Return where stored work is: in the app's own database, so that a row and its job are one transaction."""
    if isinstance(settings.database, PostgresServer):
        engine: Engine = _load("deferred.engines.postgres").PostgresEngine(
            settings.database.url, lease=LEASE, poll=POLL
        )
        return engine
    return SQLiteEngine(settings.database, lease=LEASE)


@asynccontextmanager
async def open_database(settings: Settings) -> AsyncIterator[Database]:
    """Open the database; one that cannot be opened now is tried again by every request."""
    if isinstance(settings.database, PostgresServer):
        database: Database = _load("marathon_app.postgresql").PostgresDatabase(
            settings.database.url, schema=SCHEMA["postgresql"]
        )
    else:
        database = SQLiteDatabase(settings.database, schema=SCHEMA["sqlite"])
    try:
        await database.open()
    except DatabaseUnavailableError as error:
        logger.error("%s; every request tries again", error)  # noqa: TRY400 - no traceback is of use
    try:
        yield database
    finally:
        await database.close()


def make_tasks(settings: Settings, database: Database, server: MailServer, writer: LetterWriter) -> Tasks:
    """Return the steps of a registration, with what they need."""
    delays = settings.demo_delays
    return Tasks(
        database=database,
        registrations=Registrations(database, delay=delays.insert / 1000),
        mailer=Mailer(server, delay=delays.mail / 1000),
        writer=writer,
    )


def outbox_file(settings: Settings) -> Path | None:
    """Return where the embedded mailbox keeps its mails through a kill; None: nowhere."""
    if settings.outbox is None and isinstance(settings.database, Path):
        return settings.database.with_name(f"{settings.database.name}-outbox.jsonl")
    return settings.outbox


def _load(module: str) -> Any:  # noqa: ANN401 - a module
    # Only now, as most start without PostgreSQL, whose drivers take longer to load than all the rest.
    return importlib.import_module(module)
