"""Sending one mail over SMTP, and knowing what its failure means.

- `MailNotSentError`: a 4xx reply at any stage; no connection; a reset, hang or garbled reply before
  the mail's content. The server has no copy: try again.
- `MailUncertainError`: a reset, hang or garbled reply once the content was begun. The server may
  have a copy: try again with the same Message-ID.
- `deferred.NonRetryableError`: a 5xx reply at any stage; no STARTTLS, a bad certificate or a refused
  login where they are required; an address the server cannot take. It would fail again.

Each is raised from the original error. A connection is made for each mail and never used again: a
cancelled send poisons an SMTP client, and mails are few. How many connections are open at a time
is capped; whoever comes later waits.
"""

import asyncio
import contextlib
import enum
import logging
import ssl
import time
from collections.abc import Iterator
from typing import Final

import aiosmtplib
import msgspec
from aiosmtplib import (
    SMTPException,
    SMTPNotSupported,
    SMTPRecipientsRefused,
    SMTPResponseException,
    SMTPTimeoutError,
)

from deferred import NonRetryableError
from marathon_app.addresses import parse_mailbox
from marathon_app.messages import Letter
from marathon_app.settings import MailServer

logger = logging.getLogger(__name__)

MAX_CONNECTIONS: Final = 20  # at a time; mail providers commonly allow 10 to 50
LOGIN_PAUSE: Final = 60.0  # seconds without a try after a refused login
QUIT_TIMEOUT: Final = 1.0  # seconds; the mail is safe by then
ERROR_REPLIES: Final = range(400, 600)
FINAL_REPLY: Final = 500  # from here on the server says that it will say so again
MAX_REPLY: Final = 200  # characters of a server's reply that are repeated


class Stage(enum.StrEnum):
    """How far a delivery had come."""

    CONNECT = "connecting"
    TLS = "STARTTLS"
    LOGIN = "login"
    SENDER = "MAIL FROM"
    RECIPIENT = "RCPT TO"
    CONTENT = "DATA"


_REACHING: Final = frozenset({Stage.CONNECT, Stage.TLS, Stage.LOGIN})  # before any mail is spoken of


