"""What text people may send: normalised, visible, and of bounded length.

The rules, for every text of a registration:

- Unicode is stored in normal form C, so that composed and decomposed twins are one.
- Refused: control characters (line breaks among them), lone surrogates, private use, everything
  invisible (zero-width characters, joiners, soft hyphens, fillers) and the marks that change the
  direction of the text around them. Right-to-left letters and emoji are welcome.
- A run of spaces of any kind is stored as one space; none are kept at either end.
- Length is counted in code points, after all of this.
"""

import unicodedata
from typing import Final

# Invisible, though Unicode does not file them under format characters.
_FILLERS: Final = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u2800\u3164\uffa0")
_REFUSED: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})
_IGNORABLE: Final = range(0xE0000, 0xE1000)  # tags and variation selectors, assigned or not
_NONCHARACTERS: Final = range(0xFDD0, 0xFDF0)
_LAST_TWO: Final = range(0xFFFE, 0x10000)  # of each plane: noncharacters too


def check_characters(text: str) -> None:
    """Refuse characters that no name and no address has any use for.

    Raises:
        ValueError: The text has one; the message names it by its number only.
    """
    for character in text:
        number = ord(character)
        if (
            unicodedata.category(character) in _REFUSED
            or character in _FILLERS
            or number in _IGNORABLE
            or number in _NONCHARACTERS
            or number & 0xFFFF in _LAST_TWO
        ):
            message = f"must not contain the character U+{number:04X}"
            raise ValueError(message)


def clean_text(text: str, max_length: int) -> str:
    """Return the text as it is stored.

    Args:
        text: What was sent.
        max_length: How many code points it may have once it is clean.

    Raises:
        ValueError: It is empty, too long or has a refused character; the message is for the sender.
    """
    check_characters(text)
    clean = " ".join(unicodedata.normalize("NFC", text).split())
    if not clean:
        message = "must not be empty"
        raise ValueError(message)
    if len(clean) > max_length:
        message = f"must not be longer than {max_length} characters"
        raise ValueError(message)
    return clean
