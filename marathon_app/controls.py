"""The switches of the demonstration: what goes wrong with the mail, and the end of the process.

They are there only with the embedded mailbox, and only where the app listens on the loopback
interface. They answer only peers on that interface that call the app by a loopback name (a web
site that points a name of its own here is refused), and change something only by a POST that no
other site has made.
"""

import ipaddress
import logging
import os
import signal
from collections.abc import Awaitable, Callable
from typing import Annotated, Final
from urllib.parse import urlsplit

import msgspec
from litestar import Response, get, post
from litestar.background_tasks import BackgroundTask
from litestar.connection import ASGIConnection
from litestar.datastructures import State
from litestar.exceptions import ClientException, PermissionDeniedException
from litestar.handlers import BaseRouteHandler, HTTPRouteHandler
from litestar.params import FromQuery, JSONBody

from marathon_app.mailbox import Mailbox, Mode
from marathon_app.settings import Settings
from marathon_app.timeline import Run, Timeline

logger = logging.getLogger(__name__)

MAX_IDS: Final = 50  # runs asked for at once

Connection = ASGIConnection[BaseRouteHandler, object, object, State]


class MailOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the mail server is to behave from now on."""

    mode: Mode


class KillOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which runs the last words are to be about."""

    ids: Annotated[list[str], msgspec.Meta(max_length=MAX_IDS)] = []


class Runs(msgspec.Struct, frozen=True):
    """What a process knows of some runs. `process` is another one once it was started again."""

    process: str
    runs: list[Run]


async def die() -> None:
    """End this process as a power cut would: nothing is drained, closed or said any more."""
    os.kill(os.getpid(), signal.SIGKILL)


def are_offered(settings: Settings) -> bool:
    """Say whether an app with these settings has the switches."""
    return settings.mail_server is None and is_loopback(settings.host)


def control_routes(
    settings: Settings, timeline: Timeline, mailbox: Mailbox, *, kill: Callable[[], Awaitable[None]] = die
) -> list[HTTPRouteHandler]:
    """Return the routes of the switches; none where they are not offered.

    Args:
        settings: Where the app listens, and where its mail goes.
        timeline: The watched runs.
        mailbox: The embedded mail server.
        kill: What ends the process.
    """
    if not are_offered(settings):
        return []

    @get("/dev/timeline", guards=[local_only])
    async def times(ids: FromQuery[str] = "") -> Runs:
        """Tell the times of the runs `?ids=one,two`."""
        return Runs(timeline.process, timeline.runs(_names(ids.split(","))))

    @get("/dev/mail-server", guards=[local_only])
    async def mode() -> MailOrder:
        """Say how the mail server behaves."""
        return MailOrder(mailbox.mode)

    @post("/dev/mail-server", status_code=200, guards=[local_only, same_site])
    async def switch(data: JSONBody[MailOrder]) -> MailOrder:
        """Make the mail server fail, dawdle, hang or recover."""
        logger.info("The mail server of the demonstration: %s", data.mode.value)
        mailbox.mode = data.mode
        return data

    @post("/dev/kill", status_code=202, guards=[local_only, same_site])
    async def end(data: JSONBody[KillOrder]) -> Response[Runs]:
        """Tell what is known of the runs, then end the process with SIGKILL."""
        logger.warning("Killed by the page. `make run` starts it again where nothing else does.")
        known = Runs(timeline.process, timeline.runs(_names(data.ids)))
        return Response(known, background=BackgroundTask(kill))

    return [times, mode, switch, end]


async def local_only(connection: Connection, _handler: BaseRouteHandler) -> None:
    """Refuse peers that are not on this machine, and names that are not its own.

    Raises:
        PermissionDeniedException: 403, the peer is elsewhere.
        ClientException: 400, the app was called by a name that is not a loopback one.
    """
    if connection.client is None or not is_loopback(connection.client.host):
        raise PermissionDeniedException(detail="The switches are for this machine only.")
    if not is_loopback(urlsplit(f"//{connection.headers.get('host', '')}").hostname or ""):
        raise ClientException(detail="Call the app by localhost or a loopback address.")


async def same_site(connection: Connection, _handler: BaseRouteHandler) -> None:
    """Refuse what another site's page has made a browser send.

    A browser names the origin of every POST; what names none is no browser.

    Raises:
        PermissionDeniedException: 403, it comes from elsewhere.
    """
    own = f"{connection.url.scheme}://{connection.headers.get('host', '')}"
    origin = connection.headers.get("origin", own)
    if origin != own or connection.headers.get("sec-fetch-site", "same-origin") != "same-origin":
        raise PermissionDeniedException(detail="Only the app's own page may do this.")
    if connection.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise ClientException(detail="Send JSON, with the header Content-Type: application/json.")


def _names(given: list[str]) -> list[str]:
    return [name for name in given if name][:MAX_IDS]


def is_loopback(host: str) -> bool:
    """Say whether a host name or address is this machine's own, reached from nowhere else."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
