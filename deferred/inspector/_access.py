"""Who may see the inspector, and who may act in it.

Rules of this file: what is not allowed is refused, on every route; secrets are compared in a
time that says nothing of them; whoever guesses is slowed down; nothing is remembered in the
browser, so there is no session to steal.
"""

from __future__ import annotations

import base64
import binascii
import enum
import hashlib
import hmac
import inspect
import ipaddress
import os
import secrets
import sys
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, TypeAlias

import msgspec

__all__ = ["Access", "Auth", "Password", "Person", "Refused", "Role", "headers_of", "is_loopback"]

Scope: TypeAlias = MutableMapping[str, Any]

SHORTEST = 8
"""Characters of a password: fewer are guessed, however slowly."""
_FAILURES = 10
_ALL_FAILURES = 200
_WINDOW = 60.0
_ADDRESSES = 1000
_PROXIES = (b"x-forwarded", b"x-original-", b"x-envoy-", b"cf-", b"fastly-", b"x-amzn-", b"x-cluster-client")
_PROXY = frozenset({b"forwarded", b"x-real-ip", b"via", b"true-client-ip", b"x-client-ip", b"cdn-loop"})
_GUESSES = frozenset({b"authorization", b"cookie"})
_PORTS = {"http": ":80", "https": ":443"}
_DEBUG = "DEFERRED_DEBUG"


class Role(enum.Enum):
    """What somebody may do. A reader sees what happens; an operator also sees arguments, and acts."""

    READER = "reader"
    OPERATOR = "operator"


class Person(msgspec.Struct, frozen=True):
    """Who asks.

    Attributes:
        name: For the log of actions.
        role: What they may do.
    """

    name: str
    role: Role = Role.OPERATOR


Auth: TypeAlias = "Callable[[Scope], Awaitable[Person | None] | Person | None]"


