"""Servers as processes: started, spoken to, signalled, and gone at the end."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[2]
ENVIRONMENT = dict(os.environ)  # before any test has changed it; servers start in threads beside them
PATIENCE = 90.0  # seconds for a process to do what it is asked to; only a broken one needs them
APP = "tests.servers.app:asgi"

GUNICORN = ["gunicorn", APP, "--bind", "unix:{socket}", "--no-control-socket"]

COMMANDS = {
    "uvicorn": ["uvicorn", APP, "--uds", "{socket}"],
    "uvicorn workers": ["uvicorn", APP, "--uds", "{socket}", "--workers", "2"],
    "hypercorn": ["hypercorn", APP, "--bind", "unix:{socket}"],
    "hypercorn workers": ["hypercorn", APP, "--bind", "unix:{socket}", "--workers", "2"],
    "hypercorn alone": ["hypercorn", APP, "--bind", "unix:{socket}", "--workers", "0"],
    "granian": ["granian", APP, "--interface", "asgi", "--uds", "{socket}"],
    "granian workers": ["granian", APP, "--interface", "asgi", "--uds", "{socket}", "--workers", "2"],
    "gunicorn": [*GUNICORN, "-k", "uvicorn_worker.UvicornWorker"],
    "gunicorn workers": [*GUNICORN, "-k", "uvicorn_worker.UvicornWorker", "--workers", "2"],
    "gunicorn asgi": [*GUNICORN, "-k", "asgi"],
    "aiohttp": ["tests.servers.aiohttp_app", "{socket}"],
}
"""How each server is started; it listens on a socket that is a file, so that no port can be taken."""


def wait_for(condition, what="", patience=PATIENCE):
    """Poll until a condition holds and return what it gave; the bound is for what is broken."""
    deadline = time.monotonic() + patience
    while not (result := condition()):
        assert time.monotonic() < deadline, what() if callable(what) else what
        time.sleep(0.02)
    return result


class Server:
    """A server that runs. Lives as long as its process."""

    def __init__(self, kind, folder, flags, environment):
        self.kind = kind
        self.gone = False
        self.folder = folder
        self.socket = folder / "socket"
        command, *arguments = COMMANDS[kind]
        self.output = (folder / "output").open("wb")
        self.process = subprocess.Popen(
            [sys.executable, "-m", command, *(word.format(socket=self.socket) for word in arguments), *flags],
            cwd=ROOT,
            env={**ENVIRONMENT, "SERVERS_FOLDER": str(folder), "PYTHONUNBUFFERED": "1", **environment},
            stdin=subprocess.DEVNULL,
            stdout=self.output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a group of its own, to be signalled as a terminal or systemd does
        )
        self.client = self.new_client()

    def new_client(self):
        """Return a client with connections of its own, kept alive."""
        transport = httpx.HTTPTransport(uds=str(self.socket), verify=False)  # certificates take 20 ms to load
        return httpx.Client(transport=transport, base_url="http://x", timeout=PATIENCE)

    # -- what it is asked -----------------------------------------------------------------------

    def get(self, path, **query):
        """Ask once, and expect it to be accepted."""
        response = self.client.get(path, params=query)
        assert response.status_code == 200, (response.status_code, self.story())
        return response.text

    def wait_until_ready(self):
        """Wait until it serves, all workers of it."""
        workers = 2 if "workers" in self.kind else 1

        def listening():
            assert self.process.poll() is None, self.story()
            with socket.socket(socket.AF_UNIX) as connection:
                return len(self.workers()) >= workers and connection.connect_ex(str(self.socket)) == 0

        wait_for(listening, self.story)
        self.wait_until_answered(workers)
        self.get("/ready")

    def wait_until_answered(self, count):
        """Wait until each of the newest workers has answered: one of granian's that is just starting misses signals."""
        newest = {str(worker) for worker in self.workers()[-count:]}

        def answered():
            newest.discard(self.try_to_ask("/ready"))
            return not newest

        wait_for(answered, self.story)

    def try_to_ask(self, target):
        """Ask on a connection of its own; return the text of the answer, or None from a server that closes it.

        By hand, because httpx leaves a socket open that could not be connected, and Python complains of it
        in whichever test comes next.
        """
        try:
            with self.ask(target, "Connection: close\r\n") as connection:
                answer = b"".join(iter(lambda: connection.recv(1000), b""))
        except OSError:
            return None
        return answer.partition(b"\r\n\r\n")[2].decode() or None

    def ask(self, target, headers=""):
        """Send a request by hand, on a connection of its own, and return that."""
        with contextlib.ExitStack() as failure:
            connection = failure.enter_context(socket.socket(socket.AF_UNIX))
            connection.settimeout(PATIENCE)
            connection.connect(str(self.socket))
            connection.sendall(f"GET {target} HTTP/1.1\r\nHost: x\r\n{headers}\r\n".encode())
            failure.pop_all()
        return connection

    def connect(self, target, headers=""):
        """Do the same, and read up to the end of the answer's head."""
        connection = self.ask(target, headers)
        head = b""
        while b"\r\n\r\n" not in head:
            part = connection.recv(1)
            assert part, (head, self.story())
            head += part
        return connection

    def open_stream(self):
        """Open the stream, and return its socket once it flows."""
        connection = self.connect("/stream")
        assert connection.recv(1)
        return connection

    def open_websocket(self, *messages):
        """Open a websocket, send texts, and return its socket once each is answered."""
        headers = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        connection = self.connect("/", headers + "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n")
        for text in messages:
            connection.sendall(bytes([0x81, 0x80 | len(text), 0, 0, 0, 0]) + text.encode())  # masked by zeros
            answer = b""
            while len(answer) < 2 + len("accepted"):
                answer += connection.recv(100)
            assert answer[2:] == b"accepted"
        return connection

    # -- what it is told ---------------------------------------------------------------------------

    def tell(self, signum=signal.SIGTERM):
        """Signal the process that was started."""
        self.process.send_signal(signum)

    def tell_group(self, signum=signal.SIGTERM):
        """Signal it and its workers, as a terminal and systemd do."""
        os.killpg(self.process.pid, signum)

    def wait_until_noted(self, *lines, count=1):
        """Wait until the journal has these lines, each so many times."""
        wait_for(lambda: all(self.journal().count(line) >= count for line in lines), self.story)

    def wait_until_gone(self):
        """Wait until neither it nor a worker of it is left; return the exit code."""
        wait_for(lambda: self.process.poll() is not None, self.story)
        wait_for(self._group_is_gone, self.story)
        self.gone = True  # its number may be somebody else's from now on
        return self.process.returncode

    def _group_is_gone(self):
        try:
            os.killpg(self.process.pid, 0)
        except ProcessLookupError:
            return True
        return False

    # -- what it has done ---------------------------------------------------------------------------

    def journal(self):
        """Return what happened in the app, in order."""
        file = self.folder / "journal"
        return file.read_text().splitlines() if file.exists() else []

    def done(self):
        """Return the names of the tasks that were done, in order; what runs twice is there twice."""
        return [line.removeprefix("done ") for line in self.journal() if line.startswith("done ")]

    def log(self):
        """Return what was logged by all its processes."""
        return (self.folder / "log").read_text()

    def drains(self):
        """Return the counts of each drain that was logged: finished, failed, cancelled, abandoned."""
        found = re.findall(r"drained in \S+ s: (\d+) finished, (\d+) failed, (\d+) cancelled, (\d+) aband", self.log())
        return [tuple(map(int, counts)) for counts in found]

    def said(self):
        """Return what the server itself wrote."""
        return (self.folder / "output").read_text()

    def workers(self):
        """Return the ids of the processes that have served so far, the oldest first."""
        return [int(line.split()[1]) for line in self.journal() if line.startswith("serving ")]

    def story(self):
        """Return everything that is known, for the message of a failure."""
        parts = [f"{self.kind}, exit code {self.process.poll()}"]
        for name in ("journal", "log", "output"):
            file = self.folder / name
            parts.append(f"--- {name}\n{file.read_text() if file.exists() else '(none)'}")
        return "\n".join(parts)


@contextlib.contextmanager
def running(kind, *flags, **environment):
    """Start a server, wait until it serves, and make sure that it is gone at the end."""
    folder = Path(tempfile.mkdtemp(prefix="servers-"))  # short: the name of a socket has 107 characters
    server = Server(kind, folder, flags, environment)
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.client.close()
        if not server.gone:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.process.pid, signal.SIGKILL)
        server.process.wait()
        server.output.close()
        shutil.rmtree(folder)
