"""Workers that are replaced while the server serves: after so many requests, or at SIGHUP."""

import itertools
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.servers.support import running, wait_for


class Load:
    """Clients that ask for work all the time, from when it is entered until it is left.

    Attributes:
        accepted: The names of the tasks that were accepted.
        dropped: The names of those whose connection a server closed instead of answering.
        refused: Every other thing that went wrong.
    """

    def __init__(self, server, clients=4):
        self.accepted = []
        self.dropped = []
        self.refused = []
        self._server = server
        self._numbers = itertools.count()
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(clients)
        self._clients = clients

    def __enter__(self):
        for _ in range(self._clients):
            self._pool.submit(self._ask)
        return self

    def __exit__(self, *error):
        self._stop.set()
        self._pool.shutdown()

    def _ask(self):
        while not self._stop.is_set():
            name = str(next(self._numbers))
            with self._server.new_client() as client:
                try:
                    client.get("/work", params={"name": name, "seconds": 0.3}).raise_for_status()
                except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
                    self.dropped.append(f"{name} 0")
                except Exception as error:  # noqa: BLE001  # the test asserts that there is none
                    self.refused.append(error)
                else:
                    self.accepted.append(f"{name} 0")
            time.sleep(0.02)  # seconds: a load that leaves the machine to the servers

    def check(self, server):
        """Assert that what was accepted was done, once; a dropped request may have been accepted or not.

        A server drops a request that comes in as a worker of it closes its connections; a client repeats it.
        """
        done = server.done()
        assert self.refused == []
        assert len(done) == len(set(done))
        assert set(self.accepted) <= set(done)
        assert set(done) <= {*self.accepted, *self.dropped}
        assert len(self.dropped) <= self._clients * len(server.workers())


@pytest.mark.parametrize(
    ("kind", "flags"),
    [
        ("gunicorn workers", ["--max-requests", "50"]),
        ("gunicorn", ["--max-requests", "50"]),
        ("hypercorn workers", ["--max-requests", "50"]),
    ],
)
def test_max_requests(kind, flags):
    """C14: a worker that has had its requests finishes its tasks before another takes its place; none is lost."""
    with running(kind, *flags) as server, Load(server) as load:
        first = server.workers()
        wait_for(lambda: len(server.workers()) >= len(first) + 2, server.story)
        load.__exit__()
        server.tell()
        server.wait_until_gone()
        load.check(server)


def test_max_requests_of_uvicorn():
    """C14: uvicorn without workers ends after its requests, its tasks finished; to start it again is up to others."""
    with running("uvicorn", "--limit-max-requests", "20") as server:
        accepted = []
        while server.try_to_ask(f"/work?name={len(accepted)}&seconds=0.5") == "accepted":
            accepted.append(f"{len(accepted)} 0")
        server.wait_until_gone()
        assert len(accepted) >= 15, "most of twenty; some saw whether it was ready"
        done = server.done()
        assert len(done) == len(set(done))
        assert set(accepted) <= set(done) <= {*accepted, f"{len(accepted)} 0"}, server.story()
        assert server.process.returncode == 0


@pytest.mark.parametrize(
    ("kind", "flags"),
    [
        ("gunicorn workers", []),
        ("uvicorn workers", []),
        ("granian workers", ["--respawn-interval", "0.5"]),
        ("hypercorn workers", []),
    ],
)
def test_sighup(kind, flags):
    """C16, C17: at SIGHUP new workers take over, none is refused, and the old ones finish their tasks."""
    with running(kind, *flags) as server, Load(server) as load:
        wait_for(lambda: len(load.accepted) > 20, server.story)
        server.tell(signal.SIGHUP)
        wait_for(lambda: len(server.workers()) >= 4, server.story)
        served = len(load.accepted)
        wait_for(lambda: len(load.accepted) > served + 20, server.story)
        server.wait_until_answered(2)
        load.__exit__()
        server.tell()
        server.wait_until_gone()
        load.check(server)
