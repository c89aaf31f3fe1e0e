"""PostgreSQL, the app and a worker of its own, started and ended together: `make run-postgres`.

The app and the worker are started again when they were killed; what listens is held here, so that
who calls meanwhile waits. A signal ends the worker, then the app, then PostgreSQL. When this process
is killed itself, all of them end.
"""

import asyncio
import contextlib
import hashlib
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from marathon_app.embedded import IN_USE
from marathon_app.restarting import FOLLOW, LISTENER, MAILBOX, QUICK, listen
from marathon_app.settings import Settings, SettingsError, load_settings

START: Final = 60.0  # seconds that PostgreSQL may take to start, its first start included
WORKER: Final = ("-m", "deferred", "worker", "marathon_app.worker:opened")


class CannotStartError(RuntimeError):
    """One of the three cannot be started; the text says which, and the mend."""


def main(_arguments: Sequence[str]) -> int:
    """Run the three until a signal comes.

    Returns:
        The exit code: the worker's or the app's; 1 when it could not be started, 2 when a setting cannot be used.
    """
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(name)s: %(message)s")
    try:
        return asyncio.run(_run(_settings()))
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    except CannotStartError as error:
        print(error, file=sys.stderr)
        return 1


def _settings() -> Settings:
    settings = load_settings()
    if os.environ.get("MARATHON_DATABASE_URL", "").strip():
        raise SettingsError(
            {"MARATHON_DATABASE_URL": "is not for this command, which has its own; `make run` takes it"}
        )
    return settings


async def _run(settings: Settings) -> int:
    stop = asyncio.Event()
    children: list[Kept] = []

    def told() -> None:
        if stop.is_set():
            for child in children:
                child.tell()  # whoever asks twice does not wait
        stop.set()

    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, told)
    try:
        listener = listen(settings.host, settings.port)
    except OSError as error:
        message = (
            f"Cannot listen on {settings.host}, port {settings.port}: {error.strerror}. MARATHON_PORT chooses another."
        )
        raise CannotStartError(message) from error
    mailbox = socket.create_server(("127.0.0.1", 0)) if settings.mail_server is None else None
    folder = await asyncio.to_thread(_folder, settings)
    with listener, mailbox or contextlib.nullcontext():
        async with _postgres(folder) as url:
            children += _children(url, folder, listener, mailbox)
            return await _keep(children, stop)


def _children(url: str, folder: Path, listener: socket.socket, mailbox: socket.socket | None) -> "list[Kept]":
    """Return the worker and the app."""
    common = {**os.environ, FOLLOW: "yes", "MARATHON_DATABASE_URL": url, "MARATHON_SERVE": "no"}
    app = Kept("app", ["-m", "marathon_app", LISTENER, str(listener.fileno())], common, [listener.fileno()])
    worker = Kept("worker", WORKER, dict(common), [])
    if mailbox is not None:
        app.arguments += [MAILBOX, str(mailbox.fileno())]
        app.descriptors.append(mailbox.fileno())
        app.environ["MARATHON_OUTBOX"] = str(folder / "outbox.jsonl")
        worker.environ["MARATHON_SMTP_URL"] = f"smtp://127.0.0.1:{mailbox.getsockname()[1]}"
    return [worker, app]


async def _keep(children: "list[Kept]", stop: asyncio.Event) -> int:
    """Keep the children running until the stop, or until the app ends by itself; then end them in their order."""
    running = [asyncio.create_task(child.run()) for child in children]
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({stopping, *running}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    codes: list[int] = []
    for child, task in zip(children, running, strict=True):
        child.tell()
        codes.append(await task)
    return next(filter(None, codes), 0)


class Kept:
    """A child that is started again when it was killed. It lives until it is told to end, or ends by itself."""

    def __init__(
        self, name: str, arguments: Sequence[str], environ: Mapping[str, str], descriptors: Sequence[int]
    ) -> None:
        self.name = name
        self.arguments = list(arguments)
        self.environ = dict(environ)
        self.descriptors = list(descriptors)
        self._process: asyncio.subprocess.Process | None = None
        self._told = asyncio.Event()

    def tell(self) -> None:
        """Tell it to end."""
        self._told.set()
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)

    async def run(self) -> int:
        """Keep it running; return its exit code."""
        code = 0
        while not self._told.is_set():
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                *self.arguments,
                env=self.environ,
                stdin=subprocess.PIPE,
                pass_fds=self.descriptors,
                start_new_session=True,  # Ctrl-C reaches it once, through this process
            )
            if self._told.is_set():  # while it was being started
                self._process.send_signal(signal.SIGTERM)
            code = await self._process.wait()
            if self._told.is_set():
                break
            if code != -signal.SIGKILL:
                print(f"The {self.name} has ended by itself, with code {code}.", file=sys.stderr, flush=True)
                break
            print(f"The {self.name} was killed; it is started again.", file=sys.stderr, flush=True)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(QUICK):
                    await self._told.wait()
        return code if code >= 0 else 128 - code


@contextlib.asynccontextmanager
async def _postgres(folder: Path) -> AsyncIterator[str]:
    """Run PostgreSQL as long as the block; give its URL."""
    process = await _embedded(folder, subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        async with asyncio.timeout(START):
            url = (await process.stdout.readline()).decode().strip()
        if not url:
            code = await process.wait()
            reason = "another one uses it" if code == IN_USE else "what went wrong is said above"
            message = f"PostgreSQL does not start on {folder}: {reason}. MARATHON_POSTGRES=... names another folder."
            raise CannotStartError(message)
        print(f"PostgreSQL keeps its data in {folder}", flush=True)
        yield url
    finally:
        process.stdin.close()
        if await process.wait() < 0:
            # It was killed, and PostgreSQL was not: another one stops it.
            await (await _embedded(folder, subprocess.DEVNULL)).wait()


async def _embedded(folder: Path, stdin: int) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "marathon_app.embedded", str(folder)),
        stdin=stdin,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )


def _folder(settings: Settings) -> Path:
    """Return the folder for the data, made where it is not there, and not somebody else's."""
    folder = settings.postgres_folder
    if folder is None:
        here = hashlib.sha256(os.fsencode(Path.cwd())).hexdigest()[:8]
        folder = Path(tempfile.gettempdir()) / f"marathon-postgres-{os.getuid()}-{here}"
    folder = folder.absolute()
    if len(str(folder).split()) > 1:  # it becomes a part of the server's own command line
        raise SettingsError(
            {"MARATHON_POSTGRES": f"PostgreSQL does not start in a folder with a space in its name: {folder}"}
        )
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.lstat()
    except OSError as error:
        raise SettingsError({"MARATHON_POSTGRES": f"{folder}: {error.strerror}; give a folder"}) from error
    if status.st_uid != os.getuid() or folder.is_symlink():
        raise SettingsError({"MARATHON_POSTGRES": f"{folder} is not a folder of yours; give one that is"})
    return folder
