"""The HTTP face, called in the test's own event loop, with a real database and a real mail server."""

import asyncio

import msgspec
import pytest

from deferred import Supervisor
from marathon_app.app import create_app
from marathon_app.database import DatabaseBusyError
from marathon_app.registrations import Registrations
from marathon_app.settings import DemoDelays, Settings
from tests.marathon.support import fields, select, serving, until

ROUTES = {
    "/api/marathon-sequential": 200,
    "/api/marathon-fire-and-forget": 201,
    "/api/marathon-concurrent": 202,
    "/api/marathon-waituntil": 201,
    "/api/marathon-durable": 201,
}
WAITUNTIL = "/api/marathon-waituntil"
KNOWING = [route for route, status in ROUTES.items() if status != 202]  # whether the runner is new
THANKS = "Thanks for registering for our Marathon"


BOTH = pytest.mark.parametrize("settings", ["sqlite", "postgresql"], indirect=True)


@pytest.fixture
def settings(request, tmp_path, faulty):
    """Give settings with a database of the test's own and a mail server that can be told to fail."""
    kind = getattr(request, "param", "sqlite")
    database = tmp_path / "marathon.db" if kind == "sqlite" else request.getfixturevalue("postgresql")
    return Settings(database=database, mail_server=faulty.server)


@pytest.fixture
async def client(settings):
    """Give a client of a running app."""
    async with serving(settings) as client:
        yield client


def runners(settings):
    """Return the addresses in the database."""
    return [row[0] for row in select(settings.database, "SELECT email FROM runners")]


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


def bad_requests():
    """Yield a name, what is sent, and the status that is expected."""
    good = msgspec.json.encode(fields())
    as_json = {"content-type": "application/json"}
    yield "no body", {"headers": as_json}, 400
    yield "no JSON", {"content": b"{", "headers": as_json}, 400
    yield "deep JSON", {"content": b'{"x":' + b"[" * 10_000 + b"]" * 10_000 + b"}", "headers": as_json}, 400
    yield "NaN", {"content": good.replace(b'"Ada"', b"NaN"), "headers": as_json}, 400
    yield "a list", {"json": [fields()]}, 400
    yield "a number", {"json": fields(firstName=1)}, 400
    yield "null", {"json": fields(email=None)}, 400
    yield "a distance as a number", {"json": fields(distance=10)}, 400
    yield "nothing in it", {"json": {}}, 400
    yield "a form", {"data": fields()}, 415
    yield "a file", {"files": {"firstName": b"Ada"}}, 415
    yield "no content type", {"content": good}, 415
    yield "text", {"content": good, "headers": {"content-type": "text/plain"}}, 415
    yield "another charset", {"content": good, "headers": {"content-type": "application/json; charset=utf-16"}}, 415
    yield "an unknown distance", {"json": fields(distance="ultra")}, 422
    yield "two recipients", {"json": fields(email="ada@example.com, eve@example.com")}, 422
    yield "a line break", {"json": fields(email="ada@example.com\r\nBcc: eve@example.com")}, 422
    yield "a NUL", {"json": fields(lastName="\x00")}, 422
    yield "a long name", {"json": fields(firstName="x" * 10_000)}, 422
    yield "too much", {"json": fields(address="x" * 70_000)}, 413
    yield "an endless body", {"content": endless, "headers": as_json}, 413


async def endless():
    """Yield more than anybody should read, its length not announced."""
    for _ in range(100_000):
        yield b" " * 1024


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    ("sent", "status"), [pytest.param(sent, status, id=name) for name, sent, status in bad_requests()]
)
async def test_bad_input_is_refused_whole(client, settings, faulty, route, sent, status):
    """F01 to F09, F18: What is no registration is a 4xx in JSON: no row, no mail, nothing of the inside told."""
    sent = {name: value() if callable(value) else value for name, value in sent.items()}
    response = await client.post(route, **sent)

    assert response.status_code == status
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert isinstance(body["detail"], str)
    assert all(set(error) == {"field", "message"} for error in body.get("errors", []))
    assert not any(word in response.text for word in ("Traceback", ".py", "/marathon", "INSERT", "sqlite", "msgspec"))
    assert runners(settings) == []
    assert faulty.sessions == 0


async def test_the_field_at_fault_is_named(client):
    """F05, F09: The answer names each field at fault and what is the matter with it."""
    response = await client.post(WAITUNTIL, json=fields(email="x", distance="y"))

    errors = {error["field"]: error["message"] for error in response.json()["errors"]}
    assert set(errors) == {"email", "distance"}
    assert '"half"' in errors["distance"]


