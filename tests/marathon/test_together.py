"""PostgreSQL, the app and a worker as `make run-postgres` starts them: three processes, one command."""

import contextlib
import os
import signal
import tempfile
from pathlib import Path

import psutil
import pytest

from marathon_app.worker import opened
from tests.marathon.test_end_to_end import THANKS, refused, running, wait_for


@pytest.fixture
def folder():
    """Give a folder that PostgreSQL's own user may reach, and that is gone at the end."""
    with tempfile.TemporaryDirectory(prefix="deferred-together-") as folder:
        yield Path(folder)


@contextlib.contextmanager
def together(folder, **variables):
    """Run the three on a folder."""
    with running(folder, "together", MARATHON_DATABASE_URL="", MARATHON_POSTGRES=str(folder), **variables) as app:
        yield app


def family(app):
    """Return what was started, by what it is; PostgreSQL among it, which has no parent."""
    children = psutil.Process(app.process.pid).children(recursive=True)
    found = {}
    for process in children:
        command = " ".join(process.cmdline())
        for name, sign in (("app", "--listener"), ("worker", "deferred worker"), ("keeper", "marathon_app.embedded")):
            if sign in command:
                found[name] = process
    return found


def postmaster(folder):
    """Return the process of PostgreSQL on this folder, if it runs."""
    try:
        process = psutil.Process(int((folder / "data" / "postmaster.pid").read_text().split()[0]))
        return None if process.status() == psutil.STATUS_ZOMBIE else process
    except (FileNotFoundError, IndexError, psutil.NoSuchProcess):  # an empty file is just being written
        return None


def outbox(app, email):
    """Return the mails that the embedded mailbox has for an address."""
    return app.client.get("/dev/outbox", params={"to": email}).json()


def gone(processes):
    """Say whether all of them have ended, also if nobody has taken note of it."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                return False
    return True


def test_the_whole_demo_on_postgresql(folder):
    """C08 D02: Five routes, a SIGKILL after -durable: one row, one mail; Ctrl-C ends all and keeps the rows."""
    with together(folder) as app:
        for route in ("sequential", "fire-and-forget", "concurrent", "waituntil", "durable"):
            response = app.register(route, email=f"{route}@example.com")
            assert response.text == THANKS
            wait_for(lambda route=route: outbox(app, f"{route}@example.com"))
        assert app.client.get("/").status_code == 200

        processes = family(app)
        assert set(processes) == {"app", "worker", "keeper"}
        assert app.register("durable", email="killed@example.com").status_code == 201
        processes["app"].kill()
        processes["app"].wait()
        # Who calls while nobody runs waits: the socket is held by the parent.
        assert app.client.get("/api/stats").json() == {"runners": 6}
        (_mail,) = wait_for(lambda: outbox(app, "killed@example.com"))

        second = family(app)["app"]
        app.client.post("/dev/kill", json={})
        second.wait()
        processes["worker"].kill()
        assert app.register("durable", email="both@example.com").status_code == 201
        wait_for(lambda: outbox(app, "both@example.com"))
        everything = [*family(app).values(), postmaster(folder)]
        mails = app.client.get("/dev/outbox").json()
        assert app.client.get("/api/stats").json() == {"runners": 7}
        code, output = app.stop(signal.SIGINT)

    assert code == 0, output
    assert "Traceback" not in output
    # A worker that is killed between its mail and the note of it sends it again: it is the same mail.
    assert len({mail["message_id"] for mail in mails}) == len({mail["to"] for mail in mails}) == 7
    wait_for(lambda: gone(everything))  # its file goes a moment before PostgreSQL does
    assert postmaster(folder) is None

    with together(folder) as app:
        assert app.client.get("/api/stats").json() == {"runners": 7}
        # The worker was killed, perhaps before it noted its last mail: that one may come again, and no new one.
        assert {mail["message_id"] for mail in app.client.get("/dev/outbox").json()} <= {
            mail["message_id"] for mail in mails
        }
        again = refused(folder, "together", MARATHON_DATABASE_URL="", MARATHON_POSTGRES=str(folder))
        assert (again.returncode, "another one uses it" in again.stderr) == (1, True)
        everything = [*family(app).values(), postmaster(folder)]
        app.process.kill()  # the parent itself: nobody is left to tell the others
        wait_for(lambda: gone(everything))


def test_postgresql_that_dies_is_started_again(folder):
    """D14: When PostgreSQL is killed it is started again, and what was accepted before is there and sent."""
    with together(folder) as app:
        assert app.register("durable").status_code == 201
        before = postmaster(folder)
        before.kill()
        wait_for(lambda: postmaster(folder) not in {None, before})
        wait_for(lambda: app.client.get("/health/ready").status_code == 200)
        wait_for(lambda: outbox(app, "ada@example.com"))
        assert app.register("durable", email="later@example.com").status_code == 201
        wait_for(lambda: outbox(app, "later@example.com"))
        assert app.stop()[0] == 0


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        ({"MARATHON_DATABASE_URL": "sqlite:///x.db"}, "MARATHON_DATABASE_URL"),
        ({"MARATHON_DATABASE_URL": "", "MARATHON_POSTGRES": "/dev/null/folder"}, "MARATHON_POSTGRES"),
        ({"MARATHON_DATABASE_URL": "", "MARATHON_POSTGRES": "with a space"}, "MARATHON_POSTGRES"),
        ({"MARATHON_DATABASE_URL": "", "MARATHON_PORT": "x"}, "MARATHON_PORT"),
    ],
)
def test_settings_that_it_cannot_use(tmp_path, variables, name):
    """Each is named with its mend, and nothing is started."""
    ran = refused(tmp_path, "together", **variables)

    assert (ran.returncode, ran.stdout) == (2, "")
    assert name in ran.stderr
    assert "Traceback" not in ran.stderr


async def test_a_worker_needs_to_know_the_mail_server(monkeypatch):
    """A worker without MARATHON_SMTP_URL says so: the embedded mailbox is in another process."""
    for name in [name for name in os.environ if name.startswith("MARATHON_")]:
        monkeypatch.delenv(name)

    with pytest.raises(ValueError, match="MARATHON_SMTP_URL"):
        async with opened():
            pass
