"""The inspector: a small ASGI app beside the one that it looks into."""

from __future__ import annotations

import re
from importlib import resources
from typing import Any, Final
from urllib.parse import quote

from deferred._supervisor import Supervisor
from deferred._task import current_unit
from deferred.inspector._access import Access, Auth, Refused, headers_of
from deferred.inspector._api import Api
from deferred.inspector._http import HTML, TEXT, Answer, ASGIApp, Receive, Scope, Send, read_body
from deferred.inspector._recorder import Recorder
from deferred.inspector._stream import Streams

__all__ = ["Inspector"]

_KINDS: Final = {"css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8", "html": HTML}
_ACTIONS: Final = frozenset({"api/dead/retry", "api/dead/delete", "api/forget"})
_REQUESTS: Final = frozenset({"http", "websocket"})
_HEADS: Final = frozenset({"GET", "HEAD"})
_FILES: Final = {
    file.name: file.read_bytes()
    for file in resources.files("deferred.inspector").joinpath("static").iterdir()
    if file.name.rpartition(".")[2] in _KINDS
}
"""The page; read with the code, as no event loop is to wait for a file."""


class Inspector:
    """A page that shows each request and everything that outlived it; an ASGI app to be mounted.

    It records from the moment it is made, and lives as long as the supervisor. Without `auth`
    it serves this machine alone, and only while debugging.

    Args:
        supervisor: Whose work is shown.
        auth: Who may come in: `Password({name: password})`, or any function, async or not, that
            takes the ASGI scope and returns a `Person` or None. Without it a request is answered
            only if it comes from this machine (a loopback address, a loopback host name, no
            proxy's headers) and `debug` holds.
        debug: Whether this is a developer's own machine. When None, the environment's
            ``DEFERRED_DEBUG=1`` or Python's development mode (``-X dev``) say so.
        hosts: The host names under which it may be asked for, without ports. When None: any with
            `auth`, else the loopback names.
        max_requests: How many requests are kept; the oldest makes room.
        max_bytes: About how many bytes they may take.
        max_age: Seconds after which they are forgotten.
        arguments: Whether arguments of tasks that have ended are kept: by reference where they
            are plain values, else as a short text without secrets. Nobody sees them unasked.
        ignore: How the paths begin (``"/health/"``) of requests that are shown only if they leave
            work behind: what a load balancer or a page asks for all the time.

    Raises:
        TypeError: `auth` is neither None nor callable, or `hosts` or `ignore` is one string.
        ValueError: A bound is not positive.

    Example:
        >>> from deferred.inspector import Password
        >>> inspector = Inspector(Supervisor(), auth=Password({"ada": "difference engine"}))
    """

    def __init__(
        self,
        supervisor: Supervisor,
        *,
        auth: Auth | None = None,
        debug: bool | None = None,
        hosts: tuple[str, ...] | list[str] | None = None,
        max_requests: int = 1000,
        max_bytes: int = 32 * 1024 * 1024,
        max_age: float = 3600.0,
        arguments: bool = True,
        ignore: tuple[str, ...] | list[str] = (),
    ) -> None:
        for name, bound in (("max_requests", max_requests), ("max_bytes", max_bytes), ("max_age", max_age)):
            if not bound > 0:
                message = f"{name} must be more than 0, not {bound!r}"
                raise ValueError(message)
        for name, several, what in (("ignore", ignore, "beginnings of paths"), ("hosts", hosts, "host names")):
            if isinstance(several, str):
                message = f"{name} must be a list of {what}, such as [{several!r}], not one string"
                raise TypeError(message)
        self._access = Access(auth, debug=debug, hosts=None if hosts is None else tuple(hosts))
        self._recorder = Recorder(
            supervisor, count=max_requests, size=max_bytes, age=max_age, arguments=arguments, ignore=tuple(ignore)
        )
        self._api = Api(self._recorder, self._access)
        self._streams = Streams(self._recorder)

    def mount(self, app: ASGIApp, path: str = "/_deferred") -> ASGIApp:
        """Put the inspector beside an ASGI app, outside of its middleware; the result is an ASGI app.

        Args:
            app: Gets everything but requests below `path`.
            path: Where the inspector is to be found.

        Raises:
            ValueError: `path` is none.
        """
        place = path.rstrip("/")
        if not place.startswith("/"):
            message = f"path must be a path below the root, such as '/_deferred', not {path!r}"
            raise ValueError(message)

        async def mounted(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] in _REQUESTS:
                root: str = scope.get("root_path", "").rstrip("/")
                where: str = scope["path"]
                if root and where.startswith(f"{root}/"):
                    where = where[len(root) :]
                if where == place or where.startswith(f"{place}/"):
                    await self({**scope, "root_path": root + place, "path": root + where}, receive, send)
                    return
            await app(scope, receive, send)

        return mounted

    def close(self) -> None:
        """Record no more; for inspectors that end before their supervisor."""
        self._recorder.close()

    def forget(self, text: str = "") -> int:
        """Forget the recorded requests in which `text` is found, whoever's they are; all without a text.

        Returns:
            How many were forgotten. What has not ended yet stays.
        """
        return self._api.forget(text)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one scope."""
        if scope["type"] == "lifespan":
            await _serve_lifespan(receive, send)
            return
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
        if scope["type"] != "http":
            return
        unit: Any = current_unit.get(None)
        if unit is not None:
            self._recorder.ignore(unit)
        method = scope["method"]
        try:
            answer = await self._answer(method, scope, receive, send)
        except Refused as refusal:
            answer = Answer(refusal.text.encode(), TEXT, refusal.status, refusal.headers)
        if answer is not None:
            await answer.send(send, head=method == "HEAD")

    async def _answer(self, method: str, scope: Scope, receive: Receive, send: Send) -> Answer | None:
        """Return the answer; None when it has been sent already."""
        person = await self._access.enter(scope)
        path = _path(scope)
        if path in _ACTIONS:
            if method != "POST":
                raise Refused(405, "That is done by POST.", {"Allow": "POST"})
            self._access.check_action(scope, person)
            return await self._api.post(path.removeprefix("api/"), await read_body(receive), person)
        if method not in _HEADS:
            raise Refused(405, "There is nothing to be changed here.", {"Allow": "GET, HEAD"})
        if path is None:
            return Answer(b"", TEXT, 307, {"Location": _slashed(scope)})
        if path == "api/stream" and method == "GET":
            if self._streams.full:
                raise Refused(503, "Too many pages watch already.", {"Retry-After": "3"})
            await self._streams.serve(receive, send, _last_seen(scope))
            return None
        if path.startswith("api/"):
            return await self._api.get(path.removeprefix("api/"), scope, person)
        return self._file(path)

    @staticmethod
    def _file(path: str) -> Answer:
        name = "index.html" if not path else path.removeprefix("static/")
        body = _FILES.get(name)
        if body is None or (path and not path.startswith("static/")):
            raise Refused(404, "There is nothing here.")
        return Answer(body, _KINDS[name.rpartition(".")[2]])


def _path(scope: Scope) -> str | None:
    """Return the path below the place where the inspector is mounted; None if the slash is missing.

    Some servers and frameworks leave the prefix in the path, others have taken it off; one of
    them (Litestar) puts a slash to every end.
    """
    path: str = scope["path"]
    root: str = scope.get("root_path", "").rstrip("/")
    if root and (path == root or path.startswith(f"{root}/")):
        path = path[len(root) :]
    if path in {"", "/"} and not _asked(scope).endswith("/"):
        return None
    return path.strip("/") if not path.startswith("//") else path


def _asked(scope: Scope) -> str:
    """Return the path as the client has sent it, if the server tells; else what it was made into."""
    raw: bytes | None = scope.get("raw_path")
    path: str = scope["path"]
    return path if raw is None else raw.partition(b"?")[0].decode("latin-1")


def _slashed(scope: Scope) -> str:
    """Return where the page is: the same place with a slash, named without host and prefix."""
    return f"./{quote(_asked(scope).rpartition('/')[2], safe='%')}/"


def _last_seen(scope: Scope) -> int | None:
    """Return the last change that the client knows, from its header or, the first time, its address."""
    header = headers_of(scope).get(b"last-event-id", b"")
    found = re.search(rb"(?:^|&)since=(\d{1,15})(?:&|$)", bytes(scope.get("query_string", b"")))
    text = header if header.isdigit() and len(header) <= 15 else (found[1] if found else b"")
    return int(text) if text else None


async def _serve_lifespan(receive: Receive, send: Send) -> None:
    """Answer a server that runs the inspector as an app of its own."""
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await send({"type": "lifespan.shutdown.complete"})
