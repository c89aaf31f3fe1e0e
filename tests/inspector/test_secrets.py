"""What is not shown, or only when asked for, or no longer."""

import asyncio
import json
import logging

import msgspec
import pytest

from deferred.inspector import Password
from tests.inspector.support import PREFIX, App, act, ask, audited, opened, the_request
from tests.inspector.test_access import ADA, GUEST
from tests.inspector.test_api import work


class Order(msgspec.Struct):
    name: str
    api_key: str
    lines: list[dict[str, str]]


async def test_arguments_are_shown_when_asked_for(app, client, caplog):
    """G10: Arguments are in no list; by themselves they are shown without secrets, and that is logged."""
    caplog.set_level(logging.INFO, "deferred.inspector")

    @app.route("/r")
    async def register(ctx):
        ctx.defer(work, "ada@example.com", 3, password="hunter2", note="token=abcdefgh")

    await client.get("/r")
    await app.settle()
    request = await the_request(client)
    assert "ada@" not in json.dumps(request)
    (task,) = request["rows"]
    assert (await ask(client, f"tasks/{task['id']}/arguments"))["arguments"] == [
        ["*0", "'ada@example.com'"],
        ["*1", "3"],
        ["password", "•••"],
        ["note", "'token=•••'"],
    ]
    assert audited(caplog) == [f"'local' looked at the arguments of task {task['id']!r}"]


async def test_arguments_of_every_kind(app, client):
    """G10: Structures are shown without the secrets in them; what is unknown by its type alone."""

    class Unknown:
        def __repr__(self):
            raise AssertionError("nobody asked for it")

    async def mail(order, other, many):
        pass

    @app.route("/r")
    async def register(ctx):
        order = Order("Ada", "key-1234", [{"Authorization": "Bearer abcdefgh", "to": "Ada"}])
        ctx.defer(mail, order, Unknown(), list(range(100)))

    await client.get("/r")
    await app.settle()
    (task,) = (await the_request(client))["rows"]
    shown = dict((await ask(client, f"tasks/{task['id']}/arguments"))["arguments"])
    assert shown["order"] == "Order(name='Ada', api_key=•••, lines=[{'Authorization': •••, 'to': 'Ada'}])"
    assert shown["other"] == "<Unknown>"
    assert shown["many"].endswith("18, 19, …]")


async def test_arguments_of_a_running_task(app, client):
    """G10: Also while it runs; an unknown task has none."""
    released = asyncio.Event()

    async def mail(to):
        await released.wait()

    @app.route("/r")
    async def register(ctx):
        ctx.defer(mail, "Ada")

    await client.get("/r")
    (task,) = (await the_request(client))["rows"]
    assert (await ask(client, f"tasks/{task['id']}/arguments"))["arguments"] == [["to", "'Ada'"]]
    assert (await client.get(f"{PREFIX}/api/tasks/unheard-of/arguments")).status_code == 404
    released.set()
    await app.drained()


async def test_arguments_need_not_be_kept():
    """G24: With `arguments=False` nothing of them stays."""
    app = App(arguments=False)

    @app.route("/r")
    async def register(ctx):
        ctx.defer(work, "Ada")

    async with opened(app) as client:
        await client.get("/r")
        await app.settle()
        (task,) = (await the_request(client))["rows"]
        assert (await client.get(f"{PREFIX}/api/tasks/{task['id']}/arguments")).status_code == 404


async def test_readers_see_no_arguments():
    """G10: The view of arguments needs the operator's role."""
    app = App(auth=Password({"ada": "difference engine"}, readers={"guest": "only looking"}))

    @app.route("/r")
    async def register(ctx):
        ctx.defer(work, "Ada")

    async with opened(app) as client:
        await client.get("/r")
        await app.settle()
        client.headers.update(GUEST)
        (task,) = (await the_request(client))["rows"]
        assert (await client.get(f"{PREFIX}/api/tasks/{task['id']}/arguments")).status_code == 403
        client.headers.update(ADA)
        assert (await ask(client, f"tasks/{task['id']}/arguments"))["arguments"] == [["*0", "'Ada'"]]


SECRETS = [
    "postgresql://app:hunter2@db.example/main",
    "redis://:hunter2@cache/0",
    "Authorization: Bearer hunter2hunter2",
    "password=hunter2",
    "{'secret': 'hunter2'}",
    '{"api_key":"hunter2"}',
    "eyJhbGciOiJIUzI1NiJ9.hunter2hunter2.hunter2",
    "-----BEGIN PRIVATE KEY-----\nhunter2\n-----END PRIVATE KEY-----",
    "sk_live_hunter2hunter2hunter2",
    "x" * 3990 + " password=hunter2",
]


@pytest.mark.parametrize("secret", SECRETS)
async def test_secrets_in_errors_names_and_logs_are_hidden(app, client, secret):
    """G12: A password in an error, a name or a log line is in no answer; local variables never are."""

    async def fail():
        local = "hunter2 local"
        raise OSError(secret, local[:0])

    @app.route("/r")
    async def register(ctx):
        logging.getLogger("shop").warning("%s", secret)
        with ctx.step(secret):
            pass
        ctx.with_options(name=secret).defer(fail)

    await client.get("/r")
    await app.settle()
    request = await the_request(client)
    del request["rows"][1]["attempts"]  # whose traceback shows the source of this test
    assert "hunter2" not in json.dumps(request)


async def test_forgetting_by_subject(app, client):
    """G24: What is recorded of somebody is deleted, also where only the hidden arguments name them."""

    @app.route("/r")
    async def register(ctx):
        ctx.defer(work, "ada@example.com")

    @app.route("/s")
    async def other(ctx):
        ctx.defer(work, "grace@example.com")

    for path in ("/r", "/s", "/r"):
        await client.get(path)
    await app.settle()
    assert (await act(client, "forget", {"text": "ADA@"})).json() == {"forgotten": 2}
    assert [each["route"] for each in (await ask(client, "requests"))["requests"]] == ["/s"]
    assert app.inspector.forget("nobody") == 0
    assert app.inspector.forget() == 1
    assert app.recorder.size == 0


@pytest.mark.parametrize("where", ["lines", "error", "step"])
async def test_forgetting_looks_everywhere(app, client, where):
    """G24: A subject is found in log lines, errors and names of steps."""

    @app.route("/r")
    async def register(ctx):
        if where == "lines":
            logging.getLogger("shop").warning("hello ada@example.com")
        elif where == "step":
            with ctx.step("ada@example.com"):
                pass
        else:
            raise ValueError("ada@example.com")

    await client.get("/r")
    assert app.inspector.forget("ada@example.com") == 1
