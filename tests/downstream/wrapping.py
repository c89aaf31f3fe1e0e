"""A pytest plugin for another project's suite: every app it makes is wrapped, every outcome noted.

It stands by itself, because it is loaded into an environment that has that project's test
requirements and not ours. ``DOWNSTREAM_WRAP`` says how apps are wrapped, ``DOWNSTREAM_REPORT``
where the outcomes go.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from deferred import SupervisorClosedError, defer
from deferred.integrations.asgi import DeferredMiddleware

seen: Counter[str] = Counter()
outcomes: dict[str, dict[str, str]] = {}


def wrapped(app: Any, *, used: bool = False) -> Any:
    """Return `app` behind the middleware, and count what comes through."""
    middleware = DeferredMiddleware(busy(app) if used else app)

    async def counted(scope: Any, receive: Any, send: Any) -> None:
        seen[scope["type"]] += 1
        await middleware(scope, receive, send)

    return counted


def busy(app: Any) -> Any:
    """Return an app that defers work in every request, and in every websocket."""

    async def deferring(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] in {"http", "websocket"} and on_asyncio():
            try:
                defer(note)
            except SupervisorClosedError:  # some tests go on with an app that they have shut down
                seen["refused"] += 1
        await app(scope, receive, send)

    return deferring


def on_asyncio() -> bool:
    """Say whether asyncio runs this: nothing can be deferred under trio."""
    return asyncio._get_running_loop() is not None


async def note() -> None:
    """Count a deferred task."""
    seen["deferred"] += 1


def wrap_clients(*, used: bool) -> None:
    """Have every client wrap what it is given, after it has looked at it."""
    make, make_transport = TestClient.__init__, httpx2.ASGITransport.__init__

    def client(self: Any, *args: Any, **kwargs: Any) -> None:
        make(self, *args, **kwargs)
        self.app = self._transport.app = wrapped(self.app, used=used)

    def transport(self: Any, *args: Any, **kwargs: Any) -> None:
        make_transport(self, *args, **kwargs)
        self.app = wrapped(self.app, used=used)

    TestClient.__init__ = client  # type: ignore[method-assign]  # the point of this file
    httpx2.ASGITransport.__init__ = transport  # type: ignore[method-assign]  # same


def wrap_apps() -> None:
    """Have every `Starlette` put the middleware around its whole stack."""
    build = Starlette.build_middleware_stack

    def stack(self: Starlette) -> Any:
        return wrapped(build(self))

    Starlette.build_middleware_stack = stack  # type: ignore[method-assign]  # the point of this file


def pytest_configure(config: pytest.Config) -> None:
    """Wrap, the way that was asked for."""
    way = os.environ["DOWNSTREAM_WRAP"]
    if way in {"around", "used"}:
        wrap_clients(used=way == "used")
    elif way == "inside":
        wrap_apps()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note how each phase of a test has ended."""
    entry = outcomes.setdefault(report.nodeid, {"outcome": "passed", "text": ""})
    outcome = "failed as expected" if hasattr(report, "wasxfail") else f"{report.outcome} in {report.when}"
    if report.outcome != "passed" and entry["outcome"] == "passed":
        entry["outcome"] = outcome
        entry["text"] = report.longreprtext


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the outcomes down."""
    report = {"outcomes": outcomes, "seen": dict(seen)}
    Path(os.environ["DOWNSTREAM_REPORT"]).write_text(json.dumps(report))
