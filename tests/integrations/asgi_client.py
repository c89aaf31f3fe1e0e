"""An in-memory ASGI server and client that notes the turn of the loop of every message.

It plays a server's part by the book: a client that has gone makes ``receive`` give a
disconnect, and ``send`` either drop (as uvicorn does) or raise `OSError` (as the
specification allows).
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections.abc import Callable
from typing import Any, Self

Message = dict[str, Any]
TIMEOUT = 20  # seconds, for a test that hangs
_LAST = {"http.response.body", "websocket.http.response.body", "websocket.close"}


def turn() -> int:
    """Return how many turns the running loop has made since this was first asked."""
    loop: Any = asyncio.get_running_loop()
    if not hasattr(loop, "turns"):
        once = loop._run_once
        loop.turns = 0

        def counted() -> None:
            loop.turns += 1
            once()

        loop._run_once = counted
    return loop.turns


async def turns(count: int) -> None:
    """Let the loop make so many turns."""
    for _ in range(count):
        await asyncio.sleep(0)


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop turn until this is true, however many threads take part."""
    async with asyncio.timeout(TIMEOUT):
        while not condition():
            await asyncio.sleep(0)


async def idle(supervisor: Any) -> None:
    """Let the loop turn until nothing of `supervisor` waits or runs; without a drain, which has ways of its own."""
    await until(lambda: not ((stats := supervisor.stats()).pending or stats.running))
    await turns(2)


class Exchange:
    """One request or websocket, as the server sees it.

    Attributes:
        sent: The app's messages, the very objects, that were taken.
        at: The turn of the loop that each of them was taken on.
        error: What the app call raised.
        hold: Whether a message waits in ``send`` (a slow client) until `gate` is set.
    """

    def __init__(self, app: Any, scope: Message, incoming: list[Message], *, gone: str = "drop") -> None:
        self.scope = scope
        self.sent: list[Message] = []
        self.at: list[int] = []
        self.error: BaseException | None = None
        self.returned: int | None = None
        self.gate = asyncio.Event()
        self.hold: Callable[[Message], bool] = lambda message: False
        self.on_sent: Callable[[Message], None] = lambda message: None
        self._app = app
        self._gone = gone
        self._incoming = incoming
        self._news = asyncio.Event()
        self._left = asyncio.Event()
        self._moved = asyncio.Condition()
        self._task: asyncio.Task[None] | None = None

    # -- the server's side ---------------------------------------------------------------------

    async def _run(self) -> None:
        try:
            await self._app(self.scope, self.receive, self.send)
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001  # the test looks at it
            self.error = error
        self.returned = turn()
        async with self._moved:
            self._moved.notify_all()

    async def receive(self) -> Message:
        """Give the app what the client has sent; once that is all, wait for it to leave."""
        while not self._incoming and not self._left.is_set():
            self._news.clear()
            if self.complete:
                break
            await self._news.wait()
        if self._incoming and not self._left.is_set():
            return self._incoming.pop(0)
        if self.scope["type"] == "websocket":
            return {"type": "websocket.disconnect", "code": 1006}
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """Take a message of the app, or do what this server does once the client has gone."""
        if self.hold(message):
            await self.gate.wait()
        if self._left.is_set():
            if self._gone == "raise":
                raise OSError("the client has gone")
            return
        self.sent.append(message)
        self.at.append(turn())
        self.on_sent(message)
        if self.complete:
            self._news.set()
        async with self._moved:
            self._moved.notify_all()

    @property
    def complete(self) -> bool:
        """Whether the response is fully sent, or the websocket closed by the app."""
        last = self.sent[-1] if self.sent else {"type": ""}
        return last["type"] in _LAST and not last.get("more_body", False)

    # -- the client's side ---------------------------------------------------------------------

    def start(self, variables: contextvars.Context | None = None) -> Self:
        """Begin to serve it, in these context variables."""
        turn()
        self._task = asyncio.get_running_loop().create_task(
            self._run(), context=variables or contextvars.copy_context()
        )
        return self

    def push(self, message: Message) -> None:
        """Send one more message to the app."""
        self._incoming.append(message)
        self._news.set()

    def leave(self) -> None:
        """Disconnect."""
        self._left.set()
        self._news.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until a message or the end of the app call makes this true."""
        async with asyncio.timeout(TIMEOUT), self._moved:
            await self._moved.wait_for(condition)

    async def taken(self, count: int) -> None:
        """Wait until so many messages have been taken."""
        await self.until(lambda: len(self.sent) >= count)

    async def done(self) -> Self:
        """Wait until the app call has returned or raised."""
        await self.until(lambda: self.returned is not None)
        assert self._task is not None
        await self._task
        return self

    # -- what came back ------------------------------------------------------------------------

    @property
    def status(self) -> int | None:
        """The status; the server's own 500 where the app raised before it had answered."""
        for message in self.sent:
            if message["type"] in {"http.response.start", "websocket.http.response.start"}:
                return message["status"]
        return 500 if isinstance(self.error, Exception) and self.scope["type"] == "http" else None

    @property
    def headers(self) -> dict[str, str]:
        """The headers of the response."""
        start = next(message for message in self.sent if message["type"].endswith("http.response.start"))
        return {name.decode().lower(): value.decode() for name, value in start.get("headers", ())}

    @property
    def body(self) -> bytes:
        """The bytes of the response."""
        return b"".join(message.get("body", b"") for message in self.sent if message["type"] == "http.response.body")

    @property
    def last(self) -> int:
        """The turn on which the last message was taken."""
        return self.at[-1]


