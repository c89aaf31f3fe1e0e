"""The app as a process, spoken to over sockets, with a mail server outside of it."""

import contextlib
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from email import message_from_string, policy
from pathlib import Path
from threading import Event, Thread

import httpx
import pytest

from tests.marathon.support import fields

ROOT = Path(__file__).parents[2]
DEADLINE = 30.0  # seconds for a process to do what it is asked; only a broken one needs them
THANKS = "Thanks for registering for our Marathon"


class Output(Thread):
    """What a process says, read while it says it: one whose pipe is full stands still. It lives as long as the pipe."""

    def __init__(self, pipe):
        super().__init__(daemon=True)
        self.pipe = pipe
        self.lines = []
        self.url = None
        self.is_known = Event()
        self.start()

    def run(self):
        """Read to the end; the address is known when it was said, or never will be."""
        with self.pipe:
            for line in self.pipe:
                self.lines.append(line)
                if self.url is None and (found := re.search(r"is open: (http://\S+)/", line)):
                    self.url = found[1]
                    self.is_known.set()
        self.is_known.set()


class App:
    """A running app: its process, what that says, and a client of it."""

    def __init__(self, process, output):
        self.process = process
        self.output = output
        self.url = output.url
        # No connection is kept: the server closes an idle one after as many seconds as httpx would use it again.
        self.client = httpx.Client(base_url=self.url, timeout=60, limits=httpx.Limits(max_keepalive_connections=0))

    def register(self, route, **changes):
        """Post a registration; return the answer."""
        return self.client.post(f"/api/marathon-{route}", json=fields(**changes))

    def stop(self, signum=signal.SIGTERM):
        """Send a signal and return the exit code, and everything the process said."""
        self.process.send_signal(signum)
        return self.ended()

    def ended(self):
        """Wait for the process's own end; return its exit code, and everything it said."""
        code = self.process.wait(DEADLINE)
        self.output.join(DEADLINE)
        return code, "".join(self.output.lines)


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
    output, app = Output(process.stdout), None
    try:
        output.is_known.wait(DEADLINE)
        assert output.url is not None, "".join(output.lines)
        app = App(process, output)
        yield app
    finally:
        if app is not None:
            app.client.close()
        process.kill()
        process.wait()
        output.join(DEADLINE)


class Outside:
    """A mail server in another process: its URL, and what it has written down."""

    def __init__(self, folder, port):
        self.folder = folder
        self.url = f"smtp://127.0.0.1:{port}"

    def hold(self):
        """Let it answer no mail from now on."""
        (self.folder / "hold").touch()

    def release(self):
        """Let it answer."""
        (self.folder / "hold").unlink()

    def mails(self, what="answered"):
        """Return the mails that it has answered, or those that ``"came"``."""
        file = self.folder / what
        lines = file.read_text().splitlines(keepends=True) if file.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]  # the last one may be half written


@pytest.fixture
def outside(tmp_path):
    """Give a mail server in another process."""
    folder = tmp_path / "outside"
    folder.mkdir()
    script = Path(__file__).with_name("smtp_process.py")
    process = subprocess.Popen([sys.executable, script, folder], stdout=subprocess.PIPE, text=True)
    yield Outside(folder, int(process.stdout.readline()))
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
    with running(tmp_path, MARATHON_SMTP_URL=outside.url, **database) as app, ThreadPoolExecutor() as threads:
        routes = {"sequential": 200, "fire-and-forget": 201, "concurrent": 202, "waituntil": 201, "durable": 201}
        for count, (route, status) in enumerate(routes.items(), 1):
            outside.hold()
            answer = threads.submit(app.register, route, email=f"{route}@example.com")
            if route == "sequential":
                wait_for(lambda: outside.mails("came"))
                assert not answer.done()
                outside.release()
            response = answer.result(DEADLINE)
            assert (response.status_code, response.text) == (status, THANKS)
            if route != "sequential":
                assert len(outside.mails()) == count - 1
                outside.release()
            wait_for(lambda count=count: len(outside.mails()) == count)
        assert app.client.get("/api/stats").json() == {"runners": 5}
    arrived = {mail["to"][0]: message_from_string(mail["content"], policy=policy.SMTP) for mail in outside.mails()}
    assert set(arrived) == {f"{route}@example.com" for route in routes}

    message = arrived["waituntil@example.com"]
    assert message["To"] == "waituntil@example.com"
    assert "Hello Ada," in message.get_body(("plain",)).get_content()
    assert "Hello Ada," in message.get_body(("html",)).get_content()
    assert len({message["Message-ID"] for message in arrived.values()}) == 5


def test_sigterm_right_after_the_answer_loses_no_mail(tmp_path, outside):
    """C01: SIGTERM right after a -waituntil answer: it ends by itself with code 0, and the mail has arrived."""
    outside.hold()
    with running(tmp_path, MARATHON_SMTP_URL=outside.url) as app:
        response = app.register("waituntil")
        app.process.send_signal(signal.SIGTERM)
        outside.release()
        code, output = app.ended()

    assert response.status_code == 201
    assert code == 0, output
    (mail,) = outside.mails()
    assert mail["to"] == ["ada@example.com"]
    assert "0 failed" in output
    assert "Traceback" not in output


