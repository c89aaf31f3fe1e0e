"""The confirmation mail: two templates, one recipient, one stable identity."""

import email.policy
from email.headerregistry import Address
from email.message import EmailMessage
from email.utils import format_datetime, localtime
from pathlib import Path
from typing import Final

import jinja2
import msgspec

from marathon_app.models import Distance, Runner

SUBJECT: Final = "You are registered for our Marathon"
SENDER_NAME: Final = "Marathon"
MESSAGE_ID_DOMAIN: Final = "marathon.example"
DISTANCES: Final[dict[Distance, str]] = {"10": "10 km", "half": "Half marathon", "full": "Full marathon"}

# 7bit: what leaves needs no extension of the server, whatever the runner's name is written in.
_ASCII: Final = email.policy.SMTP.clone(cte_type="7bit")
_UTF8: Final = email.policy.SMTPUTF8.clone(cte_type="7bit")


class Letter(msgspec.Struct, frozen=True, kw_only=True):
    """One mail ready to be sent: its envelope and its bytes."""

    sender: str
    recipient: str  # exactly one mailbox
    message_id: str
    content: bytes
    needs_utf8: bool  # the recipient's local part has letters beyond ASCII


class LetterWriter:
    """Writes confirmations. It reads its templates once and lives as long as the app."""

    def __init__(self, sender: str) -> None:
        """Read the templates.

        Args:
            sender: The address the mail comes from.
        """
        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
            autoescape=jinja2.select_autoescape(["html"], default_for_string=True),
            undefined=jinja2.StrictUndefined,
            auto_reload=False,
            keep_trailing_newline=True,
        )
        self._sender = sender
        self._text = environment.get_template("confirmation.txt")
        self._html = environment.get_template("confirmation.html")

    def confirmation(self, runner: Runner) -> Letter:
        """Write the confirmation of one registration.

        The Message-ID and the idempotency key depend on the address alone, so that a mail sent
        again is known to be the same mail, by whoever can tell. Neither says whose it is.
        """
        needs_utf8 = not runner.email.isascii()
        values = {"runner": runner, "distance": DISTANCES[runner.distance]}
        message = EmailMessage(policy=_UTF8 if needs_utf8 else _ASCII)
        message["From"] = _header_address(self._sender, SENDER_NAME)
        message["To"] = _header_address(runner.email)
        message["Subject"] = SUBJECT
        message["Date"] = format_datetime(localtime())
        message["Message-ID"] = message_id(runner)
        message["Resend-Idempotency-Key"] = message_id(runner)
        message["Auto-Submitted"] = "auto-generated"
        message.set_content(self._text.render(values))
        message.add_alternative(self._html.render(values), subtype="html")
        return Letter(
            sender=self._sender,
            recipient=runner.email,
            message_id=message_id(runner),
            content=message.as_bytes(),
            needs_utf8=needs_utf8,
        )


def message_id(runner: Runner) -> str:
    """Return the Message-ID of a runner's confirmation, angle brackets included."""
    return f"<{runner.reference}@{MESSAGE_ID_DOMAIN}>"


def _header_address(address: str, name: str = "") -> Address:
    local, _, domain = address.rpartition("@")
    return Address(name, local, domain)