class Client:
    """A client of an app; ``async with`` runs its lifespan, without that there is none.

    Args:
        app: An ASGI app.
        gone: What the server does with what is sent to a client that has gone: ``"drop"`` or ``"raise"``.
    """

    def __init__(self, app: Any, *, gone: str = "drop") -> None:
        self.app = app
        self.gone = gone
        self.lifespan = Lifespan(app)

    async def __aenter__(self) -> Self:
        """Start the app."""
        await self.lifespan.startup()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        """Stop the app."""
        await self.lifespan.shutdown()

    def open(
        self, method: str, path: str, *, body: bytes = b"", headers: tuple[tuple[bytes, bytes], ...] = ()
    ) -> Exchange:
        """Make a request without starting it."""
        scope = {
            **_base(path, "http"),
            "method": method,
            "scheme": "http",
            "headers": [(b"host", b"test"), (b"content-length", str(len(body)).encode()), *headers],
        }
        incoming = [{"type": "http.request", "body": body, "more_body": False}]
        return Exchange(self.app, scope, incoming, gone=self.gone)

    async def request(self, method: str, path: str, **options: Any) -> Exchange:
        """Make a request and wait until the app call is over."""
        return await self.open(method, path, **options).start().done()

    async def get(self, path: str, **options: Any) -> Exchange:
        """Make a GET request and wait until the app call is over."""
        return await self.request("GET", path, **options)

    def websocket(self, path: str, *frames: str) -> Exchange:
        """Open a websocket and send these texts; not started yet."""
        scope = {**_base(path, "websocket"), "scheme": "ws", "headers": [(b"host", b"test")], "subprotocols": []}
        scope["extensions"] = {"websocket.http.response": {}}
        incoming: list[Message] = [{"type": "websocket.connect"}]
        incoming += [{"type": "websocket.receive", "text": text, "bytes": None} for text in frames]
        return Exchange(self.app, scope, incoming, gone=self.gone)


def _base(path: str, kind: str) -> Message:
    return {
        "type": kind,
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "client": ("127.0.0.1", 50000),
        "server": ("test", 80),
        "state": {},
        "extensions": {},
    }


class Lifespan:
    """The server's side of the lifespan, with uvicorn's reading of an app that raises: it knows none."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self.sent: list[Message] = []
        self.error: BaseException | None = None
        self._incoming: asyncio.Queue[Message] = asyncio.Queue()
        self._answered = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def startup(self) -> None:
        """Start the app; wait for its answer, or for it to give up."""
        self._task = asyncio.get_running_loop().create_task(self._run())
        await self._ask("lifespan.startup")

    async def shutdown(self) -> None:
        """Stop the app, unless it has left already; wait for its answer and its end."""
        assert self._task is not None
        if not self._task.done():
            await self._ask("lifespan.shutdown")
            async with asyncio.timeout(TIMEOUT):
                await self._task

    async def _ask(self, kind: str) -> None:
        self._answered.clear()
        self._incoming.put_nowait({"type": kind})
        async with asyncio.timeout(TIMEOUT):
            await self._answered.wait()

    async def _run(self) -> None:
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": {}}
        try:
            await self._app(scope, self._incoming.get, self._send)
        except Exception as error:  # noqa: BLE001  # the test looks at it
            self.error = error
        finally:
            self._answered.set()

    async def _send(self, message: Message) -> None:
        self.sent.append(message)
        self._answered.set()

    @property
    def answers(self) -> list[str]:
        """What the app has said, by type."""
        return [message["type"].removeprefix("lifespan.") for message in self.sent]


@contextlib.asynccontextmanager
async def serving(app: Any) -> Any:
    """Serve `app` by a real uvicorn on a free port of this machine; give the port."""
    import uvicorn

    config = uvicorn.Config(app, host="127.0.0.1", port=0, loop="none", log_config=None, access_log=False)
    server = uvicorn.Server(config)
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign]  # signals are the test run's
    task = asyncio.get_running_loop().create_task(server.serve())
    async with asyncio.timeout(TIMEOUT):
        while not server.started and not task.done():
            await asyncio.sleep(0)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        await task


async def raw(port: int, *requests: bytes, answers: int | None = None) -> bytes:
    """Send these requests over one connection, pipelined, and read so many answers (by content-length)."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"".join(requests))
    read = b""
    try:
        async with asyncio.timeout(TIMEOUT):
            for _ in range(len(requests) if answers is None else answers):
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
                read += head + await reader.readexactly(length)
    finally:
        writer.close()
        await writer.wait_closed()
    return read
