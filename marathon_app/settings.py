"""What the environment says: read once, checked whole, every fault named.

`load_settings` reads the `MARATHON_*` variables and nothing else. It collects every fault before
it complains, so one start is enough to see them all; a name it does not know is a fault too, as a
misspelt variable would otherwise be a setting silently ignored. Set to nothing means not set.

| variable | default | meaning |
|---|---|---|
| MARATHON_HOST | 127.0.0.1 | the address to listen on |
| MARATHON_PORT | 8000 | the port; 0 takes a free one |
| MARATHON_DATABASE_URL | sqlite:///var/marathon.db | a file, relative to the working directory; or postgresql:// |
| MARATHON_SMTP_URL | (embedded mailbox) | smtp://, smtps:// or smtp+starttls://, user:password@host:port |
| MARATHON_MAIL_FROM | registration@marathon.example | the sender's address |
| MARATHON_DEMO_DELAYS | (none) | insert=180,mail=350: milliseconds added, for the demonstration |
| MARATHON_DEMO_RESTART | no | yes: start again when killed, for the demonstration |
| MARATHON_SERVE | yes | no: a worker of its own sends the stored mails, not this process |
| MARATHON_OUTBOX | beside the SQLite file | the file that keeps the embedded mailbox's mails through a kill |
| MARATHON_POSTGRES | in the system's temporary folder | `make run-postgres` alone: the folder for its data |
| MARATHON_RATE_LIMIT | 600 for peers that are not loopback | registrations a minute from one peer; 0 is off |
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Final
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

import msgspec

from marathon_app.addresses import parse_mailbox

PREFIX: Final = "MARATHON_"
DEFAULT_RATE_LIMIT: Final = 600  # a minute and a peer: a whole office behind one address fits in

Port = Annotated[int, msgspec.Meta(ge=0, le=65_535)]
PerMinute = Annotated[int, msgspec.Meta(ge=0, le=1_000_000)]
# A minute is longer than a drain, and long enough for a demonstration.
Milliseconds = Annotated[float, msgspec.Meta(ge=0.0, le=60_000.0)]

SMTP_SECURITY: Final = {"smtp": "none", "smtps": "tls", "smtp+starttls": "starttls"}
SMTP_PORTS: Final = {"smtp": 25, "smtps": 465, "smtp+starttls": 587}


class SettingsError(ValueError):
    """At least one variable cannot be used; `str()` names each, and the mend."""

    def __init__(self, faults: Mapping[str, str]) -> None:
        self.faults = dict(faults)
        lines = [f"  {name}: {fault}" for name, fault in sorted(self.faults.items())]
        super().__init__("\n".join(["The settings cannot be used:", *lines]))


class MailServer(msgspec.Struct, frozen=True, kw_only=True):
    """Where mail goes. Its `repr` never shows the password."""

    host: str
    port: int
    security: str = "none"  # "none", "tls" from the first byte, or "starttls", then required
    username: str | None = None
    password: str | None = None

    def __repr__(self) -> str:
        """Show everything but the credentials."""
        login = ", with login" if self.username is not None else ""
        return f"MailServer({self.host}:{self.port}, security={self.security}{login})"

    __str__ = __repr__


class PostgresServer(msgspec.Struct, frozen=True):
    """Where the database is. Its `repr` never shows the password.

    Attributes:
        url: `postgresql://user:password@host/database`, with libpq's options.
    """

    url: str

    def __repr__(self) -> str:
        """Show everything but the credentials and the options."""
        parts = urlsplit(self.url)
        return f"PostgresServer({parts.netloc.rpartition('@')[2]}{parts.path})"

    __str__ = __repr__


class DemoDelays(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much longer the two steps take, in milliseconds; for the demonstration only."""

    insert: Milliseconds = 0.0
    mail: Milliseconds = 0.0


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The checked settings of one app. They live as long as the process."""

    host: str = "127.0.0.1"
    port: int = 8000
    database: Path | PostgresServer = Path("var/marathon.db")  # a path: SQLite
    mail_server: MailServer | None = None  # None: the embedded mailbox
    mail_from: str = "registration@marathon.example"
    demo_delays: DemoDelays = DemoDelays()
    demo_restart: bool = False
    serve: bool = True
    postgres_folder: Path | None = None  # None: in the system's temporary folder
    outbox: Path | None = None  # None: beside the SQLite file; with PostgreSQL, in memory alone
    rate_limit: int | None = None  # None: the default, from which loopback peers are exempt


def load_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Read the settings from the environment.

    Args:
        environ: The variables; the process's own by default.

    Raises:
        SettingsError: At least one variable is unknown or cannot be used.
    """
    given = os.environ if environ is None else environ
    values: dict[str, object] = {}
    faults: dict[str, str] = {}
    for name, text in given.items():
        if not name.startswith(PREFIX):
            continue
        if name not in VARIABLES:
            faults[name] = f"is not a setting; there are {', '.join(VARIABLES)}"
            continue
        field, read = VARIABLES[name]
        if not text.strip():
            continue  # set to nothing is not set, as compose files and make have it
        try:
            values[field] = read(text.strip())
        except ValueError as error:  # msgspec.ValidationError is one
            faults[name] = str(error)
    if faults:
        raise SettingsError(faults)
    return Settings(**values)  # type: ignore[arg-type]  # each value was made by its field's reader


def _read_host(text: str) -> str:
    if any(character.isspace() or character in "/@[]" for character in text):
        message = f"{text!r} is not a host; give a name or an address, such as 127.0.0.1 or ::1"
        raise ValueError(message)
    return text


