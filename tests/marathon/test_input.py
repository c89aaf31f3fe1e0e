"""What is sent to the routes and is no registration, and what is told of it."""

import asyncio
import gzip

import msgspec
import pytest

from tests.marathon.support import ROUTES, WAITUNTIL, fields, runners


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
    yield "gzip", {"content": gzip.compress(good), "headers": {**as_json, "content-encoding": "gzip"}}, 415
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


@pytest.mark.parametrize("route", ROUTES)
async def test_who_is_registered_cannot_be_found_out(client, faulty, route):
    """F17: a known address is answered as an unknown one; but for the sequential route, as fast: before any mail."""
    if ROUTES[route] != 200:
        faulty.gate.clear()
    answers = []
    for email in ("ada@example.com", "ada@example.com", "eve@example.com"):
        response = await client.post(route, json=fields(email=email))
        answers.append((response.status_code, response.headers.multi_items(), response.text))
        if ROUTES[route] != 200:
            assert faulty.kept == []
    assert answers[0] == answers[1] == answers[2]
    faulty.gate.set()


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
