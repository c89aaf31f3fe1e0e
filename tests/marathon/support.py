"""A real mail server that can be told to fail, and sample registrations."""

import asyncio
import contextlib
import sqlite3
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import msgspec
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, Session
from litestar import Litestar

from marathon_app.app import create_app
from marathon_app.models import Registration, parse_registration
from marathon_app.settings import MailServer, PostgresServer, Settings

# A self-signed certificate for localhost, valid for a hundred years. Its key protects nothing.
CERTIFICATE = Path(__file__).parent / "localhost.pem"

ROUTES = {
    "/api/marathon-sequential": 200,
    "/api/marathon-fire-and-forget": 201,
    "/api/marathon-concurrent": 202,
    "/api/marathon-waituntil": 201,
    "/api/marathon-durable": 201,
}
WAITUNTIL = "/api/marathon-waituntil"
THANKS = "Thanks for registering for our Marathon"


def fields(**changes: Any) -> dict[str, Any]:
    """Return the fields of a registration as they are posted, with some of them changed."""
    return {
        "firstName": "Ada",
        "lastName": "Lovelace",
        "email": "ada@example.com",
        "address": "12 St James Square, London",
        "distance": "half",
        **changes,
    }


def runners(settings: Settings) -> list[str]:
    """Return the addresses in the database."""
    return [row[0] for row in select(settings.database, "SELECT email FROM runners")]


def registration(**changes: Any) -> Registration:
    """Return a checked registration, with some of its fields changed."""
    return parse_registration(msgspec.json.encode(fields(**changes)))


def select(database: Path | PostgresServer, query: str) -> list[tuple[Any, ...]]:
    """Return what is in a database, whatever anybody reports."""
    if isinstance(database, Path):
        with contextlib.closing(sqlite3.connect(database)) as connection:
            return connection.execute(query).fetchall()

    async def fetch() -> list[tuple[Any, ...]]:
        connection = await asyncpg.connect(database.url)
        try:
            return [tuple(row) for row in await connection.fetch(query)]
        finally:
            await connection.close()

    with ThreadPoolExecutor(1) as aside:  # this thread may have a loop already
        return aside.submit(asyncio.run, fetch()).result()


class Client(httpx.AsyncClient):
    """An HTTP client that calls an app in the loop it is used in, and knows it."""

    def __init__(self, app: Litestar) -> None:
        super().__init__(transport=httpx.ASGITransport(app), base_url="http://localhost")  # type: ignore[arg-type]
        self.app = app


@contextlib.asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[Client]:
    """Run the app from its start to its drain, in this loop: Litestar's own client has a thread of its own."""
    app = create_app(settings)
    orders: asyncio.Queue[Any] = asyncio.Queue()
    reports: asyncio.Queue[Any] = asyncio.Queue()
    scope: Any = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": {}}
    lifespan = asyncio.create_task(app(scope, orders.get, reports.put))  # type: ignore[arg-type]
    await orders.put({"type": "lifespan.startup"})
    assert await reports.get() == {"type": "lifespan.startup.complete"}
    async with Client(app) as client:
        yield client
    await orders.put({"type": "lifespan.shutdown"})
    await lifespan
    assert await reports.get() == {"type": "lifespan.shutdown.complete"}


class FaultyServer:
    """A real SMTP server on a free port; its attributes say how it fails.

    It lives as long as the `async with` of `smtp()`.
    """

    def __init__(self) -> None:
        self.replies: dict[str, str] = {}  # MAIL, RCPT or DATA: what is answered instead of 250
        self.after_data = ""  # "reset" or "hang": what happens once the mail was taken
        self.kept: list[Envelope] = []
        self.sessions = 0
        self.logins = 0
        self.most_at_once = 0
        self.open: set[_Session] = set()
        self.gate = asyncio.Event()  # DATA is answered once it is set
        self.gate.set()
        self.server = MailServer(host="127.0.0.1", port=0)

    async def handle_MAIL(  # noqa: N802 - aiosmtpd's name
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        """Answer MAIL FROM as `replies` says."""
        envelope.mail_from, envelope.mail_options = address, options
        return self.replies.get("MAIL", "250 OK")

    async def handle_RCPT(  # noqa: N802 - same
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        """Answer RCPT TO as `replies` says."""
        if "RCPT" in self.replies:
            return self.replies["RCPT"]
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802 - same
        """Take the mail, then fail as `replies` and `after_data` say."""
        if "DATA" in self.replies:
            return self.replies["DATA"]
        await self.gate.wait()
        self.kept.append(envelope)
        if self.after_data == "reset":
            server.transport.abort()
        if self.after_data == "hang":
            await asyncio.Event().wait()
        return "250 OK"

    def authenticate(self, server: SMTP, session: Session, envelope: Envelope, mechanism: str, data: Any) -> AuthResult:
        """Let in who knows the password "right", and count the tries."""
        self.logins += 1
        return AuthResult(success=data.password == b"right", handled=False)


class _Session(SMTP):
    def __init__(self, faulty: FaultyServer, **options: Any) -> None:
        super().__init__(faulty, hostname="test.localhost", **options)
        self.faulty = faulty
        self.first: asyncio.BaseTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if self.first is not None:
            return  # the same connection, after STARTTLS
        self.first = transport
        self.faulty.sessions += 1
        self.faulty.open.add(self)
        self.faulty.most_at_once = max(self.faulty.most_at_once, len(self.faulty.open))

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        self.faulty.open.discard(self)

    def end(self) -> "asyncio.Task[None]":
        """Cut the connection and return the task that served it."""
        self.first.abort()
        self._handler_coroutine.cancel()
        return self._handler_coroutine


@contextlib.asynccontextmanager
async def listen(factory: Callable[[], asyncio.BaseProtocol], **options: Any) -> AsyncIterator[int]:
    """Listen on a free port of the loopback interface and give its number."""
    server = await asyncio.get_running_loop().create_server(factory, "127.0.0.1", 0, **options)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


def tls_server() -> ssl.SSLContext:
    """Return what a server needs to show the certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    return context


def tls_client() -> ssl.SSLContext:
    """Return what a client needs to trust the certificate."""
    return ssl.create_default_context(cafile=str(CERTIFICATE))


@contextlib.asynccontextmanager
async def smtp(
    *, security: str = "none", login: tuple[str, str] | None = None, **options: Any
) -> AsyncIterator[FaultyServer]:
    """Run a mail server in this loop.

    Args:
        security: What its address asks of the client.
        login: The user and password of its address.
        **options: For aiosmtpd.
    """
    faulty = FaultyServer()
    implicit = {"ssl": tls_server()} if security == "tls" else {}
    if login is not None:
        options |= {"authenticator": faulty.authenticate, "auth_require_tls": False}
    loop = asyncio.get_running_loop()
    async with listen(lambda: _Session(faulty, loop=loop, **options), **implicit) as port:
        username, password = login or (None, None)
        faulty.server = MailServer(host="127.0.0.1", port=port, security=security, username=username, password=password)
        yield faulty
        handlers = [session.end() for session in faulty.open]
        await asyncio.gather(*handlers, return_exceptions=True)


async def until(condition: Callable[[], Awaitable[bool]] | Callable[[], bool]) -> None:
    """Give other tasks turns until a condition holds; the test's own timeout bounds it."""
    while True:
        held = condition()
        if isinstance(held, bool):
            if held:
                return
        elif await held:
            return
        await asyncio.sleep(0.002)
