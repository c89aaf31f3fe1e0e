"""E-mail addresses: exactly one mailbox, and the key that tells two apart.

The rules:

- One `local@domain`: no display name, no list, no comment, no quoted local part. Nothing behind
  this module may be relied on to refuse `a@example.com, b@example.com`.
- The domain is stored as it travels: lower case, internationalised labels as punycode (IDNA 2008
  after UTS 46 mapping), without a trailing dot; it has at least two labels and no address literal.
- The local part is stored as it was written, in normal form C; letters beyond ASCII are allowed
  (whether the mail server can take them shows when the mail is sent).
- Two addresses are the same when their keys are: the whole address, case-folded. Dots and plus
  tags in the local part are kept, since only the provider knows what they mean.
"""

import re
import unicodedata
from typing import Final

import idna
import msgspec

from marathon_app.texts import check_characters

MAX_ADDRESS: Final = 254  # octets: RFC 5321's path of 256 without its angle brackets
MAX_LOCAL: Final = 64  # octets, RFC 5321

_ATOM: Final = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~\-\u0080-\U0010ffff]+")
_LETTERS: Final = frozenset("LMN")  # major categories: letters, marks, numbers


class Mailbox(msgspec.Struct, frozen=True):
    """One mailbox, as it is stored and as it is compared."""

    address: str
    key: str


def parse_mailbox(text: str) -> Mailbox:
    """Read one address.

    Args:
        text: What was sent; white space around it is dropped.

    Raises:
        ValueError: It is not exactly one mailbox; the message is for the sender.
    """
    check_characters(text)
    address = unicodedata.normalize("NFC", text.strip())
    if not address:
        message = "must not be empty"
        raise ValueError(message)
    if len(address) > MAX_ADDRESS:
        message = f"must not be longer than {MAX_ADDRESS} characters"
        raise ValueError(message)
    local, at, domain = address.rpartition("@")
    if not at or not _is_local_part(local):
        message = "must be one e-mail address, such as ada@example.com"
        raise ValueError(message)
    address = f"{local}@{_ascii_domain(domain)}"
    if len(local.encode()) > MAX_LOCAL or len(address.encode()) > MAX_ADDRESS:
        message = f"must not be longer than {MAX_LOCAL} bytes before the @ and {MAX_ADDRESS} in all"
        raise ValueError(message)
    return Mailbox(address, unicodedata.normalize("NFC", address.casefold()))


def _is_local_part(local: str) -> bool:
    return all(
        _ATOM.fullmatch(atom)
        and all(character.isascii() or unicodedata.category(character)[0] in _LETTERS for character in atom)
        for atom in local.split(".")
    )


def _ascii_domain(domain: str) -> str:
    try:
        # UTS 46 maps case, width and the ideographic full stops; std3 refuses all but LDH in ASCII.
        name = idna.encode(domain, uts46=True, std3_rules=True).decode("ascii").removesuffix(".")
    except UnicodeError:  # idna.IDNAError is one
        name = ""
    *labels, last = name.split(".")
    if not labels or last.isdigit():
        message = "must have a domain that exists on the Internet after the @, such as example.com"
        raise ValueError(message)
    return name
