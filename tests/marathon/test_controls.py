"""The switches of the demonstration, and the times that its page asks for."""

import asyncio

import pytest
from aiosmtplib import SMTP, SMTPResponseException
from litestar import Request

from deferred import NonRetryableError, Supervisor
from deferred.engines.memory import MemoryEngine
from marathon_app import controls
from marathon_app.mailbox import Mailbox, Mode
from marathon_app.settings import MailServer, Settings
from marathon_app.timeline import Timeline
from tests.marathon.support import fields, serving, until

SWITCHES = ("/dev/mail-server", "/dev/kill")
PATHS = (*SWITCHES, "/dev/timeline")


@pytest.fixture
def deaths(monkeypatch):
    """Give a list of the app's deaths, none of which is real."""
    died = []

    async def die():
        died.append("killed")

    monkeypatch.setattr(controls.control_routes, "__kwdefaults__", {"kill": die})
    return died


@pytest.fixture
async def client(tmp_path, deaths):
    """Give a client of an app with switches."""
    async with serving(Settings(database=tmp_path / "marathon.db")) as client:
        yield client


async def watched(client, route, name, **changes):
    """Register on a route under a name, and return its times once all is done."""
    await client.post(f"/api/marathon-{route}", json=fields(**changes), headers={"Marathon-Run": name})

    async def over():
        (run,) = (await client.get("/dev/timeline", params={"ids": name})).json()["runs"]
        return all(row["state"] not in {"pending", "running", "retrying"} for row in run["rows"])

    await until(over)
    (run,) = (await client.get("/dev/timeline", params={"ids": name})).json()["runs"]
    return run


