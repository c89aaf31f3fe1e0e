"""The embedded mail server."""

import asyncio

import pytest

from deferred import NonRetryableError
from marathon_app.mail import Mailer, MailNotSentError
from marathon_app.mailbox import Mailbox
from marathon_app.messages import LetterWriter
from tests.marathon.support import registration

WRITER = LetterWriter("registration@marathon.example")


def letter(email="ada@example.com"):
    """Return the confirmation for one address."""
    return WRITER.confirmation(registration(email=email).runner())


async def test_it_shows_what_came():
    """A mail sent to the embedded server is shown with recipient, subject, Message-ID and time."""
    mailbox = Mailbox()
    mailer = Mailer(await mailbox.open())
    await mailer.send(letter())
    await mailer.send(letter("jörg@example.com"))

    first, second = mailbox.received()
    assert (first.to, first.subject) == ("ada@example.com", "You are registered for our Marathon")
    assert first.message_id == letter().message_id
    assert first.received_at.endswith("Z")
    assert first.received_at < second.received_at
    assert second.to == "jörg@example.com"
    assert mailbox.received("ADA@example.com") == [first]
    assert mailbox.received("nobody@example.com") == []
    await mailbox.close()


async def test_it_keeps_a_bounded_number():
    """The oldest mails make room for new ones."""
    mailbox = Mailbox(capacity=3)
    mailer = Mailer(await mailbox.open())
    for number in range(5):
        await mailer.send(letter(f"{number}@example.com"))

    assert [mail.to[0] for mail in mailbox.received()] == ["2", "3", "4"]
    await mailbox.close()


async def test_closing_ends_sessions_and_leaves_no_task():
    """Clients that are still connected when it closes are cut off, and nothing of them is left."""
    tasks = asyncio.all_tasks()
    mailbox = Mailbox()
    server = await mailbox.open()
    reader, writer = await asyncio.open_connection(server.host, server.port)
    assert (await reader.readline()).startswith(b"220")
    await mailbox.close()
    await mailbox.close()

    assert not mailbox._sessions
    with pytest.raises(ConnectionResetError):
        assert await reader.read() == b""
        raise ConnectionResetError
    writer.close()
    while asyncio.all_tasks() - tasks:
        await asyncio.sleep(0)
    with pytest.raises(MailNotSentError):
        await Mailer(server).send(letter())


async def test_a_mail_without_headers_is_shown_too():
    """What is no proper mail is kept with what it has."""
    mailbox = Mailbox()
    server = await mailbox.open()
    reader, writer = await asyncio.open_connection(server.host, server.port)
    await reader.readline()
    for line in (b"HELO x", b"MAIL FROM:<a@example.com>", b"RCPT TO:<b@example.com>", b"DATA"):
        writer.write(line + b"\r\n")
        await reader.readline()
    writer.write(b"\xff\xfe no header\r\n.\r\n")
    await reader.readline()
    writer.close()

    assert [(mail.to, mail.subject, mail.message_id) for mail in mailbox.received()] == [("b@example.com", "", "")]
    await mailbox.close()


async def test_many_mails_at_once_all_arrive():
    """E17: Five hundred mails at once go over a capped number of connections, and all arrive."""
    mailbox = Mailbox()
    mailer = Mailer(await mailbox.open(), max_connections=10)
    results = await asyncio.gather(
        *(mailer.send(letter(f"runner{number}@example.com")) for number in range(500)), return_exceptions=True
    )

    assert [error for error in results if isinstance(error, Exception | NonRetryableError)] == []
    assert len({mail.to for mail in mailbox.received()}) == 500
    await mailbox.close()
