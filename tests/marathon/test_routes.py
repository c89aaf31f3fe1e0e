"""The HTTP face, called in the test's own event loop, with a real database and a real mail server."""

import asyncio

import pytest

from deferred import Supervisor
from marathon_app.app import create_app
from marathon_app.database import DatabaseBusyError, DatabaseOutcomeUnknownError, DatabaseUnavailableError
from marathon_app.registrations import Registrations
from marathon_app.settings import DemoDelays, Settings
from marathon_app.sqlite import SQLiteDatabase
from tests.marathon.support import ROUTES, THANKS, WAITUNTIL, fields, runners, serving, until

KNOWING = [route for route, status in ROUTES.items() if status != 202]  # whether the runner is new


BOTH = pytest.mark.parametrize("settings", ["sqlite", "postgresql"], indirect=True)


@BOTH
@pytest.mark.parametrize(("route", "status"), ROUTES.items())
async def test_each_route_registers_and_confirms(client, settings, faulty, route, status):
    """Every route answers as the article has it, stores the runner once and sends one mail."""
    response = await client.post(route, json=fields())

    assert (response.status_code, response.text) == (status, THANKS)
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    await until(lambda: len(faulty.kept) == 1 and len(runners(settings)) == 1)
    assert faulty.kept[0].rcpt_tos == ["ada@example.com"]
    assert (await client.get("/api/stats")).json() == {"runners": 1}


async def test_the_sequential_answer_waits_for_the_mail(client, faulty):
    """The sequential route does not answer before the mail server has the mail."""
    faulty.gate.clear()
    posting = asyncio.create_task(client.post("/api/marathon-sequential", json=fields()))
    await until(lambda: faulty.open != set())
    assert not posting.done()
    faulty.gate.set()

    assert (await posting).status_code == 200
    assert len(faulty.kept) == 1


@pytest.mark.parametrize("route", [route for route, status in ROUTES.items() if status != 200])
async def test_the_other_answers_do_not(client, faulty, route):
    """The other routes answer while the mail server still keeps the mail waiting."""
    faulty.gate.clear()
    response = await client.post(route, json=fields())

    assert response.is_success
    assert faulty.kept == []
    faulty.gate.set()
    await until(lambda: len(faulty.kept) == 1)


@BOTH
@pytest.mark.parametrize("route", KNOWING)
async def test_fifty_at_once_are_one_runner_and_one_mail(client, settings, faulty, route):
    """F10: Fifty concurrent registrations of one address: the same answer, one row, one mail."""
    emails = ["ada@example.com", "ADA@EXAMPLE.COM", " Ada@example.com. ", "aDa@Example.com", "ada@example.com"] * 10
    responses = await asyncio.gather(*(client.post(route, json=fields(email=email)) for email in emails))

    assert {(response.status_code, response.text) for response in responses} == {(ROUTES[route], THANKS)}
    assert len(runners(settings)) == 1
    await client.post(route, json=fields(email="last@example.com"))
    await until(lambda: any("last@example.com" in envelope.rcpt_tos for envelope in faulty.kept))
    assert len(faulty.kept) == 2


@BOTH
async def test_duplicates_of_the_concurrent_route_have_one_message_id(client, settings, faulty):
    """E16, F10: The concurrent route stores once; its mails are many, and all the same mail."""
    responses = await asyncio.gather(*(client.post("/api/marathon-concurrent", json=fields()) for _ in range(10)))
    await until(lambda: len(faulty.kept) == 10 and runners(settings) != [])

    assert {response.status_code for response in responses} == {202}
    assert len(runners(settings)) == 1
    ids = {line for envelope in faulty.kept for line in envelope.content.splitlines() if b"Message-ID" in line}
    assert len(ids) == 1


@BOTH
async def test_an_address_registered_one_way_is_known_to_the_others(client, settings, faulty):
    """F10: Whichever route registers an address again, there is no second row."""
    for route in ROUTES:
        assert (await client.post(route, json=fields())).is_success

    await until(lambda: len(faulty.kept) == 2)  # the first, and the concurrent route's
    assert runners(settings) == ["ada@example.com"]


