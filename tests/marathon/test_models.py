"""What is a registration, and what is refused, and how."""

import unicodedata

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from marathon_app.models import InvalidRegistrationError, parse_registration, reference
from tests.marathon.support import fields, registration


def refuse(body):
    """Read bytes that are no registration; return the error."""
    with pytest.raises(InvalidRegistrationError) as caught:
        parse_registration(body)
    return caught.value


def test_a_registration_is_read():
    """The five fields arrive as they were sent."""
    read = registration()

    assert (read.first_name, read.last_name) == ("Ada", "Lovelace")
    assert (read.email, read.email_key) == ("ada@example.com", "ada@example.com")
    assert (read.address, read.distance) == ("12 St James Square, London", "half")


@pytest.mark.parametrize("distance", ["10", "half", "full"])
def test_the_three_distances(distance):
    """Each of the three distances is one."""
    assert registration(distance=distance).distance == distance


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "empty"),
        (b"{", "not valid JSON"),
        (b"hello", "not valid JSON"),
        (b"\xff\xfe{\x00}\x00", "not valid JSON"),
        (b'{"firstName": "\xff"}', "not valid JSON"),
        (b'{"firstName": "\\ud800"}', "not valid JSON"),
        (b'{"firstName": "\xed\xa0\x80"}', "not valid JSON"),
        (b'{"firstName": NaN}', "not valid JSON"),
        (b'{"firstName": Infinity}', "not valid JSON"),
        (b"{} {}", "not valid JSON"),
        (b"[]", "JSON object"),
        (b"null", "JSON object"),
        (b'"text"', "JSON object"),
        (b'{"email": 1e999}', "JSON object"),
        (b'{"email": ' + b"9" * 5000 + b"}", "JSON object"),
        (b'{"x": ' + b"[" * 10_000 + b"]" * 10_000 + b"}", "nested"),
        (b'{"x": ' * 10_000 + b"1" + b"}" * 10_000, "nested"),
        (b"[" * 10_000, "JSON object"),
    ],
    ids=lambda value: repr(value[:24]) if isinstance(value, bytes) else "",
)
def test_what_is_not_json_is_400(body, words):
    """F01, F02, F04, F05: Bytes that are no JSON object are status 400, however they are wrong."""
    error = refuse(body)

    assert error.status == 400
    assert words in error.detail


@pytest.mark.parametrize("field", ["firstName", "lastName", "email", "address", "distance"])
@pytest.mark.parametrize("value", [None, True, 10, 1.5, [], ["x"], {}, {"$ne": ""}])
def test_wrong_types_are_400_and_named(field, value):
    """F05: A value that is no text is status 400, and the field is named."""
    error = refuse(msgspec.json.encode(fields(**{field: value})))

    assert error.status == 400
    assert [fault.field for fault in error.errors] == [field]


def test_missing_fields_are_all_named():
    """F06: Every missing key is named at once."""
    error = refuse(b'{"firstName": "Ada", "__proto__": {"email": "x@example.com"}}')

    assert error.status == 400
    assert {fault.field for fault in error.errors} == {"lastName", "email", "address", "distance"}


def test_unknown_keys_are_ignored_and_the_last_twin_counts():
    """F06: Extra keys change nothing, and of a key given twice the last value is taken."""
    extra = msgspec.json.encode(fields(__proto__={"distance": "full"}, constructor=1, id=7))
    twice = msgspec.json.encode(fields()).replace(b"{", b'{"firstName": "Grace", ', 1)

    assert parse_registration(extra) == registration()
    assert parse_registration(twice).first_name == "Ada"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("firstName", ""),
        ("firstName", "   "),
        ("firstName", "\u00a0"),
        ("firstName", "Ada\r\nBcc: x@example.com"),
        ("firstName", "Ada\n"),
        ("firstName", "Ada\x00"),
        ("firstName", "\x1b[31mAda"),
        ("firstName", "A\u200bda"),
        ("firstName", "A\u200dda"),
        ("firstName", "\ufeffAda"),
        ("firstName", "A\u00adda"),
        ("firstName", "\u202eadA"),
        ("firstName", "\u2066Ada\u2069"),
        ("firstName", "\u3164"),
        ("firstName", "\u2800"),
        ("firstName", "\u2028"),
        ("firstName", "\ue000"),
        ("firstName", "\ufffe"),
        ("firstName", "\U000e0041"),
        ("firstName", "x" * 101),
        ("firstName", "x" * 10_000),
        ("lastName", "\u200b"),
        ("address", "x" * 501),
        ("address", "1 Main St\nLondon"),
        ("distance", "marathon"),
        ("distance", "HALF"),
        ("distance", " half"),
        ("distance", ""),
        ("email", ""),
        ("email", "ada"),
        ("email", "@example.com"),
        ("email", "ada@"),
        ("email", "ada@example"),
        ("email", "ada@@example.com"),
        ("email", "ada@example.com, eve@example.com"),
        ("email", "ada@example.com;eve@example.com"),
        ("email", "ada@example.com eve@example.com"),
        ("email", "ada@example.com\r\nRCPT TO:<eve@example.com>"),
        ("email", "Ada <ada@example.com>"),
        ("email", "<ada@example.com>"),
        ("email", '"ada lovelace"@example.com'),
        ("email", "ada@example.com(comment)"),
        ("email", ".ada@example.com"),
        ("email", "ada..l@example.com"),
        ("email", "ada@[127.0.0.1]"),
        ("email", "ada@127.0.0.1"),
        ("email", "ada@-example.com"),
        ("email", "ada@exa_mple.com"),
        ("email", "ada@xn--a.com"),
        ("email", "ada@example..com"),
        ("email", "ada@\u2603.com"),
        ("email", "a\u200bda@example.com"),
        ("email", "ada@exa\u200dmple.com"),
        ("email", "a" * 65 + "@example.com"),
        ("email", "ada@" + "x" * 64 + ".com"),
        ("email", "ada@" + ".".join(["x" * 50] * 6) + ".com"),
        ("email", "a" * 10_000 + "@example.com"),
    ],
    ids=ascii,
)
def test_unacceptable_text_is_422_and_named(field, value):
    """F08, F09, E10: Text that cannot be stored or mailed is status 422, and the field is named."""
    error = refuse(msgspec.json.encode(fields(**{field: value})))

    assert error.status == 422
    assert [fault.field for fault in error.errors] == [field]


