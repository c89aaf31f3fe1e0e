"""aiohttp's own server protocol on a transport in memory, seen as the exchanges of an ASGI client.

What the server writes is parsed into messages like those of ASGI, each noted with the turn of
the loop it was written on. A message that is held pauses writing, as a full socket does.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from aiohttp import web

from tests.integrations import asgi_client
from tests.integrations.asgi_client import Message, turn, turns, until

_MASK = b"\0\0\0\0"  # a client's frames are masked; this mask changes nothing


class Transport(asyncio.Transport):
    """The server's end of a connection in memory."""

    def __init__(self, exchange: Exchange) -> None:
        super().__init__()
        self._exchange = exchange

    def write(self, data: Any) -> None:
        """Take bytes of the server."""
        self._exchange.written(bytes(data))

    def writelines(self, pieces: Any) -> None:
        """Take bytes of the server."""
        self.write(b"".join(pieces))

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Tell who is connected."""
        return ("127.0.0.1", 50000) if name == "peername" else default

    def is_closing(self) -> bool:
        """Say whether either side has left."""
        return self._exchange.over

    def is_reading(self) -> bool:
        """Say yes."""
        return True

    def pause_reading(self) -> None:
        """Go on: the requests of the tests are short."""

    def resume_reading(self) -> None:
        """Go on."""

    def close(self) -> None:
        """Hang up, on the next turn."""
        self._exchange.hang_up()

    abort = close


class Exchange(asgi_client.Exchange):
    """One request or websocket over one connection."""

    def __init__(self, client: Client, request: bytes, scope: Message, frames: list[str]) -> None:
        super().__init__(client.app, scope, [])
        self.over = False
        self._client = client
        self._request = request
        self._frames = frames
        self._buffer = b""
        self._held: list[Message] = []
        self._left_to_read: int | None = None  # of a body; None before the head, -1 for chunks, -2 for frames
        self._protocol: Any = None

    # -- the server's side ---------------------------------------------------------------------

    async def _run(self) -> None:
        self._protocol = self._client.lifespan.server()
        before = asyncio.all_tasks()
        self._protocol.connection_made(Transport(self))
        serving = asyncio.all_tasks() - before
        self._protocol.data_received(self._request)
        for text in self._frames:
            self.push({"text": text})
        if self._left.is_set():
            self.hang_up()
        await until(lambda: self.over)
        await until(lambda: all(task.done() for task in serving))
        self.returned = turn()

    def hang_up(self) -> None:
        """Break the connection; the server learns of it on the next turn."""
        if not self.over:
            self.over = True
            asyncio.get_running_loop().call_soon(self._protocol.connection_lost, None)

    def written(self, data: bytes) -> None:
        """Parse what the server wrote, and take it, or hold it until the gate opens."""
        self._buffer += data
        for message in self._parse():
            if not self._held and self.hold(message):
                self._protocol.pause_writing()
                self._releasing = asyncio.get_running_loop().create_task(self._release())
                self._held.append(message)
            elif self._held:
                self._held.append(message)
            else:
                self._take(message)

    async def _release(self) -> None:
        await self.gate.wait()
        for message in self._held:
            self._take(message)
        self._held.clear()
        if not self.over:
            self._protocol.resume_writing()

    def _take(self, message: Message) -> None:
        self.sent.append(message)
        self.at.append(turn())
        self.on_sent(message)
        if self.complete and self.scope["type"] == "websocket" and message["type"] == "http.response.body":
            self.hang_up()  # refused, and the client has nothing more to ask

    def _parse(self) -> list[Message]:
        messages: list[Message] = []
        if self._left_to_read is None and b"\r\n\r\n" in self._buffer:
            head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
            messages += self._parse_head(head)
        if self._left_to_read == -2:
            messages += self._parse_frames()
        elif self._left_to_read == -1:
            messages += self._parse_chunks()
        elif self._left_to_read and self._buffer:
            self._left_to_read -= len(self._buffer)
            messages.append(_body(self._buffer, more=self._left_to_read > 0))
            self._buffer = b""
        return messages

    def _parse_head(self, head: bytes) -> list[Message]:
        first, *lines = head.split(b"\r\n")
        status = int(first.split()[1])
        headers = [tuple(line.split(b": ", 1)) for line in lines if not line.startswith(b"Date")]
        names = {name.lower(): value for name, value in headers}
        if status == 101:
            self._left_to_read = -2
            return [{"type": "websocket.accept"}]
        if b"transfer-encoding" in names:
            self._left_to_read = -1
        else:
            self._left_to_read = int(names.get(b"content-length", 0))
        if self.scope["method"] == "HEAD" or status in {204, 304}:
            self._left_to_read = 0
        start = {"type": "http.response.start", "status": status, "headers": headers}
        if self.scope["type"] == "websocket":
            start["type"] = "websocket.http.response.start"
        return [start] if self._left_to_read else [start, _body(b"", more=False)]

    def _parse_chunks(self) -> list[Message]:
        messages = []
        while b"\r\n" in self._buffer:
            size, _, rest = self._buffer.partition(b"\r\n")
            length = int(size, 16)
            messages.append(_body(rest[:length], more=length > 0))
            self._buffer = rest[length + 2 :]
        return messages

    def _parse_frames(self) -> list[Message]:
        messages = []
        while len(self._buffer) >= 2:
            kind, length = self._buffer[0] & 15, self._buffer[1]
            payload, self._buffer = self._buffer[2 : 2 + length], self._buffer[2 + length :]
            if kind == 8:
                messages.append({"type": "websocket.close", "code": int.from_bytes(payload[:2])})
                self._protocol.data_received(b"\x88" + bytes([128 + length]) + _MASK + payload)
            else:
                messages.append({"type": "websocket.send", "text": payload.decode()})
        return messages

    # -- the client's side ---------------------------------------------------------------------

    def push(self, message: Message) -> None:
        """Send a text."""
        text = message["text"].encode()
        self._protocol.data_received(bytes([0x81, 128 + len(text)]) + _MASK + text)

    def leave(self) -> None:
        """Disconnect."""
        self._left.set()
        if self._protocol is not None:
            self.hang_up()

    async def until(self, condition: Any) -> None:
        """Wait until this is true."""
        await until(condition)


class Client(asgi_client.Client):
    """A client of an aiohttp application."""

    def __init__(self, app: web.Application, *, gone: str = "drop", **options: Any) -> None:
        self.app = app
        self.lifespan: Any = Lifespan(app, options)

    def open(self, method: str, path: str, *, body: bytes = b"", headers: Any = ()) -> Exchange:
        """Make a request without starting it."""
        lines = [f"{method} {path} HTTP/1.1".encode(), b"Host: test", b"Connection: close"]
        if method == "POST":
            lines.append(b"Content-Length: " + str(len(body)).encode())
        lines += [name + b": " + value for name, value in headers]
        return Exchange(self, b"\r\n".join(lines) + b"\r\n\r\n" + body, {"type": "http", "method": method}, [])

    def websocket(self, path: str, *frames: str) -> Exchange:
        """Open a websocket and send these texts; not started yet."""
        request = (
            f"GET {path} HTTP/1.1\r\nHost: test\r\nConnection: upgrade\r\nUpgrade: websocket\r\n"
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        return Exchange(self, request.encode(), {"type": "websocket", "method": "GET"}, list(frames))


class Lifespan:
    """The application's runner, told in the words of ASGI's lifespan."""

    def __init__(self, app: web.Application, options: Message) -> None:
        self._app = app
        self._options = options
        self._runner: web.AppRunner | None = None
        self.server: Any = None
        self.answers: list[str] = []
        self.error: BaseException | None = None

    async def startup(self) -> None:
        """Start the application."""
        self._runner = web.AppRunner(self._app, access_log=None, shutdown_timeout=1, **self._options)
        try:
            await self._runner.setup()
        except Exception as error:  # noqa: BLE001  # the test looks at it
            self.error = error
            self.answers.append("startup.failed")
        else:
            self.server = self._runner.server
            self.answers.append("startup.complete")

    async def shutdown(self) -> None:
        """Stop the application, if it runs."""
        assert self._runner is not None
        with contextlib.suppress(RuntimeError) if self.error else contextlib.nullcontext():
            await self._runner.cleanup()
        await turns(2)
        if self.error is None:
            self.answers.append("shutdown.complete")


@contextlib.asynccontextmanager
async def serving(app: web.Application) -> Any:
    """Serve `app` on a free port of this machine; give the port."""
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


def _body(data: bytes, *, more: bool) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": more}
