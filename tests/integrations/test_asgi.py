"""The promises of every framework, asked of a raw ASGI app behind `DeferredMiddleware`."""

from deferred.integrations.asgi import DeferredMiddleware
from tests.integrations.promises import Adapter, Promises
from tests.integrations.raw_app import RawApp


class RawAdapter(Adapter):
    """A raw ASGI app, with the middleware outermost."""

    lacks = frozenset({"405"})

    def build(self, script, supervisor):
        """Build the app."""
        app = RawApp(script, bare=supervisor is None)
        return app if supervisor is None else DeferredMiddleware(app, supervisor)


class TestPromises(Promises):
    """The promises of every framework."""

    adapter = RawAdapter()