class MailTimeouts(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds that each stage may take."""

    connect: float = 10.0  # until the greeting, TLS included
    command: float = 10.0  # each of EHLO, STARTTLS, AUTH, MAIL and RCPT
    content: float = 30.0  # each of DATA and the content: servers scan before they answer


class MailNotSentError(Exception):
    """The mail was not sent and the server has no copy; another try may succeed."""


class MailUncertainError(MailNotSentError):
    """Nobody knows whether the server has the mail: sent again, it may arrive twice.

    Sent again with the same Message-ID, so that the receiving side can tell.
    """


class Mailer:
    """Sends mail to one server. It lives as long as the app and holds no connection."""

    def __init__(
        self,
        server: MailServer,
        *,
        timeouts: MailTimeouts | None = None,
        max_connections: int = MAX_CONNECTIONS,
        tls: ssl.SSLContext | None = None,
        delay: float = 0.0,
    ) -> None:
        """Prepare to send; nothing is connected yet.

        Args:
            server: Where the mail goes.
            timeouts: What each stage may take.
            max_connections: How many connections may be open at a time.
            tls: What certificates to trust; the system's by default.
            delay: Seconds to wait before each mail; for the demonstration only.
        """
        self.server = server
        self._timeouts = timeouts or MailTimeouts()
        self._slots = asyncio.Semaphore(max_connections)
        self._delay = delay
        self._tls = tls
        if tls is None and server.security != "none":
            self._tls = ssl.create_default_context()  # here, since reading certificates blocks
        self._login_refused_at: float | None = None
        self.trouble: str | None = None  # where the server could not be reached; None when it could

    async def send(self, letter: Letter) -> None:
        """Send one mail to its one recipient.

        Raises:
            MailNotSentError: It failed and may succeed another time.
            MailUncertainError: The same, and the server may have a copy.
            NonRetryableError: It failed for good.
        """
        _check_recipient(letter.recipient)
        if self._delay:
            await asyncio.sleep(self._delay)
        async with self._slots:
            await self._deliver(letter)

    async def _deliver(self, letter: Letter) -> None:
        self._check_login_pause()
        delivery = _Delivery(letter, self.server, self._timeouts, self._tls)
        try:
            await delivery.run()
            self.trouble = None
        except Exception as error:
            if delivery.stage in _REACHING:
                self.trouble = f"the last mail failed at {delivery.stage}"
            if delivery.stage is Stage.LOGIN and _is_final(error):
                self._login_refused_at = time.monotonic()
                logger.critical("The mail server refused our login; no mail is tried for %g s", LOGIN_PAUSE)
            raise _meaning(error, delivery.stage) from error
        finally:
            delivery.close()

    def _check_login_pause(self) -> None:
        # One refused login is enough: more of them lock accounts.
        if self._login_refused_at is not None and time.monotonic() - self._login_refused_at < LOGIN_PAUSE:
            message = "the mail server refused our login less than a minute ago; check MARATHON_SMTP_URL"
            raise NonRetryableError(message)


class _Delivery:
    """One connection and the one mail that goes over it."""

    def __init__(self, letter: Letter, server: MailServer, timeouts: MailTimeouts, tls: ssl.SSLContext | None) -> None:
        self.stage = Stage.CONNECT
        self._letter = letter
        self._server = server
        self._timeouts = timeouts
        self._client = aiosmtplib.SMTP(
            hostname=server.host,
            port=server.port,
            local_hostname=letter.sender.rpartition("@")[2],
            use_tls=server.security == "tls",
            start_tls=False,  # never opportunistic: either it is required, or it is not asked for
            tls_context=tls,
            timeout=timeouts.command,
        )

    async def run(self) -> None:
        """Go through the stages; `self.stage` is where it stopped."""
        await self._client.connect(timeout=self._timeouts.connect)
        if self._server.security == "starttls":
            self.stage = Stage.TLS
            await self._client.starttls(timeout=self._timeouts.command)
        if self._server.username is not None and self._server.password is not None:
            self.stage = Stage.LOGIN
            await self._login(self._server.username, self._server.password)
        await self._hand_over()
        with contextlib.suppress(SMTPException, OSError):  # the server has the mail: goodbye is a courtesy
            await self._client.quit(timeout=QUIT_TIMEOUT)

    async def _login(self, username: str, password: str) -> None:
        # `login()` goes on to the next method when one was refused: three refusals for one wrong
        # password. The first method both sides know is the only one tried here.
        client = self._client
        if client.is_ehlo_or_helo_needed:
            await client.ehlo()
        methods = client.supported_auth_methods
        if "plain" in methods:
            await client.auth_plain(username, password)
        elif "login" in methods:
            await client.auth_login(username, password)
        elif "cram-md5" in methods:
            await client.auth_crammd5(username, password)
        else:
            message = "the mail server offers no login that we know (PLAIN, LOGIN, CRAM-MD5)"
            raise SMTPNotSupported(message)

    async def _hand_over(self) -> None:
        client, letter = self._client, self._letter
        self.stage = Stage.SENDER
        encoding, options = "ascii", ["SMTPUTF8"] if letter.needs_utf8 else []
        if letter.needs_utf8:
            encoding = "utf-8"
            if client.is_ehlo_or_helo_needed:
                await client.ehlo()
            if not client.supports_extension("smtputf8"):
                message = "the mail server cannot take letters beyond ASCII before the @ (no SMTPUTF8)"
                raise SMTPNotSupported(message)
        await client.mail(letter.sender, options=options, encoding=encoding)
        self.stage = Stage.RECIPIENT
        await client.rcpt(letter.recipient, encoding=encoding)
        self.stage = Stage.CONTENT
        await client.data(letter.content, timeout=self._timeouts.content)

    def close(self) -> None:
        """Drop the connection, whatever state it is in."""
        self._client.close()


def _check_recipient(recipient: str) -> None:
    # Once more, and here, since the SMTP client only refuses some of what is no single mailbox, and
    # which depends on the version of Python.
    try:
        parse_mailbox(recipient)
    except ValueError as error:
        raise NonRetryableError(f"the mail cannot be sent: the recipient {error}") from error


def _meaning(error: Exception, stage: Stage) -> Exception:
    """Return what to raise for an error of the SMTP client; see the table above."""
    text = f"{stage}: {_describe(error)}"
    if _is_final(error):
        return NonRetryableError(f"the mail cannot be sent: {text}")
    if stage is Stage.CONTENT and _code(error) is None:
        return MailUncertainError(f"the mail may have been sent or not: {text}")
    return MailNotSentError(f"the mail was not sent: {text}")


def _is_final(error: Exception) -> bool:
    """Tell whether trying again cannot help."""
    code = _code(error)
    if code is not None:
        return code >= FINAL_REPLY
    if any(isinstance(cause, ssl.SSLCertVerificationError) for cause in _causes(error)):
        return True
    # What is left of aiosmtplib's own errors says that the server lacks what we require; a
    # ValueError, that the mail itself cannot be put on the wire. Everything else is the network.
    return isinstance(error, SMTPException | ValueError) and not isinstance(
        error, SMTPResponseException | SMTPTimeoutError | OSError
    )


def _code(error: Exception) -> int | None:
    """Return the server's reply code, or None where there was no (legible) reply."""
    if isinstance(error, SMTPRecipientsRefused):
        return _code(error.recipients[0])  # it has no code of its own
    if isinstance(error, SMTPResponseException) and error.code in ERROR_REPLIES:
        return error.code
    return None


def _describe(error: Exception) -> str:
    if isinstance(error, SMTPRecipientsRefused):
        return _describe(error.recipients[0])
    if isinstance(error, SMTPResponseException):
        text = f"{error.code} {error.message}"
    else:
        text = str(error) or type(error).__name__
    visible = "".join(character if character.isprintable() else " " for character in text)
    return visible[:MAX_REPLY]


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__
