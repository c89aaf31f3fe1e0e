"""Sending to a real mail server, and each way that can fail."""

import asyncio
import ssl

import aiosmtplib
import pytest

from deferred import NonRetryableError
from marathon_app.mail import Mailer, MailNotSentError, MailTimeouts, MailUncertainError, Stage, _meaning
from marathon_app.messages import Letter, LetterWriter
from marathon_app.settings import MailServer
from tests.marathon.support import listen, registration, smtp, tls_client, tls_server, until

WRITER = LetterWriter("registration@marathon.example")
PATIENT = MailTimeouts(connect=30, command=30, content=30)
BRIEF = MailTimeouts(connect=0.2, command=0.2, content=0.2)  # where silence is what is tried
BRIEF_AT_THE_END = MailTimeouts(connect=30, command=30, content=0.2)


def letter(email="ada@example.com"):
    """Return the confirmation for one address."""
    return WRITER.confirmation(registration(email=email).runner())


async def failing(server, *, timeouts=PATIENT, **options):
    """Send a mail that must fail; return the error."""
    mailer = Mailer(server, timeouts=timeouts, **options)
    with pytest.raises((MailNotSentError, NonRetryableError)) as caught:
        await mailer.send(letter())
    assert caught.value.__cause__ is not None
    return caught.value


async def test_a_mail_arrives_once_for_one_recipient(faulty):
    """A mail is handed over once, to one recipient, from the sender, as it was written."""
    sent = letter()
    await Mailer(faulty.server).send(sent)

    (envelope,) = faulty.kept
    assert envelope.rcpt_tos == ["ada@example.com"]
    assert envelope.mail_from == "registration@marathon.example"
    assert envelope.content == sent.content
    await until(lambda: not faulty.open)


@pytest.mark.parametrize("stage", ["MAIL", "RCPT", "DATA"])
@pytest.mark.parametrize("code", [421, 450, 451, 452])
async def test_a_4xx_reply_may_be_tried_again(faulty, stage, code):
    """E01: A 4xx reply at any stage is retryable, and the server has no copy."""
    faulty.replies[stage] = f"{code} later"

    error = await failing(faulty.server)

    assert type(error) is MailNotSentError
    assert str(code) in str(error)
    assert faulty.kept == []


@pytest.mark.parametrize("stage", ["MAIL", "RCPT", "DATA"])
@pytest.mark.parametrize("code", [550, 552, 554])
async def test_a_5xx_reply_is_final(faulty, stage, code):
    """E02: A 5xx reply at any stage is not tried again, and the original error is its cause."""
    faulty.replies[stage] = f"{code} never"

    error = await failing(faulty.server)

    assert isinstance(error, NonRetryableError)
    assert isinstance(error.__cause__, aiosmtplib.SMTPException)
    assert str(code) in str(error)
    assert faulty.sessions == 1


async def test_the_error_for_several_recipients_is_understood():
    """E02: aiosmtplib's error without a code of its own is judged by the recipient's reply."""
    for code, kind in ((450, MailNotSentError), (550, NonRetryableError)):
        refused = aiosmtplib.SMTPRecipientRefused(code, "no", "ada@example.com")
        error = _meaning(aiosmtplib.SMTPRecipientsRefused([refused]), Stage.RECIPIENT)
        assert type(error) is kind
        assert str(code) in str(error)


async def test_a_reset_after_the_content_is_uncertain(faulty):
    """E05: A connection reset once the mail was taken is retryable and known to be ambiguous."""
    faulty.after_data = "reset"
    first = await failing(faulty.server)
    faulty.after_data = ""
    await Mailer(faulty.server).send(letter())

    assert isinstance(first, MailUncertainError)
    assert len(faulty.kept) == 2
    assert faulty.kept[0].content == faulty.kept[1].content or letter().message_id.encode() in faulty.kept[0].content


