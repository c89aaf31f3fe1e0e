"""The command that draws the waterfalls of a running app."""

import io
import os
import socket
import subprocess
import sys
import threading
from xml.etree import ElementTree as ET

import pytest

from deferred.inspector import Password, cli
from tests.inspector.support import App, Served, visit


class Terminal(io.StringIO):
    """What the command writes to. Lives as long as a test."""

    encoding = "utf-8"

    def isatty(self):
        """Say that this is a file."""
        return False


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command; give its exit code, and what it wrote to both."""

    def run(*arguments):
        code = cli.main(list(arguments))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_the_latest_requests_are_drawn(served, run):
    """The newest at the end, where the eye is; then one of them, as a picture."""
    home = served().home
    visit(f"{home}/waituntil")
    visit(f"{home}/quiet")
    code, out, err = run(f"{home}/_deferred/", "--width", "90")
    assert (code, err) == (0, "")
    assert out.index("/waituntil") < out.index("/quiet")
    assert "send confirmation e-mail" in out
    code, out, _ = run(f"{home}/_deferred/", "-n", "1", "--svg")
    assert out.startswith("<svg ")
    assert "/quiet" in out


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
@pytest.mark.parametrize("svg", [False, True])
def test_a_terminal_without_unicode(served, encoding, svg):
    """What its encoding lacks is written in other signs, or as a reference to a character in a picture."""
    home = served().home
    visit(f"{home}/waituntil")
    command = [sys.executable, "-m", "deferred", "trace", f"{home}/_deferred/", *(["--svg"] if svg else [])]
    environ = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    done = subprocess.run(command, env=environ, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    out = done.stdout.decode("ascii")
    assert ("&#8627; send confirmation" if svg else "> send confirmation") in out
    if svg:
        ET.fromstring(out)


def test_one_request_is_drawn(served, run):
    """The address of a request in the page is one for the command, too."""
    home = served().home
    visit(f"{home}/quiet")
    visit(f"{home}/waituntil")
    import json
    import urllib.request

    with urllib.request.urlopen(f"{home}/_deferred/api/requests", timeout=10) as answer:
        first = json.load(answer)["requests"][1]["id"]
    code, out, _ = run(f"{home}/_deferred/#/requests/{first}")
    assert code == 0
    assert "/quiet" in out
    assert "/waituntil" not in out


def test_nothing_recorded(served, run):
    """An inspector that has seen nothing is said to have."""
    assert run(served().url)[::2] == (3, "Nothing is recorded there yet.\n")


def test_a_password_comes_from_the_environment(served, run, monkeypatch):
    """E20: Or from the address; it is in no message."""
    home = served(auth=Password({"ada": "difference:engine"})).home
    visit(f"{home}/quiet")
    code, _, err = run(f"{home}/_deferred/")
    assert (code, "answers 401" in err, "DEFERRED_INSPECTOR_AUTH=" in err) == (1, True, True)
    with_password = home.replace("//", "//ada:difference%3Aengine@")
    assert run(f"{with_password}/_deferred/")[0] == 0
    wrong = home.replace("//", "//ada:hunter2hunter2@")
    assert "hunter2" not in run(f"{wrong}/_deferred/")[2]
    monkeypatch.setenv("DEFERRED_INSPECTOR_AUTH", "ada:difference:engine")
    assert run(f"{home}/_deferred/")[0] == 0


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://x/", "x", "http://", "http://127.0.0.1:1/_deferred/"])
def test_what_is_no_inspector(run, url):
    """Another address is told apart, without a traceback."""
    code, out, err = run(url)
    assert (code, out) == (1, "")
    assert err.count("\n") == 1


def test_a_page_of_something_else(served, run):
    """An answer that is no inspector's is said to be none."""
    home = served().home
    code, _, err = run(f"{home}/quiet/..")
    assert code == 1
    assert "answers" in err


def test_another_place_of_the_same_app(run):
    """Who leaves the mount's path out is told of it."""
    app = App()

    async def lost(_ctx):
        """Serve nothing."""

    app.handlers["/api/requests"] = lost
    app.status["/api/requests"] = 404
    server = Served(app)
    server.start()
    try:
        code, _, err = run(server.home)
    finally:
        server.stop()
        app.inspector.close()
    assert (code, "answers 404" in err, "/_deferred/" in err) == (1, True, True)


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.6\x1b[31m\r\n",
        b"HTTP/1.1 500 x\r\n\r\n\x1b[2J\r\nno",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{",
    ],
)
def test_what_speaks_no_http(run, said):
    """A port of something else, or one that breaks off, is one line and not a traceback."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer():
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(said)

        thread = threading.Thread(target=answer)
        thread.start()
        code, out, err = run(f"http://127.0.0.1:{server.getsockname()[1]}/_deferred/")
        thread.join()
    assert (code, out, err.count("\n"), "\x1b" in err) == (1, "", 1, False)


def test_a_path_that_cannot_be_asked_for(run):
    """A space in an address is told apart too."""
    code, _, err = run("http://127.0.0.1:1/a b/")
    assert (code, err.count("\n")) == (1, 1)
