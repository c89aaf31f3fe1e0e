"""A process that sends the stored mails, beside the app: `python -m deferred worker marathon_app.worker:opened`.

It is told of the database and of the mail server by the same settings as the app, which is then
started with `MARATHON_SERVE=no`.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from deferred import Supervisor
from marathon_app.messages import LetterWriter
from marathon_app.restarting import follow_parent
from marathon_app.services import make_engine, make_tasks, open_database
from marathon_app.settings import SettingsError, load_settings
from marathon_app.tasks import Tasks, register_tasks


@asynccontextmanager
async def opened() -> AsyncIterator[Supervisor]:
    """Give a supervisor that knows the app's stored work, and hold open what that needs.

    Raises:
        SettingsError: A setting cannot be used, or says where no mail server is.
    """
    follow_parent()
    settings = load_settings()
    if settings.mail_server is None:
        fault = "is needed: the embedded mailbox is in the app's own process; say smtp://host:port"
        raise SettingsError({"MARATHON_SMTP_URL": fault})
    supervisor = Supervisor(engine=make_engine(settings))
    held: list[Tasks] = []
    register_tasks(supervisor, lambda: held[0])
    async with open_database(settings) as database:
        held.append(make_tasks(settings, database, settings.mail_server, LetterWriter(settings.mail_from)))
        yield supervisor
