"""The HTTP face: one registration, five ways to run its steps.

The routes differ in their decorator, and in what the article that they come from changes itself:
the concurrent one stores in the background too, and says 202, as nothing is stored yet. The durable
one stores the mail's job in the transaction that stores the runner.
"""

from typing import Final

from litestar import MediaType, Response, get, post
from litestar.di import NamedDependency
from litestar.params import FromQuery

from deferred import DeferredContext, SupervisorClosedError, TaskRejectedError
from deferred.execution import concurrent, deferred, durable, fire_and_forget, sequential
from marathon_app.database import Connection, DatabaseUnavailableError
from marathon_app.health import Health
from marathon_app.mailbox import Mailbox, ReceivedMail, now
from marathon_app.models import Registration
from marathon_app.tasks import CONFIRMATION, INSERT_RETRY, MAIL_RETRY, Tasks

THANKS: Final = "Thanks for registering for our Marathon"
STORE: Final = "INSERT runners"
CONFIRM: Final = "send confirmation e-mail"


async def store_then_confirm(registration: Registration, ctx: DeferredContext, tasks: Tasks) -> str:
    """Store a registration, then confirm it the way the route's decorator says.

    Who was registered before is answered the same, and gets no second mail. Where the mail is not
    accepted, as too much waits already, the runner is forgotten again: the answer is a 503, and
    whoever follows its advice and tries again must not be taken for registered before.
    """
    async with tasks.registrations.turn(registration):
        with ctx.step(STORE):
            stored = await tasks.registrations.insert(registration)
        if stored.new:
            confirming = ctx.with_options(name=CONFIRM, retry=MAIL_RETRY)
            try:
                await confirming.run(tasks.send_confirmation, registration.runner())
            except (TaskRejectedError, SupervisorClosedError):
                await tasks.registrations.remove(registration)
                raise
    return THANKS


@post("/api/marathon-sequential", status_code=200, media_type=MediaType.TEXT)
@sequential
async def register_sequential(
    registration: NamedDependency[Registration],
    ctx: NamedDependency[DeferredContext],
    tasks: NamedDependency[Tasks],
) -> str:
    """Answer when the runner is stored and the mail is sent."""
    return await store_then_confirm(registration, ctx, tasks)


@post("/api/marathon-fire-and-forget", status_code=201, media_type=MediaType.TEXT)
@fire_and_forget
async def register_fire_and_forget(
    registration: NamedDependency[Registration],
    ctx: NamedDependency[DeferredContext],
    tasks: NamedDependency[Tasks],
) -> str:
    """Answer when the runner is stored; the mail was started, and nobody looks after it."""
    return await store_then_confirm(registration, ctx, tasks)


@post("/api/marathon-concurrent", status_code=202, media_type=MediaType.TEXT)
@concurrent
async def register_concurrent(
    registration: NamedDependency[Registration],
    ctx: NamedDependency[DeferredContext],
    tasks: NamedDependency[Tasks],
) -> str:
    """Answer at once; the runner is being stored and the mail is being sent, side by side.

    Whether the runner is new shows too late here: each request sends a mail. They all have the
    same Message-ID.
    """
    storing = ctx.with_options(name=STORE, retry=INSERT_RETRY)
    confirming = ctx.with_options(name=CONFIRM, retry=MAIL_RETRY)
    await storing.run(tasks.store_runner, registration)
    await confirming.run(tasks.send_confirmation, registration.runner())
    return THANKS


@post("/api/marathon-waituntil", status_code=201, media_type=MediaType.TEXT)
@deferred
async def register_waituntil(
    registration: NamedDependency[Registration],
    ctx: NamedDependency[DeferredContext],
    tasks: NamedDependency[Tasks],
) -> str:
    """Answer when the runner is stored; the mail follows, kept alive until it is sent."""
    return await store_then_confirm(registration, ctx, tasks)


@post("/api/marathon-durable", status_code=201, media_type=MediaType.TEXT)
@durable
async def register_durable(
    registration: NamedDependency[Registration],
    ctx: NamedDependency[DeferredContext],
    tasks: NamedDependency[Tasks],
) -> str:
    """Answer when the runner and the mail's job are stored, both or neither; the mail is sent though we die."""

    async def confirm(connection: Connection) -> None:
        await ctx.enqueue(CONFIRMATION, registration.runner(), connection=connection)

    async with tasks.registrations.turn(registration):
        with ctx.step(STORE):
            await tasks.registrations.insert_with(registration, confirm)
    return THANKS


@get("/api/stats")
async def stats(tasks: NamedDependency[Tasks]) -> dict[str, int]:
    """Say how many runners are registered."""
    return {"runners": await tasks.registrations.count()}


@get("/health/live")
async def live() -> dict[str, str]:
    """Answer as long as the process does; also while it drains."""
    return {"status": "live"}


@get("/health/ready")
async def ready(tasks: NamedDependency[Tasks], health: NamedDependency[Health]) -> Response[dict[str, str]]:
    """Say whether new registrations are welcome: the database answers and nothing shuts down.

    Trouble with mail is told and does not make the app unready: registrations are still stored.
    """
    checks = {"database": "ok", "mail": tasks.mailer.trouble or "ok"}
    reasons: list[str] = []
    try:
        await tasks.database.check()
    except DatabaseUnavailableError as error:
        checks["database"] = str(error)
        reasons.append(str(error))
    if health.draining:
        reasons.append("the app is shutting down")
    if reasons:
        return Response({"status": "not ready", "detail": "; ".join(reasons), **checks}, status_code=503)
    return Response({"status": "ready", **checks}, status_code=200)


@get("/dev/outbox")
async def outbox(
    mailbox: NamedDependency[Mailbox], to: FromQuery[str | None] = None, last: FromQuery[int] = 0
) -> Response[list[ReceivedMail]]:
    """List the mails the embedded server received, the oldest first.

    `?to=` narrows to one recipient, `?last=` to so many of the newest.

    `Marathon-Now` tells this clock's time, for whoever compares `received_at` with a clock of their own.
    """
    return Response(mailbox.received(to)[-max(last, 0) :], headers={"Marathon-Now": now()})
