"""What takes minutes, run by `make servers`: each server's own budgets, and replacement after replacement."""

import signal

import pytest

from tests.servers.support import running, wait_for
from tests.servers.test_replacing import Load

DEFAULTS = {"SERVERS_DRAIN": "20", "SERVERS_GRACE": "2"}  # seconds: a supervisor's own
ROUNDS = 10


@pytest.mark.parametrize("kind", ["uvicorn", "hypercorn", "granian", "gunicorn", "gunicorn asgi", "aiohttp"])
def test_the_defaults_fit_each_other(kind):
    """C01, C02: with no setting, 15 s of work finish, hours of it are cancelled, and no server kills before."""
    with running(kind, **DEFAULTS) as server:
        server.get("/work", name="short", count=200, seconds=15)
        server.get("/long")
        server.wait_until_noted("started endless_job")
        server.tell()
        server.wait_until_gone()
        assert len(server.done()) == 200, server.story()
        assert [unhappy for _, *unhappy in server.drains()] == [[0, 1, 2]]
        assert "app closed" in server.journal()


@pytest.mark.parametrize("kind", ["gunicorn workers", "uvicorn workers", "granian workers", "hypercorn workers"])
def test_reload_after_reload(kind):
    """C16: ten reloads under load lose nothing."""
    flags = ["--respawn-interval", "0.5"] if kind == "granian workers" else []
    with running(kind, *flags) as server, Load(server) as load:
        for number in range(1, ROUNDS + 1):
            server.tell(signal.SIGHUP)
            wait_for(lambda number=number: len(server.workers()) >= 2 + 2 * number, server.story)
            served = len(load.accepted)
            wait_for(lambda served=served: len(load.accepted) > served + 20, server.story)
            server.wait_until_answered(2)
        load.__exit__()
        server.tell()
        server.wait_until_gone()
        load.check(server)


def test_a_lifetime_of_a_minute():
    """C14: granian replaces a worker by its age, a minute at least; none of its tasks is lost."""
    with running("granian", "--workers-lifetime", "60", "--respawn-interval", "0.5") as server, Load(server) as load:
        wait_for(lambda: len(server.workers()) > 1, server.story, patience=200)
        server.wait_until_answered(1)
        load.__exit__()
        server.tell()
        server.wait_until_gone()
        load.check(server)