class Refused(Exception):  # noqa: N818  # an answer, not an error
    """The request is answered with this status and this text."""

    def __init__(self, status: int, text: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(text)
        self.status, self.text, self.headers = status, text, dict(headers or {})


class Password:
    """HTTP Basic: who knows a password may come in. Lives as long as the inspector.

    Args:
        operators: Names and passwords of those who see arguments and act.
        readers: Names and passwords of those who only look.

    Raises:
        ValueError: A password has fewer than 8 characters, a name holds a colon, or nobody is named.

    Example:
        >>> Password({"ada": "difference engine"}, readers={"guest": "only looking"})
        <Password of ada, guest>
    """

    def __init__(self, operators: Mapping[str, str], readers: Mapping[str, str] | None = None) -> None:
        people = [(Person(name), word) for name, word in operators.items()]
        people += [(Person(name, Role.READER), word) for name, word in (readers or {}).items()]
        if not people:
            message = "nobody could come in: name at least one operator or reader"
            raise ValueError(message)
        for person, word in people:
            if len(word) < SHORTEST or ":" in person.name:
                message = (
                    f"{person.name!r} needs a password of at least {SHORTEST} characters, and a name without a colon"
                )
                raise ValueError(message)
        self._people = [(person, _digest(f"{person.name}:{word}")) for person, word in people]

    def __repr__(self) -> str:
        """Show who may come in, and never how."""
        return f"<Password of {', '.join(person.name for person, _ in self._people)}>"

    def __call__(self, scope: Scope) -> Person | None:
        """Return who asks, if they know their password; all are compared, whoever it is."""
        kind, _, given = headers_of(scope).get(b"authorization", b"").partition(b" ")
        try:
            plain = base64.b64decode(given.strip(), validate=True) if kind.lower() == b"basic" else b""
        except (binascii.Error, ValueError):
            plain = b""
        digest = hashlib.sha256(plain).digest()
        found: Person | None = None
        for person, known in self._people:
            if hmac.compare_digest(digest, known):
                found = person
        return found


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


class _Throttle:
    """How often an address was refused lately. Lives as long as the inspector."""

    def __init__(self) -> None:
        self._failures: OrderedDict[str, list[float]] = OrderedDict()
        self._all: list[float] = []

    def check(self, address: str) -> None:
        """Refuse an address that has guessed too often, and everybody when all addresses together have."""
        now = time.monotonic()
        mine = self._failures.get(address, [])
        for times, limit in ((mine, _FAILURES), (self._all, _ALL_FAILURES)):
            times[:] = [at for at in times if at > now - _WINDOW]
            if len(times) >= limit:
                wait = str(max(1, int(times[0] + _WINDOW - now) + 1))
                raise Refused(429, "Too many wrong passwords; wait a minute.", {"Retry-After": wait})

    def note(self, address: str) -> None:
        """Note that an address was refused."""
        now = time.monotonic()
        self._failures.setdefault(address, []).append(now)
        self._failures.move_to_end(address)
        self._all.append(now)
        while len(self._failures) > _ADDRESSES:
            self._failures.popitem(last=False)


class Access:
    """The rule of one inspector. Lives as long as it.

    Args:
        auth: Who may come in; None for those at this machine, while debugging.
        debug: Whether this is a developer's own machine; found in the environment when None.
        hosts: The names under which the inspector may be asked for; any, with `auth`, when None.
    """

    def __init__(self, auth: Any, *, debug: bool | None, hosts: tuple[str, ...] | None) -> None:
        if auth is not None and not callable(auth):
            message = (
                "auth must be None, `Password({name: password})`, or a function that takes the ASGI scope and "
                f"returns a Person or None, not {type(auth).__name__}"
            )
            raise TypeError(message)
        self._auth: Any = auth
        self._debug = _is_debugging() if debug is None else debug
        self._hosts = None if hosts is None else frozenset(host.lower() for host in hosts)
        self._throttle = _Throttle()
        self._secret = secrets.token_bytes(32)

    async def enter(self, scope: Scope) -> Person:
        """Return who asks, or refuse."""
        self._check_host(scope)
        if self._auth is None:
            self._check_loopback(scope)
            return Person("local")
        address = str((scope.get("client") or ("unknown",))[0])
        self._throttle.check(address)
        person: Any = None
        try:
            person = self._auth(scope)
            if inspect.isawaitable(person):
                person = await person
        finally:  # whoever makes it raise guesses too
            if not isinstance(person, Person) and _GUESSES & headers_of(scope).keys():
                self._throttle.note(address)
        if isinstance(person, Person):
            return person
        challenge = {"WWW-Authenticate": 'Basic realm="deferred", charset="UTF-8"'}
        raise Refused(401, "Who are you?", challenge if isinstance(self._auth, Password) else {})

    def _check_host(self, scope: Scope) -> None:
        """Refuse names that lead here but are not ours: a page of somebody else's may have rebound one."""
        name = _host_name(headers_of(scope).get(b"host", b""))
        if self._hosts is not None:
            allowed = name in self._hosts
        else:
            allowed = self._auth is not None or name == "localhost" or is_loopback(name)
        if not allowed:
            raise Refused(400, "This host name is not served here; `Inspector(hosts=[...])` names those that are.")

    def _check_loopback(self, scope: Scope) -> None:
        client = scope.get("client")
        forwarded = any(_is_of_a_proxy(bytes(name).lower()) for name, _ in scope.get("headers", ()))
        if not self._debug or not client or not is_loopback(str(client[0])) or forwarded:
            text = (
                "The inspector is closed: without `auth` it serves this machine alone, without a proxy between, and "
                f"only while debugging. Give it `Inspector(supervisor, auth=...)`, or set {_DEBUG}=1 at home."
            )
            raise Refused(403, text)

    def token(self, person: Person) -> str:
        """Return what an action of this person has to bring along: no page of another origin can read it."""
        return hmac.new(self._secret, f"{person.role.value}:{person.name}".encode(), "sha256").hexdigest()

    def check_action(self, scope: Scope, person: Person) -> None:
        """Refuse an action that this person may not do, or that another page has made them do."""
        headers = headers_of(scope)
        origin = headers.get(b"origin", b"").decode("latin-1").lower()
        scheme, _, host = origin.partition("://")
        port = _PORTS.get(scheme)
        ours = headers.get(b"host", b"").decode("latin-1").lower()
        if port is None or not host or host.removesuffix(port) != ours.removesuffix(port):
            raise Refused(403, "An action must come from the inspector's own page: the Origin header is another.")
        if headers.get(b"sec-fetch-site", b"same-origin") != b"same-origin":
            raise Refused(403, "An action must come from the inspector's own page.")
        token = headers.get(b"x-deferred-token", b"")
        if not hmac.compare_digest(token, self.token(person).encode()):
            raise Refused(403, "The action's token is missing or old; load the page again.")
        if person.role is not Role.OPERATOR:
            raise Refused(403, "You may look, but not act.")


def headers_of(scope: Scope) -> dict[bytes, bytes]:
    """Return the headers of a request; of one that is there twice, the last."""
    return {bytes(name).lower(): bytes(value) for name, value in scope.get("headers", ())}


def is_loopback(name: str) -> bool:
    """Say whether an address is one of this machine's own.

    Example:
        >>> is_loopback("127.0.0.1"), is_loopback("::1"), is_loopback("10.0.0.1"), is_loopback("localhost.evil.example")
        (True, True, False, False)
    """
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool(address.is_loopback or (mapped is not None and mapped.is_loopback))


def _is_of_a_proxy(name: bytes) -> bool:
    return name in _PROXY or name.startswith(_PROXIES)


def _host_name(header: bytes) -> str:
    text = header.decode("latin-1").lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0].rstrip(".")


def _is_debugging() -> bool:
    said = os.environ.get(_DEBUG, "").strip().lower()
    return sys.flags.dev_mode if not said else said in {"1", "true", "yes", "on"}
