"""Who comes in, and who may act."""

import base64
import logging

import httpx
import pytest

from deferred import Supervisor
from deferred.inspector import Inspector, Password, Person, Role
from deferred.inspector._app import _FILES
from deferred.inspector._http import SECURITY
from tests.inspector.support import PREFIX, App, act, ask, audited, opened

QUESTIONS = ["session", "requests", "requests/x", "requests/x.svg", "tasks", "tasks/x/arguments", "dead"]
QUESTIONS += ["dead/x/arguments", "now", "stream", "unheard-of"]
ACTIONS = ["dead/retry", "dead/delete", "forget"]
ROUTES = [
    "",
    "/",
    "/nowhere",
    *(f"/static/{name}" for name in _FILES),
    *(f"/api/{each}" for each in QUESTIONS + ACTIONS),
]

PASSWORDS = Password({"ada": "difference engine"}, readers={"guest": "only looking"})


def basic(name, password):
    """Return the header of somebody with a password."""
    return {"Authorization": "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()}


ADA, GUEST = basic("ada", "difference engine"), basic("guest", "only looking")


@pytest.fixture
async def guarded():
    """Give a client of an inspector with passwords."""
    app = App(auth=PASSWORDS, debug=False)
    async with opened(app, address="10.1.2.3", base="https://app.example") as client:
        yield client


# --- without auth ------------------------------------------------------------------------------


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_without_auth_it_is_closed(route, method):
    """G01: Without `auth`, and not while debugging, no route answers, whoever asks."""
    app = App(debug=False)
    async with opened(app) as client:
        answer = await client.request(method, PREFIX + route)
    assert answer.status_code == 403
    assert "Give it `Inspector(supervisor, auth=...)`" in answer.text


@pytest.mark.parametrize(
    ("address", "headers"),
    [
        ("10.1.2.3", {}),
        ("::ffff:10.1.2.3", {}),
        ("127.0.0.1", {"X-Forwarded-For": "10.1.2.3"}),
        ("127.0.0.1", {"Forwarded": "for=127.0.0.1"}),
        ("127.0.0.1", {"X-Forwarded-Proto": "https"}),
        ("127.0.0.1", {"X-Forwarded-Prefix": "/app"}),
        ("127.0.0.1", {"CF-Connecting-IP": "10.1.2.3"}),
        ("127.0.0.1", {"True-Client-IP": "10.1.2.3"}),
        ("127.0.0.1", {"X-Amzn-Trace-Id": "Root=1"}),
        ("127.0.0.1", {"X-Real-IP": "127.0.0.1"}),
        ("127.0.0.1", {"Via": "1.1 proxy"}),
        ("localhost.evil.example", {}),
    ],
)
async def test_debugging_opens_it_for_this_machine_alone(app, address, headers):
    """G01: Other addresses, and whoever comes through a proxy, stay outside."""
    async with opened(app, address=address) as client:
        assert (await client.get(f"{PREFIX}/", headers=headers)).status_code == 403


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.9.1", "::1", "::ffff:127.0.0.1"])
@pytest.mark.parametrize(
    "base", ["http://127.0.0.1:8000", "http://localhost:9", "http://LOCALHOST", "http://[::1]:8000"]
)
async def test_debugging_opens_it_here(app, address, base):
    """The developer's own browser needs nothing."""
    async with opened(app, address=address, base=base) as client:
        assert (await client.get(f"{PREFIX}/")).status_code == 200


async def test_a_client_without_an_address_stays_outside(app):
    """G01: A Unix socket may have a proxy behind it."""
    refused = []

    async def send(message):
        refused.append(message)

    scope = {"type": "http", "method": "GET", "path": "/", "headers": [(b"host", b"localhost")], "client": None}
    await app.inspector(scope, None, send)
    assert refused[0]["status"] == 403


@pytest.mark.parametrize(
    ("said", "dev_mode", "open_"),
    [("", False, False), ("1", False, True), ("true", False, True), ("0", True, False), ("", True, True)],
)
async def test_the_environment_says_whether_it_is_debugged(monkeypatch, said, dev_mode, open_):
    """G01: `DEFERRED_DEBUG`, else Python's development mode, opens it where the code says nothing."""
    import types

    from deferred.inspector import _access

    monkeypatch.setenv("DEFERRED_DEBUG", said)
    monkeypatch.setattr(_access.sys, "flags", types.SimpleNamespace(dev_mode=dev_mode))
    app = App(debug=None)
    async with opened(app) as client:
        assert (await client.get(f"{PREFIX}/")).status_code == (200 if open_ else 403)


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "", "10.0.0.1"])
@pytest.mark.parametrize("route", ["/", "/api/requests", "/static/app.js"])
async def test_a_host_name_that_was_rebound_is_refused(app, client, host, route):
    """G08: A page of another site whose name was made to lead here gets nothing."""
    answer = await client.get(PREFIX + route, headers={"Host": host})
    assert answer.status_code == 400


