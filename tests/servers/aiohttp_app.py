"""The same app for aiohttp's runner: ``python -m tests.servers.aiohttp_app SOCKET``."""

import inspect
import os
import sys

from aiohttp import web

from deferred import defer
from deferred.integrations.aiohttp import setup
from tests.servers.app import App, note, short, supervisor

handlers = App(supervisor)


async def answer(request):
    """Call the handler that the path names."""
    answer = getattr(handlers, request.path[1:])(**request.query)
    status, text = await answer if inspect.isawaitable(answer) else answer
    return web.Response(status=status, text=text)


async def stream(request):
    """Give the parts of the stream."""
    response = web.StreamResponse()
    await response.prepare(request)
    async for part in handlers.stream():
        await response.write(part)
    return response


async def websocket(request):
    """Defer a task for each message."""
    response = web.WebSocketResponse()
    await response.prepare(request)
    try:
        async for message in response:
            defer(short, message.data, 0.1)
            await response.send_str("accepted")
    finally:
        note(f"websocket closed {response.close_code}")
    return response


async def resource(app):
    """Be what tasks use: closed after the drain."""
    note(f"serving {os.getpid()}")
    yield
    note("app closed")


app = web.Application()
app.add_routes([web.get("/", websocket), web.get("/stream", stream), web.get("/{name}", answer)])
app.cleanup_ctx.append(resource)
setup(app, supervisor)

if __name__ == "__main__":
    web.run_app(app, path=sys.argv[1], shutdown_timeout=float(sys.argv[2]) if sys.argv[2:] else 60.0)