@pytest.mark.parametrize("route", KNOWING)
async def test_a_failing_insert_is_never_a_success(client, settings, faulty, route, monkeypatch):
    """C28, F12: Where the runner could not be stored the answer is 503 with Retry-After, and no mail is sent."""

    async def busy(*args):
        raise DatabaseBusyError("secret reason")

    for method in ("insert", "insert_with"):
        monkeypatch.setattr(f"marathon_app.registrations.Registrations.{method}", lambda *args, **options: busy())
    response = await client.post(route, json=fields())

    assert response.status_code == 503
    assert int(response.headers["retry-after"]) >= 1
    assert "secret" not in response.text
    assert faulty.sessions == 0


@BOTH
async def test_a_registration_that_is_rolled_back_sends_no_mail(client, settings, faulty, monkeypatch):
    """E21: what is rolled back after the mail was stored in its transaction leaves neither runner nor mail."""
    insert_with, stored = Registrations.insert_with, []

    async def fail_afterwards(runners, registration, then):
        async def then_fail(connection):
            await then(connection)
            stored.append(await connection.fetch_all("SELECT email FROM runners"))
            raise DatabaseBusyError("rolled back")

        return await insert_with(runners, registration, then_fail)

    monkeypatch.setattr("marathon_app.registrations.Registrations.insert_with", fail_afterwards)
    assert (await client.post("/api/marathon-durable", json=fields())).status_code == 503
    assert len(stored[0]) == 1, "it was there before it was rolled back"
    assert runners(settings) == []

    monkeypatch.undo()
    assert (await client.post("/api/marathon-durable", json=fields(email="last@example.com"))).status_code == 201
    await until(lambda: faulty.kept != [])
    assert [envelope.rcpt_tos for envelope in faulty.kept] == [["last@example.com"]]


@pytest.mark.parametrize("trouble", [DatabaseBusyError, DatabaseUnavailableError])
async def test_the_concurrent_insert_is_tried_again(client, settings, faulty, monkeypatch, trouble):
    """D14: A database that is busy, or restarts, does not lose a runner whom the concurrent route has accepted."""
    insert, calls = Registrations.insert, []

    async def not_at_first(*args, **options):
        calls.append(args)
        if len(calls) == 1:
            raise trouble("not now")
        return await insert(*args, **options)

    monkeypatch.setattr("marathon_app.registrations.Registrations.insert", not_at_first)
    assert (await client.post("/api/marathon-concurrent", json=fields())).status_code == 202

    await until(lambda: len(runners(settings)) == 1)


async def test_an_unexpected_error_says_nothing(client, monkeypatch, caplog):
    """F18: A bug is a 500 in JSON that says nothing, and a log entry with its traceback."""

    def broken(*args, **options):
        raise RuntimeError("secret /path/to/file SELECT")

    monkeypatch.setattr("marathon_app.registrations.Registrations.insert", broken)
    response = await client.post(WAITUNTIL, json=fields())

    assert response.status_code == 500
    assert response.json() == {"detail": "Internal Server Error"}
    assert "secret /path/to/file" in caplog.text


@BOTH
async def test_a_failed_mail_fails_only_the_sequential_answer(client, settings, faulty, caplog):
    """E02: A mail refused for good is a 502 where the route waited for it, and never elsewhere; it is logged."""
    faulty.replies["RCPT"] = "550 no such user"
    for number, (route, status) in enumerate(ROUTES.items()):
        response = await client.post(route, json=fields(email=f"ada{number}@example.com"))
        assert response.status_code == (502 if status == 200 else status)
        await until(lambda expected=number + 1: faulty.sessions == expected)

    await until(lambda: caplog.text.count("550 no such user") >= 5)
    assert len(runners(settings)) == 5
    assert faulty.sessions == 5


@pytest.mark.parametrize("route", ROUTES)
async def test_a_mail_put_off_is_sent_later(client, faulty, route, monkeypatch):
    """E01: A 451 is retried until the mail arrives, on every route."""
    tries = []

    async def later_twice(*args):
        tries.append(args)
        return "451 later" if len(tries) <= 2 else await take(*args)

    take = faulty.handle_DATA
    monkeypatch.setattr(faulty, "handle_DATA", later_twice)
    response = await client.post(route, json=fields())
    await until(lambda: len(faulty.kept) == 1)

    assert response.status_code == ROUTES[route]
    assert len(tries) == 3