def test_all_faults_are_named_at_once():
    """Two bad fields are two errors."""
    error = refuse(msgspec.json.encode(fields(email="x", distance="y")))

    assert [fault.field for fault in error.errors] == ["email", "distance"]
    assert "email" in error.detail
    assert "distance" in error.detail


@pytest.mark.parametrize(
    ("sent", "stored"),
    [
        ("  Ada  ", "Ada"),
        ("Ada\u00a0 King", "Ada King"),
        ("Zoe\u0308", "Zo\u00eb"),
        ("אדה", "אדה"),
        ("愛達", "愛達"),
        ("O'Brien-Smith", "O'Brien-Smith"),
        ("Ada 🏃", "Ada 🏃"),
        ("<script>alert(1)</script>", "<script>alert(1)</script>"),
        ("Robert'); DROP TABLE runners;--", "Robert'); DROP TABLE runners;--"),
    ],
)
def test_names_are_normalised_and_otherwise_left_alone(sent, stored):
    """F08: Decomposed twins and odd spaces are made one; every script, and markup, stays text."""
    assert registration(firstName=sent).first_name == stored


@pytest.mark.parametrize(
    ("sent", "stored"),
    [
        (" ada@example.com ", "ada@example.com"),
        ("Ada@Example.COM", "Ada@example.com"),
        ("ada@example.com.", "ada@example.com"),
        ("ada@b\u00fccher.example", "ada@xn--bcher-kva.example"),
        ("ada@bu\u0308cher.example", "ada@xn--bcher-kva.example"),
        ("ada@\u4f8b\u3048\u3002jp", "ada@xn--r8jz45g.jp"),
        ("ada@XN--BCHER-KVA.example", "ada@xn--bcher-kva.example"),
        ("j\u00f6rg@example.com", "j\u00f6rg@example.com"),
        ("jo\u0308rg@example.com", "j\u00f6rg@example.com"),
        ("ada.l+race_1@mail.example.co.uk", "ada.l+race_1@mail.example.co.uk"),
    ],
)
def test_addresses_are_stored_as_they_travel(sent, stored):
    """E12: The domain is stored as punycode in lower case, the local part as written, in form C."""
    assert registration(email=sent).email == stored


@pytest.mark.parametrize(
    "twin", ["ADA@EXAMPLE.COM", "Ada@example.com", " ada@example.com", "ada@example.com.", "ada@EXAMPLE\u3002com"]
)
def test_twins_of_an_address_have_one_key(twin):
    """F10: Letter case, space around it and the root dot do not make another address."""
    assert registration(email=twin).email_key == registration().email_key


@pytest.mark.parametrize("other", ["a.da@example.com", "ada+race@example.com", "ada@mail.example.com"])
def test_other_addresses_have_other_keys(other):
    """F10: Dots and tags before the @ mean what the provider says, so they make another address."""
    assert registration(email=other).email_key != registration().email_key


def test_the_reference_is_stable_and_says_nothing():
    """E16: One address, one reference, in which neither the address nor the name is found."""
    runner = registration(email="ADA@example.com").runner()

    assert runner.reference == registration(firstName="Grace").runner().reference
    assert runner.reference == reference("ada@example.com")
    assert runner.reference != registration(email="eve@example.com").runner().reference
    assert len(runner.reference) == 32
    assert "ada" not in runner.reference


@given(st.binary(max_size=300))
def test_no_bytes_raise_anything_else(body):
    """F05: Whatever bytes come, the outcome is a registration or a named refusal."""
    assert refuse(body).status in {400, 422}


@given(st.text(max_size=120), st.text(max_size=120))
def test_no_text_raises_anything_else(name, email):
    """F08: Whatever text comes, it is stored in form C without control characters, or refused."""
    try:
        read = registration(firstName=name, email=email)
    except InvalidRegistrationError:
        return
    assert unicodedata.is_normalized("NFC", read.first_name + read.email)
    assert read.email.count("@") == 1
