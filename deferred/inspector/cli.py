"""The command ``trace``: the inspector's waterfalls in the terminal."""

from __future__ import annotations

import argparse
import base64
import http.client
import os
import shutil
import sys
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

import msgspec

from deferred.inspector._layout import printable
from deferred.inspector._views import RequestView
from deferred.inspector.svg import render as render_svg
from deferred.inspector.text import render

__all__ = ["add_arguments", "main", "run"]

AUTH = "DEFERRED_INSPECTOR_AUTH"
"""The environment's variable with ``name:password``, which belongs on no command line."""

_TIMEOUT = 10.0
_DESCRIPTION = "Draw the latest requests of an inspector, or one of them, as waterfalls."


class _Page(msgspec.Struct, frozen=True):
    """What the inspector answers."""

    requests: list[RequestView]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes, for whoever has a parser of their own."""
    parser.description = _DESCRIPTION
    parser.add_argument("url", help="where the inspector is, or the address of one request in it")
    parser.add_argument("-n", "--last", type=int, default=5, help="how many of the latest requests (5)")
    parser.add_argument("--failed", action="store_true", help="only requests in which something failed")
    parser.add_argument("--svg", action="store_true", help="draw one request as an SVG document")
    parser.add_argument("--width", type=int, default=0, help="columns; those of the terminal unless given")


def run(options: argparse.Namespace) -> int:
    """Draw.

    Returns:
        The exit code: 0; 1 when the inspector does not answer as one; 3 when there is nothing to draw.
    """
    try:
        requests = _fetch(options.url, max(1, options.last), failed=options.failed)
    except (OSError, ValueError, http.client.HTTPException, msgspec.MsgspecError) as error:
        # What a stranger's server says may hold anything that moves a cursor.
        sys.stderr.write(f"{printable(_complaint(options.url, error))}\n")
        return 1
    if not requests:
        sys.stderr.write("Nothing is recorded there yet.\n")
        return 3
    unicode = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    if options.svg:
        drawn = render_svg(requests[0])
        sys.stdout.write(drawn if unicode else drawn.encode("ascii", "xmlcharrefreplace").decode())
        return 0
    terminal = sys.stdout.isatty()
    width = options.width or shutil.get_terminal_size((100, 24)).columns
    colour = terminal and "NO_COLOR" not in os.environ
    texts = [render(request, width=width, colour=colour, unicode=unicode) for request in reversed(requests)]
    sys.stdout.write("\n".join(texts))
    return 0


def _fetch(url: str, last: int, *, failed: bool) -> list[RequestView]:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        message = "an address of a page is needed, such as http://127.0.0.1:8000/_deferred/"
        raise ValueError(message)
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    netloc = host if parts.port is None else f"{host}:{parts.port}"
    base = urllib.parse.urlunsplit((parts.scheme, netloc, f"{parts.path.rstrip('/')}/api/requests", "", ""))
    login = os.environ.get(AUTH, "")
    if parts.username is not None:
        login = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
    what, _, key = parts.fragment.strip("/").partition("/")
    if what == "requests" and key:
        return [
            msgspec.json.decode(_get(f"{base}/{urllib.parse.quote(key.partition('/')[0])}", login), type=RequestView)
        ]
    query = urllib.parse.urlencode({"limit": last, "failed": int(failed)})
    return msgspec.json.decode(_get(f"{base}?{query}", login), type=_Page).requests


def _get(url: str, login: str) -> bytes:
    request = urllib.request.Request(url, headers={"Accept": "application/json"})  # noqa: S310  # http or https, checked above
    if login:
        request.add_header("Authorization", f"Basic {base64.b64encode(login.encode()).decode()}")
    # What it was given is its own, so that no proxy of the environment sees what is on this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _StayHere())
    with opener.open(request, timeout=_TIMEOUT) as response:
        answer: bytes = response.read()
        return answer


class _StayHere(urllib.request.HTTPRedirectHandler):
    """Follow nobody elsewhere: the password is for the address that was given."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        """Return nothing to be followed."""


def _complaint(url: str, error: Exception) -> str:
    shown = urllib.parse.urlsplit(url)
    place = shown._replace(netloc=shown.netloc.rpartition("@")[2]).geturl()
    if isinstance(error, urllib.error.HTTPError):
        with error:
            said = error.read(500).decode(errors="replace").strip()
        mend = f" Set {AUTH}=name:password." if error.code == 401 else ""
        if error.code == 404:
            mend = " Is the inspector mounted there? Its usual place is /_deferred/."
        return f"{place} answers {error.code}: {said}{mend}"
    if isinstance(error, msgspec.MsgspecError | http.client.HTTPException):
        return f"{place} does not answer as an inspector does: {str(error).strip() or type(error).__name__}"
    return f"{place} cannot be asked: {getattr(error, 'reason', error)}"


def main(arguments: list[str] | None = None) -> int:
    """Run the command by itself: ``python -m deferred.inspector URL``.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(prog="python -m deferred.inspector")
    add_arguments(parser)
    return run(parser.parse_args(arguments))