@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("second", KNOWING)
@pytest.mark.parametrize("first", KNOWING)
async def test_a_commit_that_nobody_has_confirmed(client, settings, faulty, monkeypatch, first, second, stored):
    """D17: The answer says that it is not known; whoever tries again is registered once and gets one mail."""
    write, commits = SQLiteDatabase.write, []

    async def unsaid(database, work):
        if commits:
            return await write(database, work)
        commits.append(await write(database, work) if stored else None)
        raise DatabaseOutcomeUnknownError("secret reason")

    monkeypatch.setattr(SQLiteDatabase, "write", unsaid)
    unknown = await client.post(first, json=fields())
    assert (unknown.status_code, unknown.headers["retry-after"]) == (503, "5")
    assert "is not known" in unknown.json()["detail"]
    assert "secret" not in unknown.text
    again = [await client.post(second, json=fields()) for _ in range(3)]

    assert {response.status_code for response in again} == {ROUTES[second]}
    await until(lambda: len(faulty.kept) == 1)
    assert runners(settings) == ["ada@example.com"]


@BOTH
async def test_a_rejected_mail_takes_the_runner_back(settings, faulty, monkeypatch):
    """F12: Where too much waits the answer is a 503, nothing is kept, and trying again later works."""
    monkeypatch.setattr(
        "marathon_app.app.Supervisor", lambda **options: Supervisor(max_running=1, max_pending=1, **options)
    )
    faulty.gate.clear()
    async with serving(settings) as client:
        responses = [await client.post(WAITUNTIL, json=fields(email=f"a{number}@example.com")) for number in range(5)]
        refused = [response for response in responses if response.status_code == 503]

        assert refused
        assert all(int(response.headers["retry-after"]) >= 1 and response.json() for response in refused)
        assert len(runners(settings)) == 5 - len(refused)
        faulty.gate.set()
        await until(lambda: len(faulty.kept) == 5 - len(refused))
        assert (await client.post(WAITUNTIL, json=fields(email="a4@example.com"))).status_code == 201
        await until(lambda: any("a4@example.com" in envelope.rcpt_tos for envelope in faulty.kept))


@BOTH
@pytest.mark.parametrize("second", [WAITUNTIL, "/api/marathon-durable"])
async def test_a_rejected_mail_takes_nobody_elses_runner_back(settings, faulty, monkeypatch, second):
    """F10, F12: Of two who send one address at once, both are refused, or the one who is thanked stays registered."""
    monkeypatch.setattr(
        "marathon_app.app.Supervisor", lambda **options: Supervisor(max_running=1, max_pending=1, **options)
    )
    faulty.gate.clear()
    async with serving(settings) as client:
        before = [await client.post(WAITUNTIL, json=fields(email=f"a{number}@example.com")) for number in range(3)]
        assert before[-1].status_code == 503
        twins = [client.post(route, json=fields(email="twin@example.com")) for route in (WAITUNTIL, WAITUNTIL, second)]
        thanked = [response.status_code == 201 for response in await asyncio.gather(*twins)]

        assert ("twin@example.com" in runners(settings)) is any(thanked)
        faulty.gate.set()


@BOTH
async def test_the_drain_sends_what_is_waiting(settings, faulty):
    """B32, C01: Mail that was accepted is sent before the app closes its database and its mail server."""
    faulty.gate.clear()
    async with serving(settings) as client:
        for number in range(5):
            assert (await client.post(WAITUNTIL, json=fields(email=f"a{number}@example.com"))).status_code == 201
        assert faulty.kept == []
        asyncio.get_running_loop().call_later(0.05, faulty.gate.set)

    assert len(faulty.kept) == 5


async def test_readiness(client, settings):
    """C26, C30: Ready while the database answers; a missing file or a shutdown is told with 503; alive all along."""
    ready = await client.get("/health/ready")
    assert (ready.status_code, ready.json()) == (200, {"status": "ready", "database": "ok", "mail": "ok"})

    client.app.state.health.draining = True
    draining = await client.get("/health/ready")
    assert draining.status_code == 503
    assert "shutting down" in draining.json()["detail"]
    client.app.state.health.draining = False

    settings.database.unlink()
    lost = await client.get("/health/ready")
    assert lost.status_code == 503
    assert "removed" in lost.json()["database"]
    assert str(settings.database) not in lost.text
    assert (await client.get("/health/live")).status_code == 200


