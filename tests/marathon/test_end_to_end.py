"""The app as a process, spoken to over sockets, with a mail server outside of it."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from email import message_from_string, policy
from pathlib import Path

import httpx
import pytest

from tests.marathon.support import fields

ROOT = Path(__file__).parents[2]
DEADLINE = 30.0  # seconds for a process to do what it is asked; only a broken one needs them
THANKS = "Thanks for registering for our Marathon"
SLOW = 0.3  # seconds the mail server takes for a mail: against it, the order of events is read


class App:
    """A running app: its process, and a client of it."""

    def __init__(self, process, url):
        self.process = process
        self.url = url
        self.client = httpx.Client(base_url=url)

    def register(self, route, **changes):
        """Post a registration; return the answer, when it was asked for and when it came."""
        asked = time.monotonic()
        response = self.client.post(f"/api/marathon-{route}", json=fields(**changes))
        return response, asked, time.monotonic()

    def stop(self, signum=signal.SIGTERM):
        """Send a signal and return the exit code, and everything the process said."""
        self.process.send_signal(signum)
        return self.ended()

    def ended(self):
        """Wait for the process's own end; return its exit code, and everything it said."""
        output, _ = self.process.communicate(timeout=DEADLINE)
        return self.process.returncode, output


def environment(folder, **variables):
    """Return the environment of an app that keeps its file in a folder and takes a free port."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MARATHON_", "DEFERRED_"))}
    return {
        **inherited,
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        "MARATHON_PORT": "0",
        "MARATHON_DATABASE_URL": f"sqlite:///{folder}/var/marathon.db",
        **variables,
    }


@contextlib.contextmanager
def running(folder, *arguments, **variables):
    """Start the app, wait until it says where it is, and make sure that it is gone at the end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "marathon_app", *arguments],
        cwd=folder,
        env=environment(folder, **variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    app = None
    try:
        said = []
        for line in process.stdout:
            said.append(line)
            if found := re.search(r"is open: (http://\S+)/", line):
                app = App(process, found[1])
                break
        assert app is not None, "".join(said)
        yield app
    finally:
        if app is not None:
            app.client.close()
        process.kill()
        process.communicate()


@pytest.fixture
def outside(tmp_path):
    """Give a mail server in another process: its URL, and a function that reads what it has."""
    file = tmp_path / "mails.jsonl"
    script = Path(__file__).with_name("smtp_process.py")
    process = subprocess.Popen([sys.executable, script, file, str(SLOW)], stdout=subprocess.PIPE, text=True)
    port = int(process.stdout.readline())

    def mails():
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    yield f"smtp://127.0.0.1:{port}", mails
    process.kill()
    process.communicate()


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request):
    """Give the variables that name a database of each kind: the app's own file, or one on a real server."""
    if request.param == "sqlite":
        return {}
    return {"MARATHON_DATABASE_URL": request.getfixturevalue("postgresql").url}


