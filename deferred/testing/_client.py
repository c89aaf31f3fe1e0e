"""Clients of an app in this process: started, asked, waited for, stopped."""

from __future__ import annotations

import importlib
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from deferred.testing._context import Keeper
from deferred.testing._lifespan import App, Lifespan

if TYPE_CHECKING:  # it loads httpx
    from deferred.testing._http import Client

__all__ = ["open_aiohttp_client", "open_client"]


@asynccontextmanager
async def open_client(app: App, kit: Keeper, **options: Any) -> AsyncGenerator[Client, None]:
    """Start an ASGI app and give its client; wait for the app's work before it is stopped."""
    from deferred.testing._http import make_client  # noqa: PLC0415  # it loads httpx

    _check_app(app)
    async with Lifespan(app) as lifespan:

        async def with_state(scope: Any, receive: Any, send: Any) -> None:
            scope["state"] = dict(lifespan.state)
            await app(scope, receive, send)

        async with make_client(with_state, kit, options) as client:
            try:
                yield client
            finally:
                await kit.settle(kit.timeout)


def _check_app(app: object) -> None:
    of_aiohttp = hasattr(app, "on_response_prepare")
    if of_aiohttp or not callable(app):
        mend = "; for an application of aiohttp there is aiohttp_client()" if of_aiohttp else ""
        message = f"client() takes an ASGI app, not {app!r}{mend}"
        raise TypeError(message)


@asynccontextmanager
async def open_aiohttp_client(app: Any, kit: Keeper, **options: Any) -> AsyncGenerator[Any, None]:
    """Start an aiohttp app and give its client; wait for the app's work before it is stopped."""
    aiohttp: Any = importlib.import_module("aiohttp.test_utils")  # only for those who use it
    async with aiohttp.TestClient(aiohttp.TestServer(app), **options) as client:
        try:
            yield client
        finally:
            await kit.settle(kit.timeout)