# --- who may ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "allowed"), [("/dev/kill", 405), ("/dev/mail-server", 200)])
async def test_nothing_acts_on_get(client, deaths, path, allowed):
    """G06: A GET kills nobody and switches nothing."""
    response = await client.get(path, params={"mode": "refuse"})

    assert response.status_code == allowed
    assert deaths == []
    assert (await client.get("/dev/mail-server")).json() == {"mode": "ok"}


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://elsewhere.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:9000"},
        {"Origin": "https://localhost"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
@pytest.mark.parametrize("path", SWITCHES)
async def test_other_sites_may_not(client, deaths, path, headers):
    """G06: A POST that another site's page made a browser send is refused with 403, and does nothing."""
    response = await client.post(path, json={"mode": "refuse"} if "mail" in path else {}, headers=headers)

    assert response.status_code == 403
    assert deaths == []
    assert (await client.get("/dev/mail-server")).json() == {"mode": "ok"}


@pytest.mark.parametrize("path", SWITCHES)
async def test_a_form_of_another_site_may_not(client, deaths, path):
    """What a form can send without asking first is refused with 400."""
    response = await client.post(path, content=b"{}", headers={"Content-Type": "text/plain"})

    assert response.status_code == 400
    assert deaths == []


@pytest.mark.parametrize("path", PATHS)
async def test_foreign_names_may_not(client, path):
    """G08: Called by a name that is not a loopback one, as after DNS rebinding, they answer 400."""
    method = "POST" if path == "/dev/kill" else "GET"

    for host in ("marathon.example", "127.0.0.1.marathon.example", "10.0.0.1:8000"):
        response = await client.request(method, path, headers={"Host": host}, json={})
        assert response.status_code == 400


@pytest.mark.parametrize("path", PATHS)
async def test_other_machines_may_not(client, deaths, path):
    """G01: A peer that is not on this machine is answered 403."""
    client._transport.client = ("192.0.2.7", 4242)
    method = "POST" if path == "/dev/kill" else "GET"

    assert (await client.request(method, path, json={})).status_code == 403
    assert deaths == []


@pytest.mark.parametrize(
    "settings", [{"host": "0.0.0.0"}, {"host": "192.0.2.7"}, {"mail_server": MailServer(host="localhost", port=25)}]
)
async def test_not_there_where_it_is_no_demonstration(tmp_path, settings):
    """G01: An app that others can reach, or whose mail is real, has no switches at all."""
    async with serving(Settings(database=tmp_path / "marathon.db", **settings)) as client:
        for path in PATHS:
            assert (await client.get(path)).status_code == 404
            assert (await client.post(path, json={})).status_code == 404


@pytest.mark.parametrize(
    "body", [b"", b"[]", b'{"mode": "explode"}', b'{"mode": 1}', b'{"mode": "ok", "more": 1}', b"{"]
)
async def test_what_is_no_mode_is_refused(client, body):
    """F05: Anything but a mode is a 400 that says so, and changes nothing."""
    response = await client.post("/dev/mail-server", content=body, headers={"Content-Type": "application/json"})

    assert response.status_code == 400
    assert "Traceback" not in response.text
    assert (await client.get("/dev/mail-server")).json() == {"mode": "ok"}


# --- what they do ------------------------------------------------------------------------------------


async def test_kill_answers_first(client, deaths):
    """The last words are the times of the runs asked for; then the process ends."""
    await watched(client, "waituntil", "one")

    response = await client.post("/dev/kill", json={"ids": ["one", "unknown"]}, headers={"Origin": "http://localhost"})

    assert response.status_code == 202
    assert [run["id"] for run in response.json()["runs"]] == ["one"]
    await until(lambda: deaths == ["killed"])


@pytest.mark.parametrize(("mode", "code"), [(Mode.REFUSE, 550), (Mode.LATER, 451)])
async def test_the_mailbox_refuses(mode, code):
    """Switched, the mail server refuses every recipient with that code, and keeps nothing."""
    mailbox = Mailbox()
    server = await mailbox.open()
    mailbox.mode = mode
    async with SMTP(hostname=server.host, port=server.port) as smtp:
        with pytest.raises(SMTPResponseException) as caught:
            await smtp.mail("from@example.com")
            await smtp.rcpt("to@example.com")
    await mailbox.close()

    assert caught.value.code == code
    assert mailbox.received() == []


async def test_the_mailbox_hangs_until_it_recovers():
    """A hanging mail server answers once it is switched back, and closes though it hangs."""
    mailbox = Mailbox()
    server = await mailbox.open()
    mailbox.mode = Mode.HANG
    async with SMTP(hostname=server.host, port=server.port) as smtp:
        await smtp.mail("from@example.com")
        answer = asyncio.ensure_future(smtp.rcpt("to@example.com"))
        mailbox.mode = Mode.HANG  # again: it hangs on
        await asyncio.wait({answer}, timeout=0.05)
        assert not answer.done()
        mailbox.mode = Mode.OK
        assert (await answer).code == 250
    await mailbox.close()


async def test_switching_over_http(client):
    """Once switched to refuse, a mail fails for good, and the sequential answer with it; then it recovers."""
    assert (await client.post("/dev/mail-server", json={"mode": "refuse"})).json() == {"mode": "refuse"}
    refused = await client.post("/api/marathon-sequential", json=fields())
    await client.post("/dev/mail-server", json={"mode": "ok"})
    accepted = await client.post("/api/marathon-sequential", json=fields(email="grace@example.com"))

    assert (refused.status_code, accepted.status_code) == (502, 200)


# --- the times ---------------------------------------------------------------------------------------


async def test_times_of_a_deferred_mail(client):
    """The insert lies before the answer, the mail begins after it, and nothing is out of order."""
    run = await watched(client, "waituntil", "one")
    insert, mail = run["rows"]

    assert (insert["name"], insert["kind"], insert["state"]) == ("INSERT runners", "step", "succeeded")
    assert (mail["name"], mail["kind"], mail["state"]) == ("send confirmation e-mail", "task", "succeeded")
    (stored,), (sent,) = insert["segments"], mail["segments"]
    assert 0 <= stored["start"] <= stored["end"] <= run["answered"] <= sent["start"] <= sent["end"] <= run["now"]


async def test_times_of_a_sequential_mail(client):
    """Where the answer waits for the mail, the mail ends before it."""
    run = await watched(client, "sequential", "one")

    assert run["rows"][1]["segments"][0]["end"] <= run["answered"]


async def test_times_of_retries(client):
    """Each attempt is a segment of its own; the failed ones say so, and the last error is told."""
    await client.post("/dev/mail-server", json={"mode": "later"})
    waiting = asyncio.ensure_future(watched(client, "fire-and-forget", "one"))

    async def retried():
        runs = (await client.get("/dev/timeline", params={"ids": "one"})).json()["runs"]
        return any(row["state"] == "retrying" for run in runs for row in run["rows"])

    await until(retried)
    await client.post("/dev/mail-server", json={"mode": "ok"})
    mail = (await waiting)["rows"][1]

    assert mail["state"] == "succeeded"
    assert [segment["failed"] for segment in mail["segments"]] == [True] * (len(mail["segments"]) - 1) + [False]
    assert "451 4.3.0" in mail["error"]


@pytest.mark.parametrize("name", ["", "a b", "x" * 65, "<script>", "é"])
async def test_only_names_are_watched(client, name):
    """What is no name is not watched, and no harm to the registration."""
    response = await client.post("/api/marathon-waituntil", json=fields(), headers={"Marathon-Run": name.encode()})

    assert response.status_code == 201
    assert (await client.get("/dev/timeline", params={"ids": name})).json()["runs"] == []


async def test_unwatched_requests_cost_nothing(client):
    """The hook is there while something watched is under way, and gone afterwards."""
    plugin = next(plugin for plugin in client.app.plugins if hasattr(plugin, "supervisor"))
    hooks = plugin.supervisor._launcher.hooks
    before = hooks._hooks

    await client.post("/api/marathon-waituntil", json=fields())
    assert hooks._hooks == before
    await watched(client, "waituntil", "one", email="grace@example.com")
    await until(lambda: hooks._hooks == before)


async def test_the_oldest_runs_make_room(client):
    """What is kept is bounded: of more runs than that the oldest are forgotten."""
    client.app.before_request.__self__._capacity = 2
    for number in range(3):
        await watched(client, "waituntil", f"run-{number}", email=f"ada{number}@example.com")

    runs = (await client.get("/dev/timeline", params={"ids": "run-0,run-1,run-2"})).json()["runs"]
    assert [run["id"] for run in runs] == ["run-1", "run-2"]


async def test_times_of_stored_work():
    """A job runs in a context of its own, maybe much later, and is shown with the request that stored it."""
    supervisor = Supervisor(engine=MemoryEngine())
    timeline = Timeline(supervisor)
    gate = asyncio.Event()

    @supervisor.task("send_confirmation")
    async def confirm():
        await gate.wait()

    async with supervisor:
        with supervisor.context() as ctx:
            await timeline.notice(Request({"type": "http", "headers": [(b"marathon-run", b"one")]}))
            await ctx.enqueue(confirm)
        (run,) = timeline.runs(["one"])
        assert [(row.name, row.kind) for row in run.rows] == [("send_confirmation", "task")]
        gate.set()
        await until(lambda: run.rows[0].state == "succeeded")
        assert run.rows[0].segments[0].end is not None
        await until(lambda: not timeline._open)


async def test_a_dead_letter_is_a_failed_row():
    """A job that fails for good is shown as failed, with its error."""
    supervisor = Supervisor(engine=MemoryEngine())
    timeline = Timeline(supervisor)

    @supervisor.task("send_confirmation")
    async def confirm():
        raise NonRetryableError("550 no such user")

    async with supervisor:
        with supervisor.context() as ctx:
            await timeline.notice(Request({"type": "http", "headers": [(b"marathon-run", b"one")]}))
            await ctx.enqueue(confirm)
        await until(lambda: not timeline._open)

    (run,) = timeline.runs(["one"])
    assert run.rows[0].state == "failed"
    assert "550 no such user" in run.rows[0].error
