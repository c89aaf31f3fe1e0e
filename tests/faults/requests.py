"""A server's part for raw ASGI apps, and what happens in them."""

import pytest

ASYNCIO = pytest.mark.asyncio(loop_factories=["asyncio"])
"""For tests whose client counts the turns of the loop."""
START = {"type": "http.response.start", "status": 200, "headers": []}
BODY = {"type": "http.response.body", "body": b"answer"}
PART = {"type": "http.response.body", "body": b"part", "more_body": True}


class Journal(list):
    """What happened, in order; its ``note`` is a task."""

    async def note(self, what="task"):
        """Be a task."""
        self.append(what)


async def call(app, send=None, *, receive=None, kind="http", **scope):
    """Call an ASGI app; return what it has sent, or raise what it raises."""
    sent = []

    async def keep(message):
        sent.append(message)

    async def unasked():
        raise AssertionError

    await app({"type": kind, "method": "GET", "path": "/", "headers": [], **scope}, receive or unasked, send or keep)
    return sent
