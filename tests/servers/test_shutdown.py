"""SIGTERM on each server: what ends in time is finished, what does not is named."""

import os
import re
import signal
import time

import pytest

from tests.servers.support import running, wait_for

SERVERS = ["uvicorn", "hypercorn", "granian", "gunicorn", "gunicorn asgi", "aiohttp"]
TASKS = sorted(f"short {number}" for number in range(200))
BRIEF = {"SERVERS_DRAIN": "1", "SERVERS_GRACE": "0.5"}  # seconds
WAITED = "which still waited for 1 unfinished task(s)"


@pytest.mark.parametrize("kind", SERVERS)
def test_sigterm_while_tasks_run(kind):
    """C01, SN-04, SN-07, SN-08: 200 tasks of half a second finish, once each; the app closes after them."""
    with running(kind) as server:
        server.get("/work", name="short", count=200, seconds=0.5)
        server.tell()
        server.wait_until_gone()
        assert sorted(server.done()) == TASKS, server.story()
        assert [unhappy for _, *unhappy in server.drains()] == [[0, 0, 0]]
        assert server.journal()[-1] == "app closed"


@pytest.mark.parametrize("years", [-50, 50])
def test_a_machine_whose_clock_is_wrong(years):
    """C29: where the time of day is years off, work finishes at SIGTERM, and what is late is cancelled, as ever."""
    with running("uvicorn", SERVERS_CLOCK=str(years * 31_557_600), **BRIEF) as server:
        server.get("/work", name="short", count=20, seconds=0.2)
        server.get("/long", kinds=1)
        server.wait_until_noted("started endless_job")
        server.tell()
        server.wait_until_gone()
        assert len(server.done()) == 20, server.story()  # before the signal or after it
        assert [unhappy for _, *unhappy in server.drains()] == [[0, 1, 0]], server.story()
        assert f"year {time.gmtime(time.time() + years * 31_557_600).tm_year}" in server.journal()


@pytest.mark.parametrize("kind", SERVERS)
def test_sigterm_while_tasks_run_for_longer_than_the_deadline(kind):
    """C02, C20: tasks that take hours are cancelled at the deadline or left behind, by name, and the process ends."""
    with running(kind, **BRIEF) as server:
        server.get("/long")
        server.wait_until_noted("started endless_job", "started stubborn_job", "started threaded_job")
        server.tell()
        server.wait_until_gone()
        assert server.drains() == [(0, 0, 1, 2)], server.story()
        for job in ("cancelled 'endless_job'", "abandoned 'stubborn_job'", "abandoned 'threaded_job'"):
            assert job in server.log()
        assert "app closed" in server.journal()


@pytest.mark.parametrize("kind", ["uvicorn", "hypercorn alone", "aiohttp"])
@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_cuts_the_drain(kind, second):
    """C04: a second signal during the drain cancels what is left at once, by name, hours before the deadline."""
    with running(kind, SERVERS_DRAIN="9000") as server:
        server.get("/long", kinds=1)
        server.wait_until_noted("started endless_job")
        server.tell()
        server.wait_until_noted("draining")
        server.tell(second)
        server.wait_until_gone()
        if kind != "aiohttp":  # which cancels the drain itself, and the task, in no order
            assert server.drains() == [(0, 0, 1, 0)], server.story()
        assert (
            f"{second.name} cuts the drain, which still waited for 1 unfinished task(s): 'endless_job'" in server.log()
        )
        assert "app closed" in server.journal()


@pytest.mark.parametrize("kind", ["uvicorn workers", "hypercorn workers", "granian workers"])
def test_a_second_interrupt_of_the_group_cuts_the_drain(kind):
    """C04: with several processes the second Ctrl-C does it, which is the signal that no parent repeats."""
    with running(kind, SERVERS_DRAIN="9000") as server:
        server.get("/long", kinds=1)
        server.wait_until_noted("started endless_job")
        server.tell_group(signal.SIGINT)
        server.wait_until_noted("draining", count=2)
        server.tell_group(signal.SIGINT)
        server.wait_until_gone()
        assert sorted(server.drains()) == [(0, 0, 0, 0), (0, 0, 1, 0)], server.story()
        assert f"SIGINT cuts the drain, {WAITED}: 'endless_job'" in server.log()


