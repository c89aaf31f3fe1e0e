"""The wiring: settings in, a Litestar application out."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import cast

from litestar import Litestar
from litestar.datastructures import State
from litestar.di import Provide

from deferred import Supervisor
from deferred.integrations.litestar import DeferredPlugin
from marathon_app import routes
from marathon_app.controls import are_offered, control_routes
from marathon_app.health import Health
from marathon_app.incoming import MAX_BODY, provide_registration
from marathon_app.limits import RegistrationLimits
from marathon_app.mailbox import Mailbox
from marathon_app.messages import LetterWriter
from marathon_app.pages import inspector_routes, page_routes
from marathon_app.responses import EXCEPTION_HANDLERS, add_headers
from marathon_app.services import make_engine, make_tasks, open_database, outbox_file
from marathon_app.settings import MailServer, Settings, load_settings
from marathon_app.tasks import Tasks, register_tasks
from marathon_app.timeline import Timeline


def create_app(settings: Settings | None = None) -> Litestar:
    """Make the application. Nothing is opened before its lifespan begins.

    Args:
        settings: The settings; read from the environment by default.

    Raises:
        SettingsError: The environment has a setting that cannot be used.
    """
    settings = load_settings() if settings is None else settings
    mailbox = Mailbox(file=outbox_file(settings))
    writer = LetterWriter(settings.mail_from)
    state = State({"health": Health(), "limits": RegistrationLimits(settings.rate_limit), "mailbox": mailbox})
    supervisor = Supervisor(engine=make_engine(settings), serve=settings.serve)
    register_tasks(supervisor, lambda: cast("Tasks", state.tasks))
    timeline = Timeline(supervisor)
    handlers = [
        routes.register_sequential,
        routes.register_fire_and_forget,
        routes.register_concurrent,
        routes.register_waituntil,
        routes.register_durable,
        routes.stats,
        routes.live,
        routes.ready,
        *([routes.outbox] if settings.mail_server is None else []),
        *page_routes(settings),
        *inspector_routes(settings, supervisor),
        *control_routes(settings, timeline, mailbox),
    ]
    return Litestar(
        route_handlers=handlers,
        # Opened in this order and closed in reverse; the plugin adds its drain as the last to open,
        # so deferred work still has the database and the mail server.
        lifespan=[_services(settings, mailbox, writer)],
        plugins=[DeferredPlugin(supervisor)],
        dependencies={
            "registration": Provide(provide_registration),
            "tasks": Provide(_provide_tasks, sync_to_thread=False),
            "health": Provide(_provide_health, sync_to_thread=False),
            "mailbox": Provide(_provide_mailbox, sync_to_thread=False),
        },
        state=state,
        exception_handlers=dict(EXCEPTION_HANDLERS),
        before_request=timeline.notice if are_offered(settings) else None,
        before_send=[add_headers],
        request_max_body_size=MAX_BODY,
        # Explicit, as the environment could say otherwise: an error page with a traceback is never served.
        debug=False,
        pdb_on_exception=False,
        logging_config=None,
        openapi_config=None,
    )


def _services(
    settings: Settings, mailbox: Mailbox, writer: LetterWriter
) -> Callable[[Litestar], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def services(app: Litestar) -> AsyncIterator[None]:
        async with (
            open_database(settings) as database,
            _open_mail_server(settings.mail_server, mailbox) as server,
        ):
            app.state.tasks = make_tasks(settings, database, server, writer)
            yield

    return services


@asynccontextmanager
async def _open_mail_server(server: MailServer | None, mailbox: Mailbox) -> AsyncIterator[MailServer]:
    if server is not None:
        yield server
        return
    try:
        yield await mailbox.open()
    finally:
        await mailbox.close()


def _provide_tasks(state: State) -> Tasks:
    return cast("Tasks", state.tasks)


def _provide_health(state: State) -> Health:
    return cast("Health", state.health)


def _provide_mailbox(state: State) -> Mailbox:
    return cast("Mailbox", state.mailbox)


app = create_app()
"""The application as any ASGI server takes it: `uvicorn marathon_app.app:app`."""