async def test_a_hang_after_the_content_is_uncertain(faulty):
    """E06: A server that hangs once it has the mail is given up, and known to be ambiguous."""
    faulty.after_data = "hang"

    error = await failing(faulty.server, timeouts=BRIEF_AT_THE_END)
    assert isinstance(error, MailUncertainError)
    assert len(faulty.kept) == 1


async def test_nobody_listening_may_be_tried_again():
    """E04: A server that is not there is retryable, and the mailer says that it has trouble."""
    async with listen(asyncio.Protocol) as port:
        pass
    mailer = Mailer(MailServer(host="127.0.0.1", port=port))
    with pytest.raises(MailNotSentError):
        await mailer.send(letter())

    assert mailer.trouble == "the last mail failed at connecting"


def script(*lines, then="hang"):
    """Return a protocol that says one line for each it hears, then hangs, resets or closes."""

    class Script(asyncio.Protocol):
        def connection_made(self, transport):
            self.transport = transport
            self.left = list(lines)
            self.say()

        def data_received(self, data):
            for _ in range(data.count(b"\r\n")):
                self.say()

        def say(self):
            if self.left:
                self.transport.write(self.left.pop(0))
            elif then == "reset":
                self.transport.abort()
            elif then == "close":
                self.transport.close()

    return Script


GREETING, EHLO, OK, GO = b"220 hi\r\n", b"250 hi\r\n", b"250 OK\r\n", b"354 go\r\n"


@pytest.mark.parametrize("then", ["hang", "reset", "close"])
@pytest.mark.parametrize("said", [(), (GREETING,), (GREETING, EHLO), (GREETING, EHLO, OK)], ids=len)
async def test_silence_before_the_content_may_be_tried_again(said, then):
    """E04, E06: A hang, reset or close at any stage before the content is retryable, not ambiguous."""
    async with listen(script(*said, then=then)) as port:
        error = await failing(MailServer(host="127.0.0.1", port=port), timeouts=BRIEF if then == "hang" else PATIENT)

    assert type(error) is MailNotSentError


@pytest.mark.parametrize("then", ["hang", "reset", "close"])
async def test_silence_after_the_content_is_uncertain(then):
    """E05, E06: From DATA on a hang, reset or close is ambiguous."""
    timeouts = BRIEF_AT_THE_END if then == "hang" else PATIENT
    async with listen(script(GREETING, EHLO, OK, OK, GO, then=then)) as port:
        error = await failing(MailServer(host="127.0.0.1", port=port), timeouts=timeouts)

    assert isinstance(error, MailUncertainError)


@pytest.mark.parametrize(
    "garbled",
    [
        b"what?\r\n",
        b"\xff\xfe\x00\r\n",
        b"999 odd\r\n",
        b"250-" + b"x" * 9000 + b"\r\n",
        b"250-x\r\n" * 9000,
        b"x" * 40_000,
    ],
    ids=["words", "bytes", "code", "long line", "endless", "no line end"],
)
async def test_a_garbled_reply_is_an_error_and_not_a_hang(garbled):
    """E18: What is no SMTP reply, or far too much of one, is a retryable error."""
    async with listen(script(GREETING, EHLO, garbled)) as port:
        error = await failing(MailServer(host="127.0.0.1", port=port), timeouts=BRIEF)

    assert type(error) is MailNotSentError
    assert len(str(error)) < 400


async def test_a_greeting_of_5xx_is_final():
    """E02: A server that greets with 554 takes no mail from us."""
    async with listen(script(b"554 go away\r\n")) as port:
        error = await failing(MailServer(host="127.0.0.1", port=port))

    assert isinstance(error, NonRetryableError)


async def test_a_reply_cannot_write_into_the_log():
    """G16: Control characters in a server's reply do not reach the error's text."""
    async with listen(script(GREETING, EHLO, b"550-a\x1b[31m\r\n550 b\r\n")) as port:
        error = await failing(MailServer(host="127.0.0.1", port=port))

    assert str(error).isprintable()


