"""What a registration is, and how bytes become one.

`parse_registration` is the only way in. Its rules for the JSON itself:

- The body is one JSON object. Unknown keys are ignored; of a key given twice the last one counts.
- Wrong shape (not JSON, nested too deeply, a key missing, a value that is no text) is status 400;
  text that cannot be accepted is 422. Either way every field at fault is named at once.
"""

import hashlib
from collections.abc import Callable
from functools import partial
from typing import Any, Final, Literal, TypeVar, cast, get_args

import msgspec

from marathon_app.addresses import parse_mailbox
from marathon_app.texts import clean_text

T = TypeVar("T")
Distance = Literal["10", "half", "full"]

DISTANCES: Final[tuple[str, ...]] = get_args(Distance)
MAX_NAME: Final = 100  # code points; the longest names on record fit
MAX_POSTAL_ADDRESS: Final = 500  # code points


class FieldError(msgspec.Struct, frozen=True):
    """One field that cannot be accepted, and why."""

    field: str
    message: str


class InvalidRegistrationError(ValueError):
    """What was sent is not a registration; `errors` says why, for the sender's eyes."""

    def __init__(self, status: int, detail: str, errors: tuple[FieldError, ...] = ()) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.errors = errors


class Runner(msgspec.Struct, frozen=True, kw_only=True):
    """What the confirmation needs to know of a registration, and no more."""

    reference: str  # stable for one e-mail address, and tells nothing about it
    first_name: str
    email: str
    distance: Distance


class Registration(msgspec.Struct, frozen=True, kw_only=True):
    """A checked registration: each text normalised, the e-mail address exactly one mailbox."""

    first_name: str
    last_name: str
    email: str
    email_key: str
    address: str
    distance: Distance

    def runner(self) -> Runner:
        """Return the part that the confirmation needs."""
        return Runner(
            reference=reference(self.email_key),
            first_name=self.first_name,
            email=self.email,
            distance=self.distance,
        )


def reference(email_key: str) -> str:
    """Return the registration's reference: 32 hexadecimal digits made from the address's key.

    It needs no row, so every execution has the same one, also where nothing is stored yet.
    """
    return hashlib.blake2b(email_key.encode(), digest_size=16, person=b"marathon-runner").hexdigest()


class _Submitted(msgspec.Struct, rename="camel"):
    """The fields as they come. `Any`, so that the checks below see each of them."""

    first_name: Any = msgspec.UNSET
    last_name: Any = msgspec.UNSET
    email: Any = msgspec.UNSET
    address: Any = msgspec.UNSET
    distance: Any = msgspec.UNSET


_decoder: Final = msgspec.json.Decoder(_Submitted)


def parse_registration(body: bytes) -> Registration:
    """Read a registration from the body of a request.

    Raises:
        InvalidRegistrationError: It is not one; nothing of it was kept.
    """
    sent = _decode(body)
    _check_types(sent)
    errors: list[FieldError] = []

    def read(field: str, reader: Callable[[str], T], text: str) -> T | None:
        try:
            return reader(text)
        except ValueError as error:
            errors.append(FieldError(field, str(error)))
            return None

    first_name = read("firstName", partial(clean_text, max_length=MAX_NAME), sent.first_name)
    last_name = read("lastName", partial(clean_text, max_length=MAX_NAME), sent.last_name)
    mailbox = read("email", parse_mailbox, sent.email)
    address = read("address", partial(clean_text, max_length=MAX_POSTAL_ADDRESS), sent.address)
    distance = read("distance", _read_distance, sent.distance)
    if not (first_name and last_name and mailbox and address and distance):
        raise InvalidRegistrationError(422, _summary(errors), tuple(errors))
    return Registration(
        first_name=first_name,
        last_name=last_name,
        email=mailbox.address,
        email_key=mailbox.key,
        address=address,
        distance=distance,
    )


def _decode(body: bytes) -> _Submitted:
    if not body:
        raise InvalidRegistrationError(400, "The body is empty; send a JSON object.")
    try:
        return _decoder.decode(body)
    except msgspec.ValidationError:
        detail = "The body must be a JSON object with ordinary numbers."
    except RecursionError:
        detail = "The JSON is nested too deeply."
    except (msgspec.DecodeError, UnicodeDecodeError):
        detail = "The body is not valid JSON in UTF-8."
    raise InvalidRegistrationError(400, detail)


def _check_types(sent: _Submitted) -> None:
    errors: list[FieldError] = []
    for name, field in zip(sent.__struct_fields__, sent.__struct_encode_fields__, strict=True):
        value = getattr(sent, name)
        if value is msgspec.UNSET:
            errors.append(FieldError(field, "is missing"))
        elif not isinstance(value, str):
            errors.append(FieldError(field, f"must be text, not {_kind(value)}"))
    if errors:
        raise InvalidRegistrationError(400, _summary(errors), tuple(errors))


def _kind(value: object) -> str:
    names = {type(None): "null", bool: "true or false", list: "a list", dict: "an object"}
    return names.get(type(value), "a number")


def _read_distance(text: str) -> Distance:
    if text not in DISTANCES:
        message = 'must be one of "10", "half" and "full"'
        raise ValueError(message)
    return cast("Distance", text)


def _summary(errors: list[FieldError]) -> str:
    return "; ".join(f"{error.field} {error.message}" for error in errors) + "."
