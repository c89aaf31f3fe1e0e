"""An ASGI app by hand, with every route of the promises, and what its tests share."""

import asyncio

from deferred import execution
from deferred.integrations.asgi import deferred_from
from tests.integrations.asgi_client import Exchange
from tests.integrations.script import BoomError

STATUS = {"/redirect": (303, b""), "/nothing": (204, b""), "/not-modified": (304, b""), "/http-error": (409, b"no")}
MARKS = {
    "sequential": execution.sequential,
    "fire-and-forget": execution.fire_and_forget,
    "concurrent": execution.concurrent,
    "deferred": execution.deferred,
    "none": lambda handler: handler,
}


class RawApp:
    """An ASGI app by hand, with every route of the promises."""

    def __init__(self, script, *, bare):
        self.script = script
        self.bare = bare

    async def __call__(self, scope, receive, send):
        """Serve one scope."""
        match scope["type"]:
            case "lifespan":
                await self.lifespan(receive, send)
            case "http":
                await self.http(scope, receive, send)
            case "websocket":
                await self.websocket(scope, receive, send)
            case _:
                await send({"type": "unknown.answer", "scope": scope})

    def context(self, scope):
        """Return the context of a request, or None without the middleware."""
        return None if self.bare else deferred_from(scope)

    async def lifespan(self, receive, send):
        """Open and close the app's resource."""
        await receive()
        try:
            self.script.opening()
        except BoomError as error:
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        self.script.closing()
        await send({"type": "lifespan.shutdown.complete"})

    async def http(self, scope, receive, send):  # noqa: C901  # one branch a route
        """Answer one request."""
        script, ctx, path = self.script, self.context(scope), scope["path"]
        path = path.removeprefix("/mounted")
        if path == "/body" and (await receive())["type"] == "http.disconnect":
            script.act(ctx)
            return
        if path == "/missing":
            await answer(send, 404, b"nothing here")
        elif path == "/stream":
            script.act(ctx)
            await start(send, 200)
            async for chunk in script.stream(ctx):
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        elif path == "/sync":
            await asyncio.to_thread(script.act, ctx)
            await answer(send, 200, b"sync")
        elif path.startswith("/run/"):

            @MARKS[path.removeprefix("/run/")]
            async def handler():
                await ctx.run(script.step)

            await handler()
            await answer(send, 200, b"ran")
        elif path == "/listens":
            await receive()
            script.act(ctx)
            script.arrived.set()
            await receive()
            await script.go.wait()
        else:
            if path == "/behind":
                script.act(ctx)
            await script.handle(ctx)
            if path == "/raises":
                raise BoomError
            await answer(send, *STATUS.get(path, (200, path[1:].encode())))
            if path == "/own":
                script.after(ctx)
                script.note("own")
            if path == "/own-raises":
                raise BoomError

    async def websocket(self, scope, receive, send):
        """Echo until told to stop."""
        ctx = self.context(scope)
        await receive()
        if scope["path"] == "/refused":
            await self.script.handle(ctx)
            await send({"type": "websocket.close", "code": 1008})
            return
        await send({"type": "websocket.accept"})
        await self.script.handle(ctx)
        while (message := await receive())["type"] == "websocket.receive":
            if message["text"] == "boom":
                raise BoomError
            if message["text"] == "bye":
                await send({"type": "websocket.close", "code": 1000})
                return
            await send({"type": "websocket.send", "text": message["text"]})


async def start(send, status, headers=()):
    """Send the head of a response."""
    await send({"type": "http.response.start", "status": status, "headers": list(headers)})


async def answer(send, status, body):
    """Send a whole response."""
    await start(send, status, [(b"content-length", str(len(body)).encode())])
    await send({"type": "http.response.body", "body": body})


async def finish(app, scope=None, incoming=()):
    """Serve one HTTP scope to its end."""
    scope = {"type": "http", "method": "GET", "path": "/", "headers": []} if scope is None else scope
    return await Exchange(app, scope, list(incoming)).start().done()