async def test_starttls_is_used_where_it_is_required():
    """E08: With STARTTLS and a certificate that is trusted the mail arrives."""
    async with smtp(security="starttls", tls_context=tls_server()) as server:
        await Mailer(server.server, tls=tls_client()).send(letter())

        assert len(server.kept) == 1


async def test_no_starttls_means_no_mail(faulty):
    """E08: Where STARTTLS is required and missing nothing is sent in the clear, and the error is final."""
    server = MailServer(
        host=faulty.server.host, port=faulty.server.port, security="starttls", username="a", password="b"
    )

    error = await failing(server)

    assert isinstance(error, NonRetryableError)
    assert "STARTTLS" in str(error)
    assert faulty.kept == []


@pytest.mark.parametrize("security", ["tls", "starttls"])
async def test_a_certificate_nobody_vouches_for_means_no_mail(security):
    """E08: A certificate that is not trusted is a final error, and nothing was sent."""
    options = {"tls_context": tls_server()} if security == "starttls" else {}
    async with smtp(security=security, **options) as server:
        error = await failing(server.server, tls=ssl.create_default_context())

        assert isinstance(error, NonRetryableError)
        assert server.kept == []


async def test_tls_from_the_first_byte():
    """smtps:// speaks TLS at once."""
    async with smtp(security="tls") as server:
        await Mailer(server.server, tls=tls_client()).send(letter())

        assert len(server.kept) == 1


async def test_the_system_certificates_are_trusted_by_default():
    """Without certificates of its own the mailer trusts the system's, and no others."""
    mailer = Mailer(MailServer(host="localhost", port=465, security="tls"))

    assert mailer._tls is not None
    assert mailer._tls.verify_mode is ssl.CERT_REQUIRED


@pytest.mark.parametrize("excluded", [[], ["PLAIN"], ["LOGIN"]])
async def test_a_login_that_is_right(excluded):
    """The user and password of the URL open the server, by either method."""
    async with smtp(login=("ada", "right"), auth_exclude_mechanism=excluded) as server:
        await Mailer(server.server).send(letter())

        assert server.logins == 1
        assert len(server.kept) == 1


async def test_a_refused_login_is_tried_once_and_not_again(caplog):
    """E09: After one 535 no login is tried for a minute: each mail fails at once, and one alert is logged."""
    async with smtp(login=("ada", "wrong")) as server:
        mailer = Mailer(server.server, timeouts=PATIENT)
        for _ in range(20):
            with pytest.raises(NonRetryableError):
                await mailer.send(letter())

        assert server.logins == 1
        assert server.sessions == 1
        assert mailer.trouble == "the last mail failed at login"
    assert [record.levelname for record in caplog.records].count("CRITICAL") == 1
    assert "wrong" not in caplog.text


async def test_a_login_is_tried_again_after_the_pause(monkeypatch):
    """E09: Once the pause is over the next mail tries the login again."""
    monkeypatch.setattr("marathon_app.mail.LOGIN_PAUSE", 0.0)
    async with smtp(login=("ada", "wrong")) as server:
        for _ in range(2):
            await failing(server.server)
        mailer = Mailer(server.server)
        for _ in range(2):
            with pytest.raises(NonRetryableError):
                await mailer.send(letter())

        assert server.logins == 4


async def test_a_server_without_login_is_final(faulty):
    """E08: A login that the server does not offer is a configuration error."""
    server = MailServer(host=faulty.server.host, port=faulty.server.port, username="ada", password="secret")

    error = await failing(server)

    assert isinstance(error, NonRetryableError)
    assert "secret" not in str(error)


async def test_a_login_by_challenge():
    """CRAM-MD5 is used where it is all that the server knows; a 4xx there is retryable."""
    offer = b"250-hi\r\n250 AUTH CRAM-MD5\r\n"
    async with listen(script(GREETING, offer, b"334 PGNoYWxsZW5nZT4=\r\n", b"454 later\r\n")) as port:
        server = MailServer(host="127.0.0.1", port=port, username="ada", password="secret")
        error = await failing(server)

    assert type(error) is MailNotSentError


