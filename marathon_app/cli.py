"""The command: settings, a socket, and uvicorn in this process; or a comparison.

Exit codes: 0 after SIGTERM or SIGINT, once the work is drained; 1 when it cannot serve, or could
not close in order; 2 when a setting cannot be used.
"""

import importlib
import logging
import signal
import socket
import sys
from pathlib import Path
from types import FrameType
from typing import Final

import uvicorn
from litestar import Litestar

from marathon_app.database import DatabaseUnavailableError
from marathon_app.restarting import BACKLOG, MAILBOX, follow_parent, inherited, keep_running, listen
from marathon_app.settings import PostgresServer, Settings, SettingsError, load_settings
from marathon_app.sqlite import probe

GRACEFUL_TIMEOUT: Final = 10  # seconds a request may still take once a signal came

DRAIN_TIMEOUT: Final = "DEFERRED_DRAIN_TIMEOUT"  # the supervisor's own setting

EXAMPLE: Final = (
    '{"firstName": "Ada", "lastName": "Lovelace", "email": "ada@example.com", '
    '"address": "12 St James Square, London", "distance": "half"}'
)


def main() -> int:
    """Serve until a signal ends it.

    Returns:
        The exit code.
    """
    if sys.argv[1:2] in (["compare"], ["together"]):
        # Only now, as the server needs neither an HTTP client nor tables, nor a PostgreSQL.
        code: int = importlib.import_module(f"marathon_app.{sys.argv[1]}").main(sys.argv[2:])
        return code
    follow_parent()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(name)s: %(message)s")
    listener = inherited(sys.argv)
    try:
        settings = load_settings()
        _check_database(settings.database)
        is_parent = settings.demo_restart and listener is None
        app = None if is_parent else _load_app()
    except SettingsError as error:
        return _complain(str(error), 2)
    try:
        listener = listener or listen(settings.host, settings.port)
    except OSError as error:
        mend = "MARATHON_PORT chooses another port (0: a free one), MARATHON_HOST another address."
        return _complain(f"Cannot listen on {settings.host}, port {settings.port}: {error.strerror}. {mend}", 1)
    if app is None:
        return keep_running(listener)
    app.state.mailbox.listener = inherited(sys.argv, MAILBOX)
    return _serve(app, settings, listener)


class Server(uvicorn.Server):
    """uvicorn, which tells the app of a signal at once and says when it is ready."""

    def __init__(self, app: Litestar, settings: Settings) -> None:
        config = uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            # Without its lifespan the app could neither open its database nor drain.
            lifespan="on",
            # Without a bound a hung request would keep the drain from ever beginning.
            timeout_graceful_shutdown=GRACEFUL_TIMEOUT,
            backlog=BACKLOG,
            access_log=False,
            server_header=False,
        )
        super().__init__(config)
        self.was_told_to_stop = False
        self._health = app.state.health
        self._settings = settings

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then say where."""
        await super().startup(sockets)
        if self.started and sockets:
            print(_welcome(sockets[0], self._settings), flush=True)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Turn readiness off, then let uvicorn stop."""
        self.was_told_to_stop = True
        self._health.draining = True
        super().handle_exit(sig, frame)


def _serve(app: Litestar, settings: Settings, listener: socket.socket) -> int:
    server = Server(app, settings)

    def outside_uvicorn(signum: int, _frame: FrameType | None) -> None:
        # uvicorn raises the signal again when it has stopped in order: that one has had its effect.
        if not server.was_told_to_stop:
            raise SystemExit(128 + signum)

    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, outside_uvicorn)
    with listener:
        try:
            server.run(sockets=[listener])
        except SystemExit:
            if server.started:
                raise
            return _complain("The app did not start; what went wrong is said above.", 1)
    return 1 if server.lifespan.should_exit else 0


def _load_app() -> Litestar:
    try:
        # Only now, as the module makes an application of the settings, which are known to be right.
        app: Litestar = importlib.import_module("marathon_app.app").app
    except ValueError as error:
        if not str(error).startswith(DRAIN_TIMEOUT):
            raise
        raise SettingsError({DRAIN_TIMEOUT: str(error).removeprefix(f"{DRAIN_TIMEOUT} ")}) from error
    return app


def _check_database(path: Path | PostgresServer) -> None:
    if isinstance(path, PostgresServer):
        return  # one that is down now may be up in a moment: the app serves, and says so
    try:
        probe(path)
    except DatabaseUnavailableError as error:
        fault = f"{path}: {error}; give a file that can be written, such as sqlite:///var/marathon.db"
        raise SettingsError({"MARATHON_DATABASE_URL": fault}) from error


def _welcome(listener: socket.socket, settings: Settings) -> str:
    host, port = listener.getsockname()[:2]
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - recognised, not bound
    url = f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"
    lines = [
        "",
        f"The marathon is open: {url}/",
        "",
        "Try:",
        f"  curl -i {url}/api/marathon-waituntil \\",
        f"    --json '{EXAMPLE}'",
    ]
    if settings.mail_server is None:
        lines += [f"  curl {url}/dev/outbox"]
    if settings.demo_delays.insert or settings.demo_delays.mail:
        delays = settings.demo_delays
        lines += [
            "",
            f"For the demonstration, milliseconds added: insert {delays.insert:g}, mail {delays.mail:g}.",
        ]
    return "\n".join([*lines, ""])


def _complain(message: str, code: int) -> int:
    print(message, file=sys.stderr, flush=True)
    return code
