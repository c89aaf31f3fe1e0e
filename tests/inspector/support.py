"""An app with an inspector in it, and a client that speaks to both."""

import asyncio
import contextlib
import logging
import threading
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import uvicorn

from deferred import DeferredContext, Retry, Supervisor, current_context, defer, sequential
from deferred.inspector import Inspector
from deferred.integrations.asgi import DeferredMiddleware

PREFIX = "/_deferred"
HOME = "http://127.0.0.1:8000"

Handler = Callable[[DeferredContext], Awaitable[None]]


class App:
    """Handlers by path, behind the middleware, with the inspector beside them. Lives as long as a test.

    A handler takes the context and returns nothing: the answer is a 200, or what `status` says.
    """

    def __init__(self, supervisor: Supervisor | None = None, **options: Any) -> None:
        self.supervisor = supervisor or Supervisor()
        self.inspector = Inspector(self.supervisor, **{"debug": True, **options})
        self.handlers: dict[str, Handler] = {}
        self.status: dict[str, int] = {}
        self.asgi = DeferredMiddleware(self._serve, self.supervisor)

    @property
    def recorder(self):
        """Return what the inspector records with."""
        return self.inspector._recorder

    def route(self, path: str, status: int = 200) -> Callable[[Handler], Handler]:
        """Serve a path with a handler."""

        def add(handler: Handler) -> Handler:
            self.handlers[path] = handler
            self.status[path] = status
            return handler

        return add

    async def _serve(self, scope, receive, send):
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        path = scope["path"]
        if path == PREFIX or path.startswith(f"{PREFIX}/"):
            await self.inspector({**scope, "root_path": PREFIX}, receive, send)
            return
        await self.handlers[path](current_context())
        await send({"type": "http.response.start", "status": self.status[path], "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})

    def client(self, address: str = "127.0.0.1", base: str = HOME, **options: Any) -> httpx.AsyncClient:
        """Make a client at an address."""
        transport = httpx.ASGITransport(self.asgi, client=(address, 50000), raise_app_exceptions=False)
        return httpx.AsyncClient(transport=transport, base_url=base, **options)

    async def settle(self) -> None:
        """Let all work end."""
        while self.supervisor._launcher.tasks or self.supervisor._launcher.detached:
            await asyncio.sleep(0)

    async def drained(self) -> None:
        """Wait for all work, however long it takes."""
        await self.supervisor.drain(60)


async def _lifespan(receive, send):
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await send({"type": "lifespan.shutdown.complete"})


@contextlib.asynccontextmanager
async def opened(app: App, **options: Any):
    """Open the app's supervisor and give a client."""
    async with app.supervisor, app.client(**options) as client:
        yield client
    app.inspector.close()


async def ask(client: httpx.AsyncClient, path: str, **query: Any) -> Any:
    """Return what the inspector answers, as data."""
    answer = await client.get(f"{PREFIX}/api/{path}", params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def the_request(client: httpx.AsyncClient, number: int = 0) -> Any:
    """Return one of the recorded requests with all details, the latest unless a number is given."""
    listed = (await ask(client, "requests"))["requests"]
    return await ask(client, f"requests/{listed[number]['id']}")


def audited(caplog) -> list[str]:
    """Return what the inspector has logged."""
    return [record.getMessage() for record in caplog.records if record.name == "deferred.inspector"]


def visit(url: str, method: str = "GET") -> None:
    """Send a request to a served app; whatever it answers is fine."""
    with (
        contextlib.suppress(urllib.error.HTTPError),
        urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=10) as answer,
    ):
        answer.read()


class Served:
    """An app on a port of its own, in a thread. Lives as long as a test."""

    def __init__(self, app: App) -> None:
        self.app = app
        self._ready = threading.Event()
        self._server = uvicorn.Server(uvicorn.Config(app.asgi, port=0, log_level="error", lifespan="on", ws="none"))
        self._startup, self._server.startup = self._server.startup, self._started
        self._thread = threading.Thread(target=self._server.run)

    async def _started(self, sockets=None):
        await self._startup(sockets)
        self._ready.set()

    def start(self) -> None:
        """Start, and return when it answers."""
        self._thread.start()
        assert self._ready.wait(20)
        self.home = f"http://127.0.0.1:{self._server.servers[0].sockets[0].getsockname()[1]}"
        self.url = f"{self.home}{PREFIX}/"

    def stop(self) -> None:
        """Stop, whatever still runs."""
        self.app.supervisor._launcher.timeout = 0.0
        self._server.should_exit = True
        self._thread.join(20)

    def visit(self, *paths: str) -> None:
        """Send requests, one after the other."""
        for path in paths:
            visit(f"{self.home}{path}")


async def act(client: httpx.AsyncClient, path: str, body: Any, **headers: str) -> httpx.Response:
    """Do something as the page does: with the token, from its origin."""
    token = (await ask(client, "session"))["token"]
    given = {"Origin": str(client.base_url).rstrip("/"), "X-Deferred-Token": token, **headers}
    return await client.post(f"{PREFIX}/api/{path}", json=body, headers=given)


# --- an app for the browser --------------------------------------------------------------------

logger = logging.getLogger("marathon")
NASTY = "<img src=x onerror=\"document.title='pwned'\"><script>document.title='pwned'</script>"


def marathon(app: App) -> App:
    """Give the app the routes of the article, and some that go wrong; times are a tenth of the article's."""

    @app.route("/sequential")
    @sequential
    async def in_order(ctx):
        with ctx.step("INSERT runners"):
            await asyncio.sleep(0.06)
        await ctx.with_options(name="send confirmation e-mail").run(send, "ada@example.com")

    @app.route("/waituntil", status=201)
    async def waituntil(ctx):
        with ctx.step("INSERT runners"):
            await asyncio.sleep(0.06)
        ctx.with_options(name="send confirmation e-mail").defer(send, "ada@example.com", password="hunter2")

    @app.route("/retried", status=201)
    async def retried(ctx):
        with ctx.step("INSERT runners"):
            await asyncio.sleep(0.03)
        retry = Retry(on=ConnectionError, attempts=3, wait_initial=0.1, wait_jitter=0)
        ctx.with_options(name="send confirmation e-mail", retry=retry).defer(_Flaky(2))

    @app.route("/fails", status=201)
    async def failing(ctx):
        with ctx.step("INSERT runners"):
            await asyncio.sleep(0.03)
        ctx.with_options(name="send confirmation e-mail").defer(refuse)

    @app.route("/nasty")
    async def nasty(ctx):
        ctx.with_options(name=NASTY).defer(complain, NASTY)

    @app.route("/quiet")
    async def quiet(ctx):
        pass

    @app.route("/long")
    async def long(ctx):
        ctx.with_options(name="nightly report").defer(asyncio.sleep, 60)

    @app.route("/busy")
    async def busy(ctx):
        ctx.with_options(name="never at rest").defer(tick)

    return app


async def tick():
    """Leave work behind all the time: about as often as a context takes it."""
    for _ in range(900):
        await asyncio.sleep(0.04)
        defer(asyncio.sleep, 0)


async def send(to, password=""):
    """Send a mail, slowly."""
    logger.warning("sending to %s", to)
    await asyncio.sleep(0.1)


async def refuse():
    """Fail as a mail server does."""
    await asyncio.sleep(0.05)
    raise RuntimeError("550 no such user")


async def complain(text):
    """Fail with this text."""
    raise RuntimeError(text)


class _Flaky:
    """Fails a number of times, then succeeds."""

    def __init__(self, failures):
        self.failures = failures

    async def __call__(self):
        await asyncio.sleep(0.04)
        if self.failures:
            self.failures -= 1
            raise ConnectionError("421 try again later")