async def test_letters_beyond_ascii_need_smtputf8(faulty):
    """E12: Without SMTPUTF8 such an address is a final error that says so, and nothing is sent."""
    with pytest.raises(NonRetryableError, match="SMTPUTF8"):
        await Mailer(faulty.server).send(letter("jörg@example.com"))

    assert faulty.kept == []


async def test_letters_beyond_ascii_arrive_with_smtputf8():
    """E12: A server with SMTPUTF8 gets the address as it is."""
    async with smtp(enable_SMTPUTF8=True) as server:
        await Mailer(server.server).send(letter("jörg@example.com"))

        assert server.kept[0].rcpt_tos == ["jörg@example.com"]


@pytest.mark.parametrize(
    "recipient",
    [
        "a@example.com\r\nRCPT TO:<b@example.com>",
        "a@example.com\nDATA",
        "a@\x00",
        "a@example.com, b@example.com",
        "a@example.com> <b@example.com",
    ],
)
async def test_a_forced_injection_is_refused(faulty, recipient):
    """E10: Even past the checks of the input, what is not exactly one address is never sent."""
    with pytest.raises(NonRetryableError, match="recipient"):
        await Mailer(faulty.server).send(_with_recipient(recipient))

    assert faulty.sessions == 0


async def test_connections_are_capped(faulty):
    """E17: However many mails are sent, no more connections are open than allowed, and all are sent."""
    faulty.gate.clear()
    mailer = Mailer(faulty.server, max_connections=5)
    sending = [asyncio.create_task(mailer.send(letter(f"r{number}@example.com"))) for number in range(40)]
    await until(lambda: len(faulty.open) == 5)
    faulty.gate.set()
    await asyncio.gather(*sending)

    assert faulty.most_at_once <= 6  # one that says goodbye while the next begins
    assert len(faulty.kept) == 40


async def test_a_cancelled_send_leaves_nothing(faulty):
    """A send that was cancelled closes its connection, frees its slot, and the next one is well."""
    faulty.gate.clear()
    mailer = Mailer(faulty.server, max_connections=1)
    sending = asyncio.create_task(mailer.send(letter()))
    await until(lambda: faulty.open != set())
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    await until(lambda: not faulty.open)
    faulty.gate.set()
    await mailer.send(letter("next@example.com"))

    assert ["next@example.com"] in [envelope.rcpt_tos for envelope in faulty.kept]


async def test_trouble_passes(faulty):
    """C30: The trouble of one mail is forgotten with the next that goes through."""
    mailer = Mailer(faulty.server)
    mailer.trouble = "the last mail failed at connecting"
    await mailer.send(letter())

    assert mailer.trouble is None


async def test_a_refused_recipient_is_no_trouble_of_the_server(faulty):
    """A mail that one recipient's server refuses says nothing about the mail server itself."""
    faulty.replies["RCPT"] = "550 unknown"
    mailer = Mailer(faulty.server)
    with pytest.raises(NonRetryableError):
        await mailer.send(letter())

    assert mailer.trouble is None


@pytest.mark.looptime
async def test_the_demo_delay_comes_before_the_mail():
    """The delay of the demonstration is waited for before anything is connected."""
    loop = asyncio.get_running_loop()
    mailer = Mailer(MailServer(host="127.0.0.1", port=1), delay=3600.0)
    start = loop.time()
    with pytest.raises(MailNotSentError):
        await mailer.send(letter())

    assert loop.time() - start >= 3600.0


def _with_recipient(recipient):
    written = letter()
    return Letter(
        sender=written.sender,
        recipient=recipient,
        message_id=written.message_id,
        content=written.content,
        needs_utf8=False,
    )