def _read_port(text: str) -> int:
    try:
        return msgspec.convert(text, Port, strict=False)
    except msgspec.ValidationError:
        message = f"{text!r} is not a port; give a number from 0 to 65535"
        raise ValueError(message) from None


def _read_database_url(text: str) -> Path | PostgresServer:
    try:
        parts = urlsplit(text)
    except ValueError:
        parts = SplitResult("", "", "", "", "")
    if parts.scheme.split("+")[0] in {"postgresql", "postgres"}:
        return _read_postgres_url(text, parts)
    if parts.scheme != "sqlite" or parts.netloc:
        message = "use sqlite:///path/to/file.db, or sqlite:////absolute/path/to/file.db"
        raise ValueError(message)
    if parts.query or parts.fragment:
        message = "a SQLite URL takes no options; use it without everything from the '?' or '#' on"
        raise ValueError(message)
    path = unquote(parts.path.removeprefix("/"))
    if path in {"", ":memory:"} or path.endswith("/") or "\x00" in path:
        message = "needs a file, which keeps the runners between runs; use sqlite:///var/marathon.db"
        raise ValueError(message)
    return Path(path)


def _read_postgres_url(text: str, parts: SplitResult) -> PostgresServer:
    try:
        has_port = parts.port is None or parts.port > 0
    except ValueError:
        has_port = False
    options = parse_qs(parts.query, keep_blank_values=True)
    has_host = bool(parts.hostname) or "host" in options
    if not has_port or not has_host or not parts.path.strip("/") or parts.fragment:
        # The text may hold a password: it is never repeated.
        message = "use postgresql://user:password@host:5432/database ('/', '?', '#' and '@' in a password are escaped)"
        raise ValueError(message)
    return PostgresServer(f"postgresql://{text.partition('://')[2]}")


def _read_path(text: str) -> Path:
    if "\x00" in text:
        message = f"{text!r} is not a path; give one that can be written, such as var/outbox.jsonl"
        raise ValueError(message)
    return Path(text)


def _read_smtp_url(text: str) -> MailServer:
    mend = "use smtp://host:25, smtps://user:password@host:465 or smtp+starttls://user:password@host:587"
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        # The text may hold a password: it is never repeated.
        message = f"is not a URL with a port from 1 to 65535; {mend}"
        raise ValueError(message) from None
    if parts.scheme not in SMTP_SECURITY or not parts.hostname or port == 0:
        message = f"is not the address of a mail server; {mend}"
        raise ValueError(message)
    if parts.path.strip("/") or parts.query or parts.fragment:
        message = f"takes nothing after the port ('/', '?' and '#' in a password are %2F, %3F, %23); {mend}"
        raise ValueError(message)
    if (parts.username is None) != (parts.password is None):
        message = f"needs both user and password, or neither; {mend}"
        raise ValueError(message)
    return MailServer(
        host=parts.hostname,
        port=port or SMTP_PORTS[parts.scheme],
        security=SMTP_SECURITY[parts.scheme],
        username=None if parts.username is None else unquote(parts.username),
        password=None if parts.password is None else unquote(parts.password),
    )


def _read_mail_from(text: str) -> str:
    try:
        return parse_mailbox(text).address
    except ValueError as error:
        message = f"{text!r} {error}; give one address, such as registration@marathon.example"
        raise ValueError(message) from None


def _read_demo_delays(text: str) -> DemoDelays:
    mend = "give milliseconds from 0 to 60000, such as insert=180,mail=350"
    pairs = [item.partition("=") for item in text.split(",")]
    given = {name.strip(): amount.strip() for name, _, amount in pairs}
    if len(given) < len(pairs):
        message = f"{text!r} names a step twice; {mend}"
        raise ValueError(message)
    try:
        return msgspec.convert(given, DemoDelays, strict=False)
    except msgspec.ValidationError:
        message = f"{text!r} is not understood; {mend}"
        raise ValueError(message) from None


def _read_yes_or_no(text: str) -> bool:
    if text.lower() not in {"yes", "no"}:
        message = f"{text!r} is not understood; give yes or no"
        raise ValueError(message)
    return text.lower() == "yes"


def _read_rate_limit(text: str) -> int:
    try:
        return msgspec.convert(text, PerMinute, strict=False)
    except msgspec.ValidationError:
        message = f"{text!r} is not a number of registrations a minute; give 0 (off) to 1000000"
        raise ValueError(message) from None


VARIABLES: Final[Mapping[str, tuple[str, Callable[[str], object]]]] = {
    "MARATHON_HOST": ("host", _read_host),
    "MARATHON_PORT": ("port", _read_port),
    "MARATHON_DATABASE_URL": ("database", _read_database_url),
    "MARATHON_SMTP_URL": ("mail_server", _read_smtp_url),
    "MARATHON_MAIL_FROM": ("mail_from", _read_mail_from),
    "MARATHON_DEMO_DELAYS": ("demo_delays", _read_demo_delays),
    "MARATHON_DEMO_RESTART": ("demo_restart", _read_yes_or_no),
    "MARATHON_SERVE": ("serve", _read_yes_or_no),
    "MARATHON_OUTBOX": ("outbox", _read_path),
    "MARATHON_POSTGRES": ("postgres_folder", _read_path),
    "MARATHON_RATE_LIMIT": ("rate_limit", _read_rate_limit),
}