async def test_it_starts_without_database_and_mail_server(tmp_path, settings):
    """C30: With neither there the app serves, tells both, and works once they are back."""
    settings.database.parent.joinpath("folder").write_text("in the way")
    settings = Settings(database=tmp_path / "folder" / "marathon.db", mail_server=settings.mail_server)
    async with serving(settings) as client:
        assert (await client.get("/health/live")).status_code == 200
        assert (await client.get("/health/ready")).status_code == 503
        assert (await client.post(WAITUNTIL, json=fields())).status_code == 503
        (tmp_path / "folder").unlink()
        assert (await client.post(WAITUNTIL, json=fields())).status_code == 201
        assert (await client.get("/health/ready")).status_code == 200


async def test_mail_trouble_is_told_and_does_not_stop_registrations(client, faulty):
    """C30, E09: Without its mail server the app stays ready, and says what is the matter."""
    client.app.state.tasks.mailer.trouble = "the last mail failed at connecting"
    response = await client.get("/health/ready")

    assert (response.status_code, response.json()["mail"]) == (200, "the last mail failed at connecting")


async def test_the_outbox_is_only_there_with_the_embedded_mailbox(client, tmp_path):
    """With a mail server of one's own there is no outbox; with the embedded one it shows each mail once."""
    assert (await client.get("/dev/outbox")).status_code == 404

    settings = Settings(database=tmp_path / "embedded.db")
    async with serving(settings) as embedded:
        assert (await embedded.get("/dev/outbox")).json() == []
        for route in ROUTES:
            await embedded.post(route, json=fields(email=f"{route[-4:]}@example.com"))
        await until(lambda: len(embedded.app.state.mailbox.received()) == 5)
        mails = (await embedded.get("/dev/outbox")).json()
        one = await embedded.get("/dev/outbox", params={"to": "TIAL@example.com"})

    assert {mail["to"] for mail in mails} == {f"{route[-4:]}@example.com" for route in ROUTES}
    assert all(set(mail) == {"to", "subject", "message_id", "received_at"} for mail in mails)
    assert [mail["to"] for mail in one.json()] == ["tial@example.com"]
    assert one.headers["marathon-now"] >= one.json()[0]["received_at"]


def stop_clock(client):
    """Let no time pass in which a rate would allow one more."""
    limits = client.app.state.limits
    limits._peers._clock = limits._addresses._clock = lambda: 0.0


async def test_the_rate_limit(tmp_path, faulty):
    """E22: Above the rate the answer is 429 with Retry-After, on every route together."""
    settings = Settings(database=tmp_path / "marathon.db", mail_server=faulty.server, rate_limit=3)
    async with serving(settings) as client:
        stop_clock(client)
        responses = [await client.post(route, json=fields(email=f"a{route[-4:]}@example.com")) for route in ROUTES]

    assert [response.status_code for response in responses] == [200, 201, 202, 429, 429]
    assert int(responses[-1].headers["retry-after"]) >= 1
    assert set(responses[-1].json()) == {"detail"}


async def test_one_address_has_a_rate_too(tmp_path, faulty):
    """E22: The concurrent route cannot be used to flood one mailbox."""
    settings = Settings(database=tmp_path / "marathon.db", mail_server=faulty.server, rate_limit=100)
    async with serving(settings) as client:
        stop_clock(client)
        responses = [await client.post("/api/marathon-concurrent", json=fields()) for _ in range(12)]

    assert [response.status_code for response in responses] == [202] * 10 + [429] * 2


async def test_never_in_debug_mode(settings, monkeypatch):
    """F18: No variable of the environment makes the app show its inside."""
    monkeypatch.setenv("LITESTAR_DEBUG", "1")
    monkeypatch.setenv("LITESTAR_PDB", "1")
    app = create_app(settings)

    assert not app.debug
    assert not app.pdb_on_exception


async def test_demo_delays_reach_the_steps_and_the_page(tmp_path, faulty):
    """The delays of the demonstration are in seconds where they are waited for, and shown on the page."""
    settings = Settings(
        database=tmp_path / "marathon.db",
        mail_server=faulty.server,
        demo_delays=DemoDelays(insert=20.0, mail=1.5),
    )
    async with serving(settings) as client:
        page = (await client.get("/")).text

        assert client.app.state.tasks.registrations._delay == 0.02
        assert client.app.state.tasks.mailer._delay == 0.0015
        assert "insert +20 ms, mail +1.5 ms" in page
