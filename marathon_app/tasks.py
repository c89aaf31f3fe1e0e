"""The two steps of a registration, bound to what they work with."""

from collections.abc import Callable
from typing import Final

import msgspec

from deferred import Retry, Supervisor
from marathon_app.database import Database, DatabaseBusyError, DatabaseUnavailableError
from marathon_app.mail import Mailer, MailNotSentError
from marathon_app.messages import LetterWriter
from marathon_app.models import Registration, Runner
from marathon_app.registrations import Registrations, Stored

# A mail server's "later" is rarely over in a second; the drain's 20 seconds bound it all anyway.
MAIL_RETRY: Final = Retry(on=MailNotSentError, attempts=5, wait_initial=0.25, wait_max=5.0)
# It was accepted before it is stored, so a database that restarts must not lose it; again is harmless.
INSERT_RETRY: Final = Retry(
    on=(DatabaseBusyError, DatabaseUnavailableError), attempts=6, wait_initial=0.25, wait_max=5.0
)
# Stored, it has until the next day: a mail server that is down over night loses nobody's confirmation.
STORED_MAIL_RETRY: Final = Retry(
    on=MailNotSentError, attempts=None, wait_initial=1.0, wait_max=3600.0, timeout=86_400.0
)
CONFIRMATION: Final = "send_confirmation"


class Tasks(msgspec.Struct, frozen=True, kw_only=True):
    """The work of one app. It lives as long as its database and its mailer are open."""

    database: Database
    registrations: Registrations
    mailer: Mailer
    writer: LetterWriter

    async def store_runner(self, registration: Registration) -> Stored:
        """Store a registration in its turn; see `Registrations.insert`."""
        async with self.registrations.turn(registration):
            return await self.registrations.insert(registration)

    async def send_confirmation(self, runner: Runner) -> None:
        """Write the confirmation and send it; see `Mailer.send` for what may be raised."""
        await self.mailer.send(self.writer.confirmation(runner))


def register_tasks(supervisor: Supervisor, tasks: Callable[[], Tasks]) -> None:
    """Register what may be stored and run later, by whichever process serves it.

    Args:
        supervisor: Whose engine stores it.
        tasks: Called when one is run; returns what it works with.
    """

    @supervisor.task(CONFIRMATION, retry=STORED_MAIL_RETRY)
    async def send_confirmation(runner: Runner) -> None:
        await tasks().send_confirmation(runner)
