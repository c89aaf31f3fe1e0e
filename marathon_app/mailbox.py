"""The embedded mail server: takes every mail, delivers none, shows what came.

It listens on loopback, in the app's own loop, and keeps a bounded number of mails: the oldest make
room. A mail that it has taken it shows again when the app was killed and is started again; an app
that ends in order takes them along. It is there when no `MARATHON_SMTP_URL` is given.
"""

import asyncio
import enum
import logging
import os
import socket
from collections import deque
from datetime import UTC, datetime
from email import policy
from email.parser import BytesHeaderParser
from pathlib import Path
from typing import Final

import msgspec
from aiosmtpd.smtp import SMTP, Envelope, Session

from marathon_app.settings import MailServer

logger = logging.getLogger(__name__)

HOST: Final = "127.0.0.1"
CAPACITY: Final = 20_000  # mails; at about 600 bytes each some 12 MB when full
CLOSE_TIMEOUT: Final = 2.0  # seconds for sessions to notice that they are closed
DAWDLE: Final = 2.0  # seconds a slow server takes for a recipient

# It logs every command at INFO, addresses included: too much for a server made to be looked at.
logging.getLogger("mail.log").setLevel(logging.WARNING)


class Mode(enum.StrEnum):
    """How the server behaves; all but the first are for the demonstration."""

    OK = "ok"
    REFUSE = "refuse"  # for good: 550
    LATER = "later"  # for now: 451
    SLOW = "slow"
    HANG = "hang"  # no answer until it is switched to another mode


_REPLIES: Final = {
    Mode.REFUSE: "550 5.1.1 No such user here",
    Mode.LATER: "451 4.3.0 Not now, try again later",
}


class ReceivedMail(msgspec.Struct, frozen=True):
    """One mail that came, without its body."""

    to: str
    subject: str
    message_id: str
    received_at: str  # ISO 8601, UTC, microseconds


def now() -> str:
    """Return the time: ISO 8601, UTC, microseconds."""
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


_LINE: Final = msgspec.json.Decoder(ReceivedMail)


class Mailbox:
    """An SMTP server and what it received. It listens from `open` to `close`."""

    def __init__(self, capacity: int = CAPACITY, *, file: Path | None = None) -> None:
        """Prepare an empty mailbox.

        Args:
            capacity: How many mails it keeps.
            file: Where they are kept for the case that the app is killed; None: nowhere.
        """
        self.listener: socket.socket | None = None  # set before `open`: the socket to listen on
        self._received: deque[ReceivedMail] = deque(maxlen=capacity)
        self._kept = _File(file, capacity)
        self._headers = BytesHeaderParser(policy=policy.SMTPUTF8)
        self._sessions: set[_Session] = set()
        self._server: asyncio.Server | None = None
        self._mode = Mode.OK
        self._switched = asyncio.Event()  # set, and replaced, whenever the mode changes

    @property
    def mode(self) -> Mode:
        """How the server behaves."""
        return self._mode

    @mode.setter
    def mode(self, mode: Mode) -> None:
        self._mode = mode
        self._switched.set()
        self._switched = asyncio.Event()

    async def open(self) -> MailServer:
        """Listen, on a free port of the loopback interface where no socket was given, and say where that is."""
        loop = asyncio.get_running_loop()
        self._received.extend(await asyncio.to_thread(self._kept.read))
        listener = self.listener or socket.create_server((HOST, 0))
        self._server = await loop.create_server(lambda: _Session(self, self._sessions, loop), sock=listener)
        port: int = self._server.sockets[0].getsockname()[1]
        return MailServer(host=HOST, port=port)

    async def close(self) -> None:
        """Stop listening and end every session. What was received stays readable."""
        if self._server is None:
            return
        self._server.close()
        sessions = list(self._sessions)
        for session in sessions:
            session.abort()
        async with asyncio.timeout(CLOSE_TIMEOUT):
            await asyncio.gather(*(session.ended.wait() for session in sessions))
            await self._server.wait_closed()
        self._server = None
        self._kept.delete()

    def received(self, to: str | None = None) -> list[ReceivedMail]:
        """Return what was received, the oldest first.

        Args:
            to: Only mails to this recipient, letter case aside.
        """
        if to is None:
            return list(self._received)
        wanted = to.casefold()
        return [mail for mail in self._received if mail.to.casefold() == wanted]

    async def handle_RCPT(  # noqa: N802 - aiosmtpd's name
        self, _server: SMTP, _session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        """Take a recipient, or do what the mode says; aiosmtpd calls this for each."""
        if self._mode is Mode.SLOW:
            await asyncio.sleep(DAWDLE)
        while self._mode is Mode.HANG:
            await self._switched.wait()
        if self._mode in _REPLIES:
            return _REPLIES[self._mode]
        envelope.rcpt_tos.append(address)
        envelope.rcpt_options.extend(options)
        return "250 OK"

    async def handle_DATA(self, _server: SMTP, _session: Session, envelope: Envelope) -> str:  # noqa: N802 - aiosmtpd's name
        """Keep one mail; aiosmtpd calls this when a mail is complete."""
        content = envelope.content or b""
        headers = self._headers.parsebytes(content if isinstance(content, bytes) else content.encode())
        received_at = now()
        for recipient in envelope.rcpt_tos:
            mail = ReceivedMail(
                to=recipient,
                subject=str(headers["Subject"] or ""),
                message_id=str(headers["Message-ID"] or "").strip(),
                received_at=received_at,
            )
            self._received.append(mail)
            self._kept.add(mail, self._received)
        return "250 Message accepted"


class _File:
    """The mails of a mailbox in a file, one a line. It lives as long as the mailbox, and the file until `delete`."""

    def __init__(self, path: Path | None, capacity: int) -> None:
        self._path = path
        self._capacity = capacity
        self._descriptor = -1
        self._lines = 0

    def read(self) -> list[ReceivedMail]:
        """Return what an app that was killed has left, and open the file; without one, keep nothing."""
        if self._path is None:
            return []
        mails: list[ReceivedMail] = []
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
            mails.extend(map(_LINE.decode, self._path.read_bytes().splitlines()))
        except (OSError, msgspec.DecodeError) as error:  # the last line may have been cut by the kill
            logger.warning("The outbox was not read whole: %s", type(error).__name__)
        self._lines = len(mails)
        return mails

    def add(self, mail: ReceivedMail, all_of_them: "deque[ReceivedMail]") -> None:
        """Append a mail; the system has it when this returns, whatever becomes of this process."""
        if self._descriptor < 0:
            return
        text = msgspec.json.encode(mail) + b"\n"
        if self._lines >= 2 * self._capacity:
            os.ftruncate(self._descriptor, 0)
            text = b"".join(msgspec.json.encode(each) + b"\n" for each in all_of_them)
            self._lines = len(all_of_them)
        os.write(self._descriptor, text)
        self._lines += 1

    def delete(self) -> None:
        """Take the file along."""
        if self._descriptor >= 0 and self._path is not None:
            os.close(self._descriptor)
            self._descriptor = -1
            self._path.unlink(missing_ok=True)


class _Session(SMTP):
    """One client's connection, which can be ended from outside."""

    def __init__(self, mailbox: Mailbox, sessions: set["_Session"], loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(mailbox, enable_SMTPUTF8=True, hostname="marathon.localhost", ident="marathon", loop=loop)
        self._sessions = sessions
        self.ended = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._sessions.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        self._sessions.discard(self)
        self.ended.set()

    def abort(self) -> None:
        if isinstance(self.transport, asyncio.Transport):
            self.transport.abort()
