"""The app that every server serves; what happens in it is a line of a file."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from urllib.parse import parse_qs

from deferred import DrainStarted, Supervisor, current_context, defer
from deferred.integrations.asgi import DeferredMiddleware

FOLDER = os.environ["SERVERS_FOLDER"]

if "SERVERS_CLOCK" in os.environ:  # seconds that the clock of the machine is wrong by
    right, wrong = time.time, float(os.environ["SERVERS_CLOCK"])
    time.time = lambda: right() + wrong

logging.basicConfig(
    filename=f"{FOLDER}/log", format="%(process)d %(name)s %(levelname)s %(message)s", level=logging.INFO
)


def note(what):
    """Append a line to the journal: in one write, which needs no lock between processes."""
    journal = os.open(f"{FOLDER}/journal", os.O_APPEND | os.O_CREAT | os.O_WRONLY)
    os.write(journal, f"{what}\n".encode())
    os.close(journal)


async def short(what, seconds):
    """Be a task that ends."""
    await asyncio.sleep(seconds)
    note(f"done {what}")


async def endless_job():
    """Be a task that only a cancellation ends."""
    note("started endless_job")
    try:
        await asyncio.sleep(10_000)
    finally:
        note("cancelled endless_job")


async def stubborn_job():
    """Be a task that a cancellation does not end."""
    note("started stubborn_job")
    while True:
        try:
            await asyncio.sleep(10_000)
        except asyncio.CancelledError:
            note("cancelled stubborn_job")


def threaded_job():
    """Be a task that blocks its thread."""
    note("started threaded_job")
    threading.Event().wait()


async def leave(error):
    """Raise what ends a process."""
    note(f"raised {type(error).__name__}")
    raise error


class App:
    """The handlers, for any framework: each is given the query and answers with a text."""

    def __init__(self, supervisor):
        self.supervisor = supervisor
        self.cancelled = asyncio.Event()  # a request that hangs

    def ready(self, **query):
        """Say which process answers, or that it is about to end."""
        return (503, "draining") if self.supervisor.draining else (200, str(os.getpid()))

    def work(self, *, name, count="1", seconds="0"):
        """Defer short tasks; each is noted when it is done."""
        for number in range(int(count)):
            defer(short, f"{name} {number}", float(seconds))
        return 200, "accepted"

    def context(self, *, name):
        """Defer a task by the context."""
        current_context().defer(short, name, 0)
        return 200, "accepted"

    def long(self, **query):
        """Defer tasks that do not end by themselves."""
        for job in (endless_job, stubborn_job, threaded_job)[: int(query.get("kinds", 3))]:
            defer(job)
        return 200, "accepted"

    def exit(self, **query):
        """Defer what would end the process, were it not a task's own affair."""
        defer(leave, SystemExit(3))
        defer(leave, KeyboardInterrupt())
        return 200, "accepted"

    async def hang(self, **query):
        """Be a request that does not end; work that it registers when it is cancelled counts."""
        defer(short, "before the hang", 0.1)
        note("hanging")
        try:
            await asyncio.sleep(10_000)
        finally:
            note("request cancelled")
            self.cancelled.set()
            defer(short, "by a request that is cancelled", 0.2)

    def outlast(self, **query):
        """Defer a task that ends once a request that hangs is cancelled."""
        defer(self.outlasting)
        return 200, "accepted"

    async def outlasting(self):
        """Be that task."""
        await self.cancelled.wait()
        note("done outlasting")

    async def slow(self, *, name, seconds):
        """Be a request that takes its time, and defers a task."""
        note(f"slow {name}")
        await asyncio.sleep(float(seconds))
        defer(short, name, 0.1)
        return 200, "accepted"

    async def stream(self, **query):
        """Give the parts of a stream that ends when the process is about to."""
        defer(short, "after the stream", 0.1)
        while not self.supervisor.draining:
            yield b"data: tick\n\n"
            await asyncio.sleep(0.05)


class ASGI(App):
    """The same as a plain ASGI app."""

    async def __call__(self, scope, receive, send):
        """Serve one scope."""
        if scope["type"] == "lifespan":
            await self.lifespan(receive, send)
        elif scope["type"] == "websocket":
            await self.websocket(receive, send)
        elif scope["path"] == "/stream":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            async for part in self.stream():
                await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        else:
            query = {name: value for name, (value,) in parse_qs(scope["query_string"].decode()).items()}
            answer = getattr(self, scope["path"][1:])(**query)
            status, text = await answer if asyncio.iscoroutine(answer) else answer
            length = str(len(text)).encode()
            await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", length)]})
            await send({"type": "http.response.body", "body": text.encode()})

    async def lifespan(self, receive, send):
        """Open and close what tasks use."""
        await receive()
        note(f"year {time.gmtime(time.time()).tm_year}")
        await send({"type": "lifespan.startup.complete"})
        note(f"serving {os.getpid()}")
        await receive()
        note("app closed")
        await send({"type": "lifespan.shutdown.complete"})

    async def websocket(self, receive, send):
        """Defer a task for each message."""
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            defer(short, message["text"], 0.1)
            await send({"type": "websocket.send", "text": "accepted"})
        note(f"websocket closed {message.get('code')}")


supervisor = Supervisor(
    hooks=[lambda event: note("draining") if isinstance(event, DrainStarted) else None],
    drain_timeout=float(os.environ.get("SERVERS_DRAIN", "60")),
    cancel_grace=float(os.environ.get("SERVERS_GRACE", "30")),
)
asgi = DeferredMiddleware(ASGI(supervisor), supervisor)