async def test_host_names_can_be_named():
    """G08: With `hosts` only these are served, whoever knows the password."""
    app = App(auth=PASSWORDS, hosts=["app.example"])
    async with opened(app, address="10.1.2.3", base="https://APP.example:8443") as client:
        assert (await client.get(f"{PREFIX}/", headers=ADA)).status_code == 200
        assert (await client.get(f"{PREFIX}/", headers={**ADA, "Host": "other.example"})).status_code == 400


# --- with auth ---------------------------------------------------------------------------------


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("method", ["GET", "POST", "HEAD"])
@pytest.mark.parametrize(
    "headers",
    [{}, basic("ada", "wrong password"), basic("", ""), {"Authorization": "Basic !"}, {"Authorization": "Bearer x"}],
)
async def test_no_route_answers_strangers(guarded, route, method, headers):
    """G02: Every route, the files and the stream among them, asks who it is."""
    answer = await guarded.request(method, PREFIX + route, headers=headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Basic ")


async def test_who_knows_the_password_comes_in(guarded):
    """G02: From anywhere, under any name of the app."""
    assert (await guarded.get(f"{PREFIX}/", headers=ADA)).status_code == 200
    assert (await guarded.get(f"{PREFIX}/api/session", headers=GUEST)).json()["role"] == "reader"


def test_passwords_are_compared_in_constant_time(monkeypatch):
    """G02: Every known password is compared, by `hmac.compare_digest`, whoever asks."""
    from deferred.inspector import _access

    compared = []

    def compare(one, other):
        compared.append((one, other))
        return one == other

    monkeypatch.setattr(_access.hmac, "compare_digest", compare)
    for headers in (ADA, GUEST, basic("nobody", "x"), {}):
        scope = {"headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()]}
        PASSWORDS(scope)
    assert len(compared) == 8
    assert {len(one) for pair in compared for one in pair} == {32}


@pytest.mark.parametrize("asynchronous", [True, False])
async def test_auth_may_be_any_function(asynchronous):
    """A function of the app's own says who it is, by whatever it looks at."""

    def plain(scope):
        return Person("grace", Role.READER) if dict(scope["headers"]).get(b"x-user") == b"grace" else None

    async def later(scope):
        return plain(scope)

    app = App(auth=later if asynchronous else plain)
    async with opened(app) as client:
        assert (await client.get(f"{PREFIX}/", headers={"X-User": "grace"})).status_code == 200
        answer = await client.get(f"{PREFIX}/")
    assert answer.status_code == 401
    assert "www-authenticate" not in answer.headers


@pytest.mark.parametrize("answer", [True, "ada", 1])
async def test_what_is_no_person_stays_outside(answer):
    """G02: A function that answers anything else than a person lets nobody in."""
    app = App(auth=lambda scope: answer)
    async with opened(app) as client:
        assert (await client.get(f"{PREFIX}/")).status_code == 401


@pytest.mark.parametrize("auth", ["secret", ("ada", "x"), 1])
def test_auth_of_the_wrong_kind_is_refused(auth):
    """A bare password does not say whose it is: the error names the mend."""
    with pytest.raises(TypeError, match=r"Password\({name: password}\)"):
        Inspector(Supervisor(), auth=auth)


def test_one_host_name_is_no_list_of_them():
    """Its characters would be names that nobody asks for, and everybody would be refused."""
    with pytest.raises(TypeError, match=r"such as \['admin.example'\]"):
        Inspector(Supervisor(), hosts="admin.example")


@pytest.mark.parametrize(
    ("operators", "message"),
    [({}, "nobody"), ({"ada": "short"}, "at least 8"), ({"a:b": "long enough"}, "without a colon")],
)
def test_passwords_that_protect_nothing_are_refused(operators, message):
    """G02: A password is long enough, of somebody."""
    with pytest.raises(ValueError, match=message):
        Password(operators)


def test_a_password_is_never_shown():
    """E20: The representation names who, and not how."""
    assert repr(PASSWORDS) == "<Password of ada, guest>"


async def test_guessing_is_slowed_down(guarded, monkeypatch):
    """G09: After some wrong passwords an address waits, also with the right one; others do not."""
    from deferred.inspector import _access

    clock = [1000.0]
    monkeypatch.setattr(_access.time, "monotonic", lambda: clock[0])
    codes = [(await guarded.get(f"{PREFIX}/", headers=basic("ada", f"guess {n}"))).status_code for n in range(12)]
    assert codes == [401] * 10 + [429] * 2
    answer = await guarded.get(f"{PREFIX}/", headers=ADA)
    assert (answer.status_code, int(answer.headers["retry-after"])) == (429, 61)
    transport = httpx.ASGITransport(guarded._transport.app, client=("10.9.9.9", 1))
    async with httpx.AsyncClient(transport=transport, base_url="https://app.example") as other:
        assert (await other.get(f"{PREFIX}/", headers=ADA)).status_code == 200
    clock[0] += 61
    assert (await guarded.get(f"{PREFIX}/", headers=ADA)).status_code == 200


async def test_guessing_from_many_addresses_is_slowed_down(monkeypatch):
    """G09: All addresses together have a bound too, and so has what is remembered of them."""
    from deferred.inspector import _access

    monkeypatch.setattr(_access, "_ADDRESSES", 20)
    monkeypatch.setattr(_access.time, "monotonic", lambda: 1000.0)
    access = _access.Access(PASSWORDS, debug=None, hosts=None)
    headers = [(b"host", b"app.example"), (b"authorization", b"Basic eDp5")]
    statuses = []
    for number in range(202):
        with pytest.raises(_access.Refused) as refused:
            await access.enter({"client": (f"10.0.0.{number}", 1), "headers": headers})
        statuses.append(refused.value.status)
    assert statuses == [401] * 200 + [429] * 2
    assert len(access._throttle._failures) == 20


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_guess_at_which_auth_fails_is_a_guess(asynchronous):
    """G09: What `auth` raises is the app's to see; nobody comes in, and whoever provokes it is slowed down."""

    def broken(_scope):
        message = "no such user"
        raise LookupError(message)

    async def broken_later(scope):
        broken(scope)

    app = App(auth=broken_later if asynchronous else broken)
    async with opened(app) as client:
        answers = [await client.get(f"{PREFIX}/", headers={"Authorization": "Basic eA=="}) for _ in range(12)]
    assert [answer.status_code for answer in answers] == [500] * 10 + [429] * 2


async def test_a_first_visit_is_no_guess(guarded):
    """G09: The browser asks without a password first, as often as it likes."""
    codes = {(await guarded.get(f"{PREFIX}/")).status_code for _ in range(30)}
    assert codes == {401}


# --- what may be done ----------------------------------------------------------------------------


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "PATCH"])
async def test_actions_are_posts(client, action, method):
    """G06: A link, a picture or a form of another kind does nothing."""
    answer = await client.request(method, f"{PREFIX}/api/{action}")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


