"""A client of httpx's that knows the kit; httpx is loaded with this file, and only then."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deferred.testing._context import Keeper
from deferred.testing._lifespan import App

if TYPE_CHECKING:
    import httpx
else:
    try:
        import httpx
    except ModuleNotFoundError:
        try:
            import httpx2 as httpx  # its successor, with the same face
        except ModuleNotFoundError:
            message = "the client needs httpx, which is not installed: pip install 'deferred-middleware[testing]'"
            raise ModuleNotFoundError(message, name="httpx") from None

__all__ = ["Client", "make_client"]


class Client(httpx.AsyncClient):
    """An `httpx.AsyncClient` of an app in this process. Lives as long as the app is served.

    A request returns when the app has answered: nothing of the deferred work is waited for.

    Attributes:
        kit: Who watches the app's deferred work.
    """

    kit: Keeper

    async def wait(self, timeout: float | None = None) -> None:
        """Wait for all deferred work and raise what it has raised; see `Kit.wait`.

        Args:
            timeout: Seconds to wait at the most; the kit's own when None.
        """
        await self.kit.wait(timeout)


def make_client(app: App, kit: Keeper, options: dict[str, Any]) -> Client:
    """Return a client that calls `app`."""
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=options.pop("raise_app_exceptions", True))
    options.setdefault("base_url", "http://testserver")
    client = Client(transport=transport, **options)
    client.kit = kit
    return client
