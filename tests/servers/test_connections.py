"""What is open when the signal comes: streams, websockets, requests that hang."""

import signal
import socket
import sys

import pytest

from tests.servers.support import running, wait_for

WORKER = "tests.servers.worker.Worker"
LEAVE_IT_TO_THE_CLIENT = ["hypercorn alone", "gunicorn asgi", "aiohttp"]
"""Servers that wait for every websocket to be closed: for ever, until they kill it, for a minute."""
ENDED = [("uvicorn", ["--timeout-graceful-shutdown", "1"]), ("gunicorn", ["-k", WORKER]), ("aiohttp", ["1"])]
HELD = ["granian"]
if sys.version_info >= (3, 12, 1):  # hypercorn's timeout has no effect
    HELD.append("hypercorn alone")
else:
    ENDED.append(("hypercorn", ["--graceful-timeout", "1"]))


@pytest.mark.parametrize("kind", ["uvicorn", "hypercorn alone", "granian", "gunicorn", "gunicorn asgi", "aiohttp"])
def test_a_stream_and_a_websocket_are_open(kind):
    """C18, C26: a stream that asks `draining` ends at the signal, and so does a websocket where the server closes it.

    The work of both is finished. What tasks have raised before has ended nothing.
    """
    with running(kind) as server:
        server.get("/exit")
        server.wait_until_noted("raised KeyboardInterrupt", "raised SystemExit")
        websocket = server.open_websocket("first", "second")
        stream = server.open_stream()
        server.get("/work", name="last", seconds=0.5)
        server.tell()
        server.wait_until_noted("done after the stream")
        if kind in LEAVE_IT_TO_THE_CLIENT:
            websocket.close()
        server.wait_until_gone()
        stream.close()
        websocket.close()
        assert sorted(server.done()) == ["after the stream", "first", "last 0", "second"], server.story()
        assert any(line.startswith("websocket closed") for line in server.journal())
        assert server.journal()[-1] == "app closed"


@pytest.mark.parametrize(("kind", "flags"), ENDED)
def test_a_hanging_request_is_cancelled(kind, flags):
    """C10, C12, C13: a timeout ends a request that hangs; tasks run on, and what it defers then is drained."""
    with running(kind, *flags) as server:
        hanging = server.ask("/hang")
        server.wait_until_noted("hanging")
        server.get("/outlast")
        server.tell()
        server.wait_until_gone()
        hanging.close()
        done = ["before the hang", "by a request that is cancelled", "outlasting"]
        assert sorted(server.done()) == done, server.story()
        assert server.journal()[-1] == "app closed"


def test_a_server_is_killed_with_a_request_that_hangs():
    """C10: gunicorn kills what hangs; before, the log has named what is lost with it."""
    with running("gunicorn", "--graceful-timeout", "20", SERVERS_DRAIN="1", SERVERS_GRACE="0.5") as server:
        hanging = server.ask("/hang")
        server.get("/long", kinds=1)
        server.wait_until_noted("hanging", "started endless_job")
        server.tell()
        server.wait_until_gone()
        hanging.close()
        late = "SIGTERM came 1 s ago, and the server has not begun its shutdown"
        assert late in server.log(), server.story()
        assert "'endless_job'" in server.log().partition(late)[2]
        assert server.drains() == []


@pytest.mark.parametrize("kind", HELD)
def test_a_hanging_request_holds_a_shutdown(kind):
    """C10: granian, and hypercorn on newer Pythons, wait for ever; the log names what a kill would lose."""
    with running(kind, SERVERS_DRAIN="1") as server:
        hanging = server.ask("/hang")
        server.wait_until_noted("hanging")
        server.tell()
        wait_for(lambda: "has not begun its shutdown" in server.log(), server.story)
        assert server.process.poll() is None
        assert "draining" not in server.journal()
        hanging.close()


@pytest.mark.parametrize("kind", ["uvicorn", "hypercorn", "granian", "gunicorn", "gunicorn asgi", "aiohttp"])
def test_a_client_that_is_gone_with_the_last_byte(kind):
    """B09: a client that closes the connection once it has the answer takes nothing of its work with it."""
    with running(kind) as server:
        for number in range(10):
            connection = server.connect(f"/work?name={number}&seconds=0.2")
            assert connection.recv(100) == b"accepted"
            connection.close()
        server.wait_until_noted(*(f"done {number} 0" for number in range(10)))
        server.tell()
        server.wait_until_gone()
        assert len(server.done()) == 10, server.story()


def test_a_request_on_its_way_is_answered_and_no_further_one():
    """SN-09: after the signal uvicorn takes no new connection, answers what it has, and its work is drained."""
    with running("uvicorn") as server:
        answering = server.ask("/slow?name=late&seconds=6")
        server.wait_until_noted("slow late")
        server.tell()
        wait_for(lambda: _refused(server), server.story)
        assert "done late" not in server.journal()
        assert answering.recv(1000).startswith(b"HTTP/1.1 200")
        server.wait_until_gone()
        assert server.done() == ["late"], server.story()
        answering.close()


def _refused(server):
    with socket.socket(socket.AF_UNIX) as connection:
        return connection.connect_ex(str(server.socket)) != 0


def test_a_development_server():
    """VJ-04, VJ-05, VJ-06, VJ-07: with ``--reload`` work is done, a failure costs nothing, and Ctrl-C waits for it."""
    with running("uvicorn", "--reload") as server:
        assert server.get("/work", name="imported") == "accepted"
        assert server.get("/context", name="injected") == "accepted"
        server.get("/exit")
        server.wait_until_noted("done imported 0", "done injected", "raised SystemExit")
        assert server.get("/work", name="last", seconds=1) == "accepted"
        server.tell_group(signal.SIGINT)
        server.wait_until_gone()
        assert sorted(server.done()) == ["imported 0", "injected", "last 0"], server.story()
