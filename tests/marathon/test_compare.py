"""`compare`: what it prints is what was measured."""

import io
import json
import os
import signal
import subprocess
import sys
import time

import httpx
import pytest
from rich.console import Console

from marathon_app import compare
from marathon_app.mailbox import Mode
from marathon_app.settings import DemoDelays, MailServer, Settings
from tests.marathon.support import serving
from tests.marathon.test_end_to_end import DEADLINE, environment, running


def printed(table):
    """Return a table as text."""
    console = Console(file=io.StringIO(), width=120)
    console.print(table)
    return console.file.getvalue()


async def test_counts_are_those_of_the_demo(tmp_path):
    """Each answer is counted once, each mail once, and all is done after the mail that came last."""
    delays = DemoDelays(insert=5.0, mail=20.0)
    async with serving(Settings(database=tmp_path / "marathon.db", demo_delays=delays)) as client:
        quick = await compare.measure(client, "waituntil", 8, at_once=4)
        slow = await compare.measure(client, "sequential", 8, at_once=4)
        runners = (await client.get("/api/stats")).json()["runners"]
        mails = (await client.get("/dev/outbox")).json()

    for measured in (quick, slow):
        assert (len(measured.answers), measured.refused, measured.mails) == (8, 0, 8)
        assert list(measured.answers) == sorted(measured.answers)
    assert runners == len(mails) == 16
    assert slow.percentile(0.5) >= 0.025
    assert quick.all_done >= 0.025


async def test_errors_are_counted_as_refused(tmp_path, monkeypatch):
    """Answers that were errors have no time in the table, and their mails are not waited for."""
    monkeypatch.setattr(compare, "PATIENCE", 0.0)
    async with serving(Settings(database=tmp_path / "marathon.db")) as client:
        client.app.state.mailbox.mode = Mode.REFUSE
        measured = await compare.measure(client, "sequential", 3, at_once=3)

    assert (measured.answers, measured.refused, measured.mails) == ((), 3, 0)
    row = printed(compare.table([measured], 3, 3)).splitlines()[-2]
    assert [cell.strip() for cell in row.split("│")][1:4] == ["sequential", "-", "-"]
    assert [cell.strip() for cell in row.split("│")][5:7] == ["0 of 3", "3"]


@pytest.mark.parametrize(("share", "expected"), [(0.5, 0.02), (0.99, 0.04), (0.01, 0.01)])
def test_percentiles(share, expected):
    """A percentile is the time that this share of the answers did not exceed: one that was measured."""
    one = compare.Measured(execution="x", answers=(0.01, 0.02, 0.03, 0.04), refused=0, all_done=1.0, mails=4)
    assert one.percentile(share) == expected


async def test_without_mailbox_it_says_so(tmp_path):
    """A demo whose mail goes elsewhere cannot be measured, which is said with the mend."""
    settings = Settings(database=tmp_path / "marathon.db", mail_server=MailServer(host="localhost", port=25))
    async with serving(settings) as client:
        with pytest.raises(compare.CannotCompareError, match="without MARATHON_SMTP_URL"):
            await compare.measure(client, "waituntil", 1, at_once=1)


def run(*arguments, **variables):
    """Run the command; return what it did."""
    environ = {**os.environ, "COLUMNS": "120", **variables}
    command = [sys.executable, "-m", "marathon_app", "compare", *arguments]
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)


def test_it_starts_a_demo_of_its_own():
    """Without a URL it starts a demo, prints a row for each execution, and leaves nothing behind."""
    done = run("-n", "3", MARATHON_DEMO_DELAYS="insert=1,mail=1")

    assert done.returncode == 0, done.stderr
    for execution in ("sequential", "fire-and-forget", "concurrent", "waituntil"):
        (row,) = [line for line in done.stdout.splitlines() if f"│ {execution} " in line]
        assert "3 of 3" in row


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["-n", "0"], 2, "give a number from 1 to 4000"),
        (["-n", "many"], 2, "give a number from 1 to 4000"),
        (["--url", "http://127.0.0.1:1"], 1, "start one with `make run`"),
    ],
)
def test_what_cannot_be_compared(arguments, code, text):
    """Bad arguments, and a demo that is not there, are one clear message and an exit code."""
    done = run(*arguments)

    assert done.returncode == code
    assert text in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


# --- the demo that starts again ------------------------------------------------------------------------


def test_a_killed_demo_is_started_again(tmp_path):
    """Killed by its page it is back at the same address with what was stored; SIGTERM still ends it in order."""
    with running(tmp_path, MARATHON_DEMO_RESTART="yes") as app:
        app.register("waituntil")
        first = app.client.get("/dev/timeline").json()["process"]
        assert app.client.post("/dev/kill", json={}).status_code == 202

        deadline = time.monotonic() + DEADLINE
        while True:
            assert time.monotonic() < deadline
            try:
                if httpx.get(f"{app.url}/dev/timeline", timeout=60).json()["process"] != first:
                    break
            except (httpx.HTTPError, json.JSONDecodeError):
                time.sleep(0.02)  # the connection was one of the process that died
        assert httpx.get(f"{app.url}/api/stats", timeout=60).json() == {"runners": 1}
        code, output = app.stop()

    assert code == 0
    assert "is started again" in output


def test_whoever_kills_the_parent_kills_the_demo(tmp_path):
    """SIGKILL for the command that was started leaves nobody behind at its address."""
    with running(tmp_path, MARATHON_DEMO_RESTART="yes") as app:
        app.process.send_signal(signal.SIGKILL)
        app.process.wait(timeout=DEADLINE)
        deadline = time.monotonic() + DEADLINE
        while True:
            assert time.monotonic() < deadline
            try:
                httpx.get(f"{app.url}/health/live", timeout=60)
            except httpx.HTTPError:
                break
            time.sleep(0.02)  # between two looks


def test_the_parent_hands_on_what_is_wrong(tmp_path):
    """A setting that cannot be used ends the parent with 2, as it ends the app."""
    command = [sys.executable, "-m", "marathon_app"]
    environ = environment(tmp_path, MARATHON_DEMO_RESTART="perhaps")
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=DEADLINE, check=False)

    assert done.returncode == 2
    assert "MARATHON_DEMO_RESTART: 'perhaps' is not understood; give yes or no" in done.stderr