def wait_for(condition):
    """Poll another process until a condition holds; the deadline is for a broken one."""
    deadline = time.monotonic() + DEADLINE
    while not (result := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return result


def test_the_five_routes_over_a_socket(tmp_path, outside, database):
    """Each route registers and confirms; only the sequential answer waits for the mail."""
    url, mails = outside
    with running(tmp_path, MARATHON_SMTP_URL=url, **database) as app:
        answers = {}
        routes = {"sequential": 200, "fire-and-forget": 201, "concurrent": 202, "waituntil": 201, "durable": 201}
        for route, status in routes.items():
            email = f"{route}@example.com"
            response, asked, answered = app.register(route, email=email)
            assert (response.status_code, response.text) == (status, THANKS)
            answers[email] = (asked, answered)
            wait_for(lambda email=email: [mail for mail in mails() if mail["to"] == [email]])
        assert app.client.get("/api/stats").json() == {"runners": 5}
        arrived = {mail["to"][0]: mail for mail in mails()}

    for email, (asked, answered) in answers.items():
        mail = arrived[email]
        assert asked < mail["came"] < mail["answered"]
        # The mail was answered before the response, or else the response before the mail.
        assert (mail["answered"] < answered) is email.startswith("sequential")
    assert arrived["waituntil@example.com"]["came"] > answers["waituntil@example.com"][0]
    slow = answers["sequential@example.com"]
    for email in list(answers)[1:]:
        asked, answered = answers[email]
        assert (answered - asked) < (slow[1] - slow[0]) / 2

    message = message_from_string(arrived["waituntil@example.com"]["content"], policy=policy.SMTP)
    assert message["To"] == "waituntil@example.com"
    assert "Hello Ada," in message.get_body(("plain",)).get_content()
    assert "Hello Ada," in message.get_body(("html",)).get_content()
    assert len({message_from_string(mail["content"])["Message-ID"] for mail in arrived.values()}) == 5


def test_sigterm_right_after_the_answer_loses_no_mail(tmp_path, outside):
    """C01: SIGTERM right after a -waituntil answer: it ends by itself with code 0, and the mail has arrived."""
    url, mails = outside
    with running(tmp_path, MARATHON_SMTP_URL=url) as app:
        response, _, answered = app.register("waituntil")
        code, output = app.stop()

    assert response.status_code == 201
    assert code == 0, output
    (mail,) = mails()
    assert mail["to"] == ["ada@example.com"]
    assert mail["answered"] > answered
    assert "0 failed" in output
    assert "Traceback" not in output


def test_a_kill_right_after_the_durable_answer_loses_nothing(tmp_path, outside, database):
    """C08, D02: SIGKILL right after a -durable answer, then a start: one row, and the mail arrives."""
    url, mails = outside
    with running(tmp_path, MARATHON_SMTP_URL=url, **database) as app:
        response, *_ = app.register("durable")
        app.process.kill()
        app.ended()
    assert response.status_code == 201

    with running(tmp_path, MARATHON_SMTP_URL=url, **database) as app:
        wait_for(mails)
        assert app.register("durable")[0].text == THANKS  # the client asks again, having heard nothing
        assert app.client.get("/api/stats").json() == {"runners": 1}
        code, output = app.stop()
    assert code == 0, output
    assert {mail["to"][0] for mail in mails()} == {"ada@example.com"}
    # A server that had the mail when the app was killed may be given it again: it is the same mail.
    assert len({message_from_string(mail["content"])["Message-ID"] for mail in mails()}) == 1


def test_the_outbox_survives_a_kill(tmp_path):
    """C08: A mail that the embedded mailbox took before a SIGKILL is shown after it, and the file goes in the end."""
    with running(tmp_path) as app:
        app.register("durable")
        (mail,) = wait_for(lambda: app.client.get("/dev/outbox").json())
        app.process.kill()
        app.ended()
    assert [file.name for file in (tmp_path / "var").glob("*outbox*")] == ["marathon.db-outbox.jsonl"]

    with running(tmp_path) as app:
        assert app.client.get("/dev/outbox").json() == [mail]
        assert app.stop()[0] == 0
    assert not list((tmp_path / "var").glob("*outbox*"))


def test_many_accepted_mails_survive_sigterm(tmp_path, outside):
    """C01, F12: Every registration that was answered 2xx before the signal has its mail."""
    url, mails = outside
    with running(tmp_path, MARATHON_SMTP_URL=url) as app:
        for number in range(30):
            response, *_ = app.register("waituntil", email=f"runner{number}@example.com")
            assert response.status_code == 201
        code, output = app.stop()

    assert code == 0, output
    assert {mail["to"][0] for mail in mails()} == {f"runner{number}@example.com" for number in range(30)}


def test_ctrl_c_ends_in_order_too(tmp_path, outside):
    """C04: SIGINT drains as SIGTERM does, and the exit code is 0."""
    url, mails = outside
    with running(tmp_path, MARATHON_SMTP_URL=url) as app:
        app.register("waituntil")
        code, output = app.stop(signal.SIGINT)

    assert code == 0, output
    assert len(mails()) == 1


def test_a_drain_that_takes_too_long_is_cut(tmp_path):
    """C02: Work longer than the drain's budget is cancelled and named, and the process still ends by itself."""
    with running(tmp_path, MARATHON_DEMO_DELAYS="mail=60000", DEFERRED_DRAIN_TIMEOUT="0.2") as app:
        app.register("waituntil")
        code, output = app.stop()

    assert code == 0, output
    assert "1 cancelled" in output
    assert "send confirmation e-mail" in output


def test_the_outbox_and_the_runners_that_are_kept(tmp_path):
    """With the embedded mailbox the outbox shows the mail; a second run knows the first one's runners."""
    with running(tmp_path) as app:
        assert app.register("waituntil")[0].status_code == 201
        (mail,) = wait_for(lambda: app.client.get("/dev/outbox").json())
        assert mail["to"] == "ada@example.com"
        assert app.stop()[0] == 0

    with running(tmp_path) as app:
        assert app.client.get("/api/stats").json() == {"runners": 1}
        assert app.register("sequential", email="ADA@example.com")[0].status_code == 200
        assert app.client.get("/dev/outbox").json() == []


def test_the_embedded_mailbox_outlives_the_drain(tmp_path):
    """B32: Mail that waits at SIGTERM still finds the embedded mail server open."""
    with running(tmp_path, MARATHON_DEMO_DELAYS="mail=300") as app:
        app.register("waituntil")
        code, output = app.stop()

    assert code == 0, output
    assert "1 finished, 0 failed" in output


def test_demo_delays_are_felt(tmp_path):
    """The delays of the demonstration stretch the routes as they say: both steps, one, or none."""
    with running(tmp_path, MARATHON_DEMO_DELAYS="insert=100,mail=300") as app:
        took = {}
        for route in ("sequential", "waituntil", "concurrent"):
            _, asked, answered = app.register(route, email=f"{route}@example.com")
            took[route] = answered - asked

    assert took["sequential"] >= 0.4
    assert 0.1 <= took["waituntil"] < took["sequential"]
    assert took["concurrent"] < took["waituntil"]


def test_a_port_in_use_is_one_line(tmp_path):
    """A port that is taken: one clear line and exit code 1."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        ran = refused(tmp_path, MARATHON_PORT=port)

    assert ran.returncode == 1
    assert ran.stdout == ""
    assert len(ran.stderr.splitlines()) == 1
    assert port in ran.stderr
    assert "MARATHON_PORT" in ran.stderr


@pytest.mark.parametrize(
    ("variables", "names"),
    [
        ({"MARATHON_PORT": "x", "MARATHON_COLOUR": "red"}, ["MARATHON_PORT", "MARATHON_COLOUR"]),
        ({"MARATHON_DATABASE_URL": "sqlite:////dev/null/marathon.db"}, ["MARATHON_DATABASE_URL"]),
        ({"DEFERRED_DRAIN_TIMEOUT": "soon"}, ["DEFERRED_DRAIN_TIMEOUT"]),
    ],
)
def test_settings_that_cannot_be_used(tmp_path, variables, names):
    """Each bad variable is named, with no traceback, and the exit code is 2."""
    ran = refused(tmp_path, **variables)

    assert ran.returncode == 2
    assert all(name in ran.stderr for name in names)
    assert "Traceback" not in ran.stderr
    assert ran.stdout == ""


def refused(folder, *arguments, **variables):
    """Run an app that must not start."""
    return subprocess.run(
        [sys.executable, "-m", "marathon_app", *arguments],
        cwd=folder,
        env=environment(folder, **variables),
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE,
    )


def test_too_large_a_body_is_not_read(tmp_path):
    """F13: Over a socket too a large body is answered 413, announced or not, and the server lives on."""

    def endless():
        for _ in range(5000):
            yield b" " * 1024

    with running(tmp_path) as app:
        headers = {"content-type": "application/json"}
        for content in (b" " * 100_000, endless()):
            response = httpx.post(f"{app.url}/api/marathon-waituntil", content=content, headers=headers)
            assert response.status_code == 413
        assert app.client.get("/api/stats").json() == {"runners": 0}