@pytest.mark.parametrize("kind", ["gunicorn", "gunicorn asgi"])
def test_gunicorn_loses_its_patience(kind):
    """C04: SIGINT after SIGTERM has gunicorn kill its workers in two seconds: before, the drain is cut and recorded."""
    with running(kind, SERVERS_DRAIN="9000") as server:
        server.get("/long", kinds=1)
        server.wait_until_noted("started endless_job")
        server.client.close()  # gunicorn's own worker waits for the connection
        server.tell()
        server.wait_until_noted("draining")
        server.tell(signal.SIGINT)
        server.wait_until_gone()
        assert server.drains() == [(0, 0, 1, 0)], server.story()
        assert f"SIGQUIT cuts the drain, {WAITED}: 'endless_job'" in server.log()


@pytest.mark.parametrize("kind", ["uvicorn workers", "hypercorn workers", "granian workers", "gunicorn workers"])
def test_sigterm_to_the_whole_group(kind):
    """C06: a signal to parent and workers alike, as systemd sends it, loses nothing, though the parent repeats it."""
    with running(kind) as server:
        clients = [server.new_client() for _ in range(20)]
        for number, client in enumerate(clients):  # so that both workers have work
            client.get("/work", params={"name": number, "count": 10, "seconds": 1}).raise_for_status()
            client.close()
        server.tell_group()
        server.wait_until_gone()
        assert sorted(server.done()) == sorted(f"{n} {m}" for n in range(20) for m in range(10)), server.story()
        assert [unhappy for _, *unhappy in server.drains()] == [[0, 0, 0]] * 2


@pytest.mark.parametrize("kind", ["uvicorn workers", "hypercorn workers", "granian workers", "gunicorn workers"])
def test_an_interrupt_from_a_terminal(kind):
    """C01, SN-04: Ctrl-C, which the terminal sends to the whole group, is a SIGTERM to the tasks: they finish."""
    with running(kind) as server:
        server.get("/work", name="short", count=200, seconds=0.5)
        server.tell_group(signal.SIGINT)
        server.wait_until_gone()
        assert sorted(server.done()) == TASKS, server.story()


def test_a_server_gives_a_drain_less_time_than_it_wants():
    """C21, C22: hypercorn's own limit on the shutdown cancels the drain: what is left is recorded, by name."""
    with running("hypercorn", "--config", "python:tests.servers.hypercorn_config", SERVERS_DRAIN="9000") as server:
        server.get("/long", kinds=1)
        server.wait_until_noted("started endless_job")
        server.tell()
        server.wait_until_gone()
        # It and the drain are cancelled together, in no order.
        assert re.search("(task|abandoned) 'endless_job'.* deferred at", server.log()), server.story()
        assert "the drain may take 9030 s" in server.log()


def test_a_worker_without_a_parent():
    """C06: a worker of hypercorn drains and ends at SIGTERM where its parent was killed."""
    with running("hypercorn") as server:
        server.get("/work", name="last", seconds=0.5)
        server.tell(signal.SIGKILL)
        server.process.wait()
        (worker,) = server.workers()
        os.kill(worker, signal.SIGTERM)
        server.wait_until_gone()
        assert server.done() == ["last 0"], server.story()
        assert "parent process is gone" in server.log()


def test_two_interrupts_before_the_drain():
    """C05: uvicorn leaves without a shutdown at the second SIGINT; what is lost with it is logged by name."""
    with running("uvicorn") as server:
        server.get("/long", kinds=1)
        hanging = server.ask("/hang")
        server.wait_until_noted("started endless_job", "hanging")
        server.tell(signal.SIGINT)
        wait_for(lambda: "Waiting for connections to close" in server.said(), server.story)
        server.tell(signal.SIGINT)
        server.wait_until_gone()
        hanging.close()
        assert re.search("SIGINT again, before any shutdown: .* loses 2 .*'endless_job'", server.log())
        assert "app closed" not in server.journal()
