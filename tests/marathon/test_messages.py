"""The confirmation mail, read back with the standard library's parser."""

from email import message_from_bytes, message_from_string, policy

import pytest

from marathon_app.messages import LetterWriter, message_id
from tests.marathon.support import registration

WRITER = LetterWriter("registration@marathon.example")


def confirmation(**changes):
    """Return the confirmation of a registration, as it is sent and as it is read."""
    letter = WRITER.confirmation(registration(**changes).runner())
    return letter, message_from_bytes(letter.content, policy=policy.SMTP)


def parts(message):
    """Return the parts of a message by their type."""
    return {part.get_content_type(): part.get_content() for part in message.iter_parts()}


def test_it_has_a_text_and_an_html_part():
    """Both parts greet the runner and say the distance and the reference."""
    letter, message = confirmation(firstName="Grace", distance="10")
    runner = registration(firstName="Grace", distance="10").runner()

    assert message.get_content_type() == "multipart/alternative"
    assert set(parts(message)) == {"text/plain", "text/html"}
    for content in parts(message).values():
        assert "Grace" in content
        assert "10 km" in content
        assert runner.reference in content
    assert letter.recipient == "ada@example.com"


def test_the_headers():
    """It goes to one recipient, from the configured sender, and says that a machine wrote it."""
    _, message = confirmation()

    assert message["To"] == "ada@example.com"
    assert message["From"] == "Marathon <registration@marathon.example>"
    assert message["Subject"] == "You are registered for our Marathon"
    assert message["Auto-Submitted"] == "auto-generated"
    assert len(message.get_all("To")) == 1
    assert message["Cc"] is None
    assert message["Bcc"] is None
    assert message["Date"].datetime.tzinfo is not None


def test_the_message_id_is_that_of_the_address():
    """E16: The same address has the same Message-ID and idempotency key, whoever writes it how."""
    letter, message = confirmation()
    again, _ = confirmation(email=" ADA@Example.com ", firstName="Ada Augusta", distance="full")
    other, _ = confirmation(email="eve@example.com")

    assert letter.message_id == again.message_id != other.message_id
    assert message["Message-ID"] == letter.message_id == message_id(registration().runner())
    assert message["Resend-Idempotency-Key"] == letter.message_id
    assert "ada" not in letter.message_id


@pytest.mark.parametrize(
    "name", ["<b>Ada</b>", "<script>alert(1)</script>", "{{ 7 * 7 }}", "{% raw %}", '"><img src=x>', "&amp;"]
)
def test_markup_in_a_name_is_text(name):
    """E14: A name that looks like HTML or a template is shown as it is, in both parts."""
    content = parts(confirmation(firstName=name)[1])

    assert f"Hello {name}," in content["text/plain"]
    assert "<script" not in content["text/html"]
    assert "<img" not in content["text/html"]
    assert "49" not in content["text/html"]
    if "<" in name:
        assert name not in content["text/html"]
        assert "&lt;" in content["text/html"]


@pytest.mark.parametrize("name", ["Zoë", "אדה", "愛達", "Ada 🏃", "x" * 100, "愛" * 100, "From: eve@example.com", "."])
def test_every_name_makes_a_mail_of_ascii_lines(name):
    """E13: Whatever a name is written in, what travels is ASCII in lines of bounded length."""
    letter, message = confirmation(firstName=name)

    assert letter.content.isascii()
    assert max(map(len, letter.content.splitlines())) <= 998
    assert b"\n" not in letter.content.replace(b"\r\n", b"")
    assert f"Hello {name}," in parts(message)["text/plain"]


def test_an_internationalised_domain_travels_as_punycode():
    """E12: Only the local part can need SMTPUTF8; a domain never does."""
    letter, message = confirmation(email="ada@bücher.example")

    assert not letter.needs_utf8
    assert letter.recipient == "ada@xn--bcher-kva.example"
    assert message["To"] == "ada@xn--bcher-kva.example"


def test_a_local_part_beyond_ascii_says_what_it_needs():
    """E12: A mail to such an address is marked as needing SMTPUTF8, and names it in its header."""
    letter = WRITER.confirmation(registration(email="jörg@example.com").runner())
    message = message_from_string(letter.content.decode(), policy=policy.SMTPUTF8)

    assert letter.needs_utf8
    assert message["To"].addresses[0].username == "jörg"
