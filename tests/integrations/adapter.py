"""What a framework's test file brings, and what every list of promises starts from.

An adapter builds an app whose handlers call ``script.handle(ctx)`` (``script.act(ctx)`` where
they are synchronous) and then answer:

=========================== ============================================================
``GET, HEAD /plain``        200, ``plain``
``POST /body``              reads the body, then as above
``GET /stream``             ``script.act``, then 200 with ``script.stream(ctx)`` as its body
``GET /raises``             raises `BoomError`
``GET /http-error``         raises the framework's own error for 409
``GET /redirect``           303 to ``/plain``
``GET /nothing``            204
``GET /not-modified``       304
``GET /sync``               200 from a synchronous handler in a thread
``GET /behind``             ``/plain`` behind the framework's usual middleware, which calls
                            ``script.act(ctx)`` as well
``GET /own``                200 with the framework's background tasks, one that calls
                            ``script.after(ctx)`` and one that notes ``own``
``GET /own-raises``         the same with a single one that raises `BoomError`
``GET /run/<execution>``    ``await ctx.run(script.step)`` under that decorator; ``/run/none``
                            without any
``GET /mounted/plain``      ``/plain`` in a mounted app
``WEBSOCKET /socket``       accepts, ``handle``, echoes; ``bye`` closes it, ``boom`` raises
``WEBSOCKET /refused``      ``handle``, then closes without accepting
=========================== ============================================================

Its lifespan calls ``script.opening()`` and ``script.closing()``. Nothing else answers: 404, 405.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Any, ClassVar

import pytest

from deferred import Supervisor
from deferred.integrations.asgi import DeferredMiddleware
from tests.integrations.asgi_client import Client, serving
from tests.integrations.script import Script

OK = ["/plain", "/behind", "/stream", "/sync", "/nothing", "/not-modified", "/redirect", "/mounted/plain"]
FAILING = ["/raises", "/http-error"]
MATCHES = {  # which `when` besides "always" runs
    **dict.fromkeys(OK, "success"),
    **dict.fromkeys(FAILING, "error"),
}


class Adapter:
    """What a framework's test file brings.

    Attributes:
        lacks: Routes (by path) that the framework cannot have, and ``"405"``, ``"lifespan"``,
            ``"no lifespan"``.
    """

    lacks: ClassVar[frozenset[str]] = frozenset()

    def build(self, script: Script, supervisor: Supervisor | None) -> Any:
        """Build the app; without our middleware (``ctx`` is None) when `supervisor` is None."""
        raise NotImplementedError

    def client(self, app: Any, **options: Any) -> Client:
        """Return a client of the app."""
        return Client(app, **options)

    def serving(self, app: Any) -> AbstractAsyncContextManager[int]:
        """Serve the app by a real server; give the port."""
        return serving(app)

    def wrap_again(self, app: Any, supervisor: Supervisor) -> Any:
        """Put the integration around an app that has it already."""
        return DeferredMiddleware(app, supervisor)


class Base:
    """The fixtures of the promises. Lives as long as a test."""

    adapter: ClassVar[Adapter]

    @pytest.fixture
    def events(self) -> list[Any]:
        """Give the list of what the supervisor's hooks were told."""
        return []

    @pytest.fixture
    def supervisor(self, events: list[Any], request: pytest.FixtureRequest) -> Supervisor:
        """Give the supervisor of the app; ``parametrize`` it indirectly for other options."""
        return Supervisor(on_error=events.append, **getattr(request, "param", {}))

    @pytest.fixture
    async def client(self, script: Script, supervisor: Supervisor) -> Any:
        """Give a client of the app, started."""
        async with self.adapter.client(self.adapter.build(script, supervisor)) as client:
            yield client

    def needs(self, *paths: str) -> None:
        """Skip what the framework cannot have."""
        lacking = self.adapter.lacks.intersection(paths)
        if lacking:
            pytest.skip(f"has no {', '.join(lacking)}")