def test_a_kill_right_after_the_durable_answer_loses_nothing(tmp_path, outside, database):
    """C08, C09, D02: SIGKILL, the kernel's out of memory too, right after a -durable answer: one row, and the mail."""
    with running(tmp_path, MARATHON_SMTP_URL=outside.url, **database) as app:
        response = app.register("durable")
        app.process.kill()
        app.ended()
    assert response.status_code == 201

    with running(tmp_path, MARATHON_SMTP_URL=outside.url, **database) as app:
        wait_for(outside.mails)
        assert app.register("durable").text == THANKS  # the client asks again, having heard nothing
        assert app.client.get("/api/stats").json() == {"runners": 1}
        code, output = app.stop()
    assert code == 0, output
    assert {mail["to"][0] for mail in outside.mails()} == {"ada@example.com"}
    # A server that had the mail when the app was killed may be given it again: it is the same mail.
    assert len({message_from_string(mail["content"])["Message-ID"] for mail in outside.mails()}) == 1


def test_the_outbox_survives_a_kill(tmp_path):
    """C08: A mail that the embedded mailbox took before a SIGKILL is shown after it, and the file goes in the end."""
    with running(tmp_path) as app:
        app.register("durable")
        (mail,) = wait_for(lambda: app.client.get("/dev/outbox").json())
        app.process.kill()
        app.ended()
    assert [file.name for file in (tmp_path / "var").glob("*outbox*")] == ["marathon.db-outbox.jsonl"]

    with running(tmp_path) as app:
        first, *again = app.client.get("/dev/outbox").json()
        assert first == mail
        # A job that was not yet noted as done is delivered again, with the same mail.
        assert {other["message_id"] for other in again} <= {mail["message_id"]}
        assert app.stop()[0] == 0
    assert not list((tmp_path / "var").glob("*outbox*"))


def test_many_accepted_mails_survive_sigterm(tmp_path, outside):
    """C01, F12: Every registration that was answered 2xx before the signal has its mail."""
    with running(tmp_path, MARATHON_SMTP_URL=outside.url) as app:
        for number in range(30):
            response = app.register("waituntil", email=f"runner{number}@example.com")
            assert response.status_code == 201
        code, output = app.stop()

    assert code == 0, output
    assert {mail["to"][0] for mail in outside.mails()} == {f"runner{number}@example.com" for number in range(30)}


def test_ctrl_c_ends_in_order_too(tmp_path, outside):
    """SN-04: SIGINT drains as SIGTERM does, and the exit code is 0."""
    with running(tmp_path, MARATHON_SMTP_URL=outside.url) as app:
        app.register("waituntil")
        code, output = app.stop(signal.SIGINT)

    assert code == 0, output
    assert len(outside.mails()) == 1


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
        assert app.register("waituntil").status_code == 201
        (mail,) = wait_for(lambda: app.client.get("/dev/outbox").json())
        assert mail["to"] == "ada@example.com"
        assert app.stop()[0] == 0

    with running(tmp_path) as app:
        assert app.client.get("/api/stats").json() == {"runners": 1}
        assert app.register("sequential", email="ADA@example.com").status_code == 200
        assert app.client.get("/dev/outbox").json() == []


def test_the_embedded_mailbox_outlives_the_drain(tmp_path):
    """B32: Mail that waits at SIGTERM still finds the embedded mail server open."""
    with running(tmp_path, MARATHON_DEMO_DELAYS="mail=3000") as app:
        app.register("waituntil")
        code, output = app.stop()

    assert code == 0, output
    assert "1 finished, 0 failed" in output


def test_demo_delays_are_felt(tmp_path):
    """The delays of the demonstration stretch the routes as they say: both steps, one, or none."""
    with running(tmp_path, MARATHON_DEMO_DELAYS="insert=100,mail=300") as app:
        assert app.register("sequential").elapsed.total_seconds() >= 0.4
        assert app.register("waituntil", email="waituntil@example.com").elapsed.total_seconds() >= 0.1
    with running(tmp_path, MARATHON_DEMO_DELAYS="insert=60000,mail=60000") as app:
        assert app.register("concurrent", email="concurrent@example.com").text == THANKS
        assert app.client.get("/api/stats").json() == {"runners": 2}


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
            response = httpx.post(f"{app.url}/api/marathon-waituntil", content=content, headers=headers, timeout=60)
            assert response.status_code == 413
        assert app.client.get("/api/stats").json() == {"runners": 0}


def test_a_thousand_connections_leave_nothing_behind(tmp_path, request):
    """F14: a thousand connections at once, silent, halfway or answered, are gone when their clients are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))  # many machines allow 1024 unasked
    request.addfinalizer(lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard)))
    with running(tmp_path) as app:
        assert app.client.get("/api/stats").json() == {"runners": 0}
        descriptors = Path(f"/proc/{app.process.pid}/fd")
        before = len(list(descriptors.iterdir()))
        with contextlib.ExitStack() as clients:
            address = (app.client.base_url.host, app.client.base_url.port)
            connections = [clients.enter_context(socket.create_connection(address)) for _ in range(1000)]
            for number, connection in enumerate(connections):
                text = b"GET /api/stats HTTP/1.1\r\nHost: x\r\n\r\n"
                connection.sendall((b"", text[:20], text)[number % 3])
            for connection in connections[2::3]:
                assert connection.recv(12) == b"HTTP/1.1 200"
            assert len(list(descriptors.iterdir())) >= before + 600  # the server may have closed those it answered
            assert app.register("waituntil").status_code == 201
        wait_for(lambda: app.client.get("/dev/outbox").json())
        wait_for(lambda: len(list(descriptors.iterdir())) <= before + 10)
        code, output = app.stop()
    assert code == 0, output
    assert "Traceback" not in output