@pytest.mark.parametrize("route", ["/", "/static/app.js", "/api/requests", "/api/stream", "/nowhere"])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
async def test_nothing_else_can_be_changed(client, route, method):
    """G06: What is looked at is looked at by GET."""
    answer = await client.request(method, PREFIX + route)
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": ""},
        {"Origin": "null"},
        {"Origin": "http://evil.example"},
        {"Origin": "http://127.0.0.1:9000"},
        {"Origin": "ftp://127.0.0.1:8000"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"X-Deferred-Token": ""},
        {"X-Deferred-Token": "0" * 64},
    ],
)
@pytest.mark.parametrize("action", ACTIONS)
async def test_an_action_comes_from_the_page(client, action, headers):
    """G06, G20: Another page's request lacks the origin, and the token that only this page can read."""
    assert (await act(client, action, {}, **headers)).status_code == 403


@pytest.mark.parametrize(
    ("host", "origin", "allowed"),
    [
        ("shop.example", "https://shop.example", True),
        ("shop.example:443", "https://shop.example", True),
        ("shop.example", "https://SHOP.example:443", True),
        ("shop.example:80", "http://shop.example", True),
        ("[::1]:8000", "http://[::1]:8000", True),
        ("[::1]", "http://[::1]:80", True),
        ("shop.example:443", "http://shop.example", False),
        ("shop.example:8443", "https://shop.example", False),
        ("shop.example", "https://shop.example.evil.example", False),
        ("shop.example", "https://evil.example/shop.example", False),
        ("shop.example", "https://", False),
        ("", "https://", False),
        ("", "null", False),
    ],
)
async def test_an_origin_is_the_host_with_or_without_its_usual_port(guarded, host, origin, allowed):
    """G06, G22: A proxy may name the port that a browser leaves out; another host or port is another page."""
    guarded.headers.update(ADA)
    answer = await act(guarded, "forget", {}, Host=host, Origin=origin)
    assert (answer.status_code == 200) == allowed


