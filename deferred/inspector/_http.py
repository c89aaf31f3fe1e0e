"""The little of HTTP that the inspector speaks: an answer and its headers, a bounded body."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, TypeAlias

import msgspec

from deferred.inspector._access import Refused

__all__ = [
    "CSV",
    "HTML",
    "JSON",
    "POLICY",
    "SECURITY",
    "TEXT",
    "ASGIApp",
    "Answer",
    "Receive",
    "Scope",
    "Send",
    "as_json",
    "read_body",
]

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
ASGIApp: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "trusted-types 'none'; require-trusted-types-for 'script'"
)
"""Nothing but our own files, no text that is taken for markup or code, in nobody's frame."""

SECURITY: Mapping[str, str] = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
HTML = "text/html; charset=utf-8"
JSON = "application/json"
TEXT = "text/plain; charset=utf-8"
CSV = "text/csv; charset=utf-8"

_LONGEST_BODY = 64 * 1024


class Answer(msgspec.Struct, frozen=True):
    """A whole response."""

    body: bytes
    kind: str = JSON
    status: int = 200
    headers: Mapping[str, str] = {}

    async def send(self, send: Send, *, head: bool = False) -> None:
        """Send it; of a HEAD request only its head."""
        headers = {"Content-Type": self.kind, "Content-Length": str(len(self.body)), **SECURITY, **self.headers}
        encoded = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": self.status, "headers": encoded})
        await send({"type": "http.response.body", "body": b"" if head else self.body})


def as_json(data: Any, status: int = 200) -> Answer:
    r"""Return an answer in JSON that is safe wherever it is pasted, also in a page.

    Example:
        >>> as_json("</script>\u2028").body
        b'"\\u003c/script\\u003e\\u2028"'
    """
    try:
        body = msgspec.json.encode(data)
    except UnicodeEncodeError:  # a name or an error holds half a character, as file names of other encodings do
        body = msgspec.json.encode(_whole(msgspec.to_builtins(data)))
    for raw, escaped in (
        (b"<", b"\\u003c"),
        (b">", b"\\u003e"),
        (b"\xe2\x80\xa8", b"\\u2028"),
        (b"\xe2\x80\xa9", b"\\u2029"),
    ):
        body = body.replace(raw, escaped)
    return Answer(body, JSON, status)


def _whole(data: Any) -> Any:
    """Return data of plain types with each half of a character shown as what it is."""
    if isinstance(data, str):
        return data.encode("utf-8", "backslashreplace").decode()
    if isinstance(data, dict):
        items: dict[Any, Any] = data  # pyright: ignore[reportUnknownVariableType]  # of JSON
        return {_whole(name): _whole(value) for name, value in items.items()}
    if isinstance(data, list | tuple):
        values: Any = data  # pyright: ignore[reportUnknownVariableType]  # same
        return [_whole(value) for value in values]
    return data


async def read_body(receive: Receive) -> bytes:
    """Return the body of a request.

    Raises:
        Refused: It is longer than an action needs, or broke off.
    """
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refused(400, "The request broke off.")
        body += bytes(message.get("body", b""))
        if len(body) > _LONGEST_BODY:
            raise Refused(413, "That is more than an action needs.")
        if not message.get("more_body", False):
            return body