@pytest.mark.parametrize(
    "content_type", ["application/json", "Application/JSON; charset=UTF-8", 'application/json;charset="utf-8"']
)
async def test_json_by_its_names(client, content_type):
    """F02: The ways to say JSON are all understood."""
    response = await client.post(
        WAITUNTIL, content=msgspec.json.encode(fields()), headers={"content-type": content_type}
    )

    assert response.status_code == 201


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/nope", 404), ("GET", WAITUNTIL, 405), ("PUT", "/", 405)]
)
async def test_what_is_not_there_is_told_in_json(client, method, path, status):
    """F18: Unknown paths and methods are answered in JSON too."""
    response = await client.request(method, path)

    assert response.status_code == status
    assert set(response.json()) == {"detail"}


@pytest.mark.parametrize(
    "path", ["/", "/page.js", "/style.css", "/api/stats", "/health/live", "/nope", "/health/ready"]
)
async def test_every_response_has_the_headers(client, path):
    """F16, G04: Every response, errors included, forbids sniffing, framing and inline code."""
    response = await client.get(path)

    assert response.headers["x-content-type-options"] == "nosniff"
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert "cache-control" in response.headers


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


async def test_the_concurrent_insert_is_tried_again(client, settings, faulty, monkeypatch):
    """A busy database does not lose a runner whose registration was accepted by the concurrent route."""
    insert, calls = Registrations.insert, []

    async def busy_at_first(*args, **options):
        calls.append(args)
        if len(calls) == 1:
            raise DatabaseBusyError("busy")
        return await insert(*args, **options)

    monkeypatch.setattr("marathon_app.registrations.Registrations.insert", busy_at_first)
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


async def test_the_rate_limit(tmp_path, faulty):
    """E22: Above the rate the answer is 429 with Retry-After, on every route together."""
    settings = Settings(database=tmp_path / "marathon.db", mail_server=faulty.server, rate_limit=3)
    async with serving(settings) as client:
        responses = [await client.post(route, json=fields(email=f"a{route[-4:]}@example.com")) for route in ROUTES]

    assert [response.status_code for response in responses] == [200, 201, 202, 429, 429]
    assert int(responses[-1].headers["retry-after"]) >= 1
    assert set(responses[-1].json()) == {"detail"}


async def test_one_address_has_a_rate_too(tmp_path, faulty):
    """E22: The concurrent route cannot be used to flood one mailbox."""
    settings = Settings(database=tmp_path / "marathon.db", mail_server=faulty.server, rate_limit=100)
    async with serving(settings) as client:
        responses = [await client.post("/api/marathon-concurrent", json=fields()) for _ in range(12)]

    assert [response.status_code for response in responses] == [202] * 10 + [429] * 2


async def test_never_in_debug_mode(settings, monkeypatch):
    """F18: No variable of the environment makes the app show its inside."""
    monkeypatch.setenv("LITESTAR_DEBUG", "1")
    monkeypatch.setenv("LITESTAR_PDB", "1")
    app = create_app(settings)

    assert not app.debug
    assert not app.pdb_on_exception


async def call(app, messages):
    """Call the app as a server would, with the messages of one request; return the status, or None."""
    sent = []
    left = iter(messages)

    async def receive():
        message = next(left, None)
        if message is None:
            await asyncio.Event().wait()
        return message

    async def send(message):
        sent.append(message)

    headers = [(b"content-type", b"application/json"), (b"host", b"localhost")]
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
        "path": WAITUNTIL, "raw_path": WAITUNTIL.encode(), "query_string": b"", "root_path": "",
        "headers": headers, "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80),
    }  # fmt: skip
    await app(scope, receive, send)
    return next((message["status"] for message in sent if message["type"] == "http.response.start"), None)


async def test_a_body_that_does_not_come_is_given_up(client, settings, monkeypatch):
    """F13: A body that stops arriving is a 408 after the read timeout, and nothing is stored."""
    monkeypatch.setattr("marathon_app.incoming.READ_TIMEOUT", 0.02)

    assert await call(client.app, [{"type": "http.request", "body": b"{", "more_body": True}]) == 408
    assert runners(settings) == []


async def test_a_client_that_goes_while_it_sends_leaves_nothing(client, settings, caplog):
    """B06: A client that is gone before its body was complete is no registration and no server error."""
    messages = [{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}]

    assert await call(client.app, messages) == 400
    assert runners(settings) == []
    assert "Traceback" not in caplog.text


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