async def test_an_operator_may_act_and_a_reader_may_not(guarded, caplog):
    """G20: The role decides; what was done is logged with who did it."""
    caplog.set_level(logging.INFO, "deferred.inspector")
    guarded.headers.update(GUEST)
    assert (await act(guarded, "forget", {})).status_code == 403
    guarded.headers.update(ADA)
    assert (await act(guarded, "forget", {})).json() == {"forgotten": 0}
    assert audited(caplog) == ["'ada' had 0 recorded request(s) forgotten"]


async def test_a_token_is_of_one_person(guarded):
    """G20: A reader's token is no operator's."""
    guarded.headers.update(GUEST)
    token = (await ask(guarded, "session"))["token"]
    guarded.headers.update(ADA)
    assert (await act(guarded, "forget", {}, **{"X-Deferred-Token": token})).status_code == 403


async def test_a_body_has_a_bound(client):
    """G18: An action of many megabytes is refused before it is read."""
    assert (await act(client, "forget", {"text": "x" * 100_000})).status_code == 413


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("body", [[], "x", {"key": 1}, {"key": "x", "ids": "all"}, {"unknown": 1}])
async def test_what_is_no_order_is_refused(client, action, body):
    """G14: An order is decoded strictly."""
    if action == "forget" and body == {"unknown": 1}:
        body = {"text": 1}
    assert (await act(client, action, body)).status_code == 422


# --- what every answer says ------------------------------------------------------------------------


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_every_answer_is_armoured(client, route, method):
    """G04, G21: No foreign script, no frame, no copy in a cache, no cookie, on every route and every refusal."""
    async with client.stream(method, PREFIX + route) as answer:
        headers = answer.headers
        for name, value in SECURITY.items():
            assert headers[name] == value
        assert "set-cookie" not in headers
    policy = headers["content-security-policy"]
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert "default-src 'none'" in policy
