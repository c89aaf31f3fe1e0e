"""What the page is told: bounded, searched as text, secrets left out."""

import asyncio
import csv
import io
import re

import msgspec
import pytest

from deferred.inspector import Password, RequestView
from deferred.inspector._app import _FILES
from tests.inspector.support import HOME, NASTY, PREFIX, App, ask, marathon, opened
from tests.inspector.test_access import ADA


async def work(*args, **kwargs):
    """Do nothing."""


async def test_the_page_has_nothing_inline():
    """G04: No script, style or handler stands in the page, and no file makes markup of text."""
    html = _FILES["index.html"].decode()
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", html)
    for name, body in _FILES.items():
        text = body.decode()
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", text), name
        assert not re.search(r"https?://(?!www\.w3\.org)", text), name


async def test_the_page_is_found_under_any_prefix(client):
    """G22: Every address in the page is relative, so that no proxy and no mount can break it."""
    html = (await client.get(f"{PREFIX}/")).text
    assert re.findall(r'(?:href|src)="(?!static/|#|data:)[^"]*"', html) == []
    for name in re.findall(r'(?:href|src)="(static/[^"]*)"', html):
        answer = await client.get(f"{PREFIX}/{name}")
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith(("text/css", "text/javascript"))


@pytest.mark.parametrize("name", ["X-Forwarded-Prefix", "X-Forwarded-Host", "X-Script-Name"])
async def test_without_its_slash_it_leads_to_itself(name):
    """G22: The redirect is relative: it leads nowhere else, whatever headers say."""
    app = App(auth=Password({"ada": "difference engine"}))
    async with opened(app) as client:
        answer = await client.get(PREFIX, headers={**ADA, name: "//evil.example"})
    assert (answer.status_code, answer.headers["location"]) == (307, "./_deferred/")
    assert str(answer.next_request.url) == f"{HOME}{PREFIX}/"


@pytest.mark.parametrize("path", ["//evil.example", "/\\evil.example", "/..%2f..", "/static/../_app.py", "/static/%00"])
async def test_strange_paths_lead_nowhere(client, path):
    """G22: No redirect to elsewhere, no file but the page's own."""
    answer = await client.get(PREFIX + path)
    assert answer.status_code == 404


async def test_head_has_no_body(client):
    """A HEAD is answered as a GET without its body."""
    answer = await client.head(f"{PREFIX}/static/app.js")
    assert (answer.status_code, answer.content) == (200, b"")
    assert int(answer.headers["content-length"]) == len(_FILES["app.js"])


async def test_text_is_escaped_for_wherever_it_is_pasted(app, client):
    """G05: JSON holds no angle bracket and no line separator, so that it is safe in any page."""
    name = f"</script>\u2028\u2029{NASTY}"

    @app.route("/r")
    async def register(ctx):
        ctx.with_options(name=name).defer(work)

    await client.get("/r")
    await app.settle()
    answer = await client.get(f"{PREFIX}/api/requests")
    assert not re.search("[<>\u2028\u2029]", answer.text)
    assert answer.json()["requests"][0]["rows"][0]["name"] == name


async def test_pages_of_requests(app, client):
    """G18: A list has a bound, and says how to go on."""
    app.route("/r")(work)
    for _ in range(25):
        await client.get("/r")
    first = await ask(client, "requests", limit=10)
    assert [each["number"] for each in first["requests"]] == list(range(25, 15, -1))
    second = await ask(client, "requests", limit=20, before=16)
    assert [each["number"] for each in second["requests"]] == list(range(15, 0, -1))
    assert (first["more"], second["more"]) == (True, False)


@pytest.mark.parametrize("limit", ["0", "-1", "x", "9" * 30, "1e9", "²"])
async def test_a_limit_is_a_limit(app, client, limit):
    """G18: Whatever is asked for, it is no more than a page."""
    app.route("/r")(work)
    for _ in range(3):
        await client.get("/r")
    assert len((await ask(client, "requests", limit=limit))["requests"]) <= 3


async def test_requests_are_filtered(app, client):
    """By text, by having work, by failure."""
    marathon(app)
    for path in ("/quiet", "/waituntil", "/fails"):
        await client.get(path)
    await app.drained()

    async def found(**query):
        return [each["route"] for each in (await ask(client, "requests", **query))["requests"]]

    assert await found() == ["/fails", "/waituntil", "/quiet"]
    assert await found(work=1) == ["/fails", "/waituntil"]
    assert await found(failed=1) == ["/fails"]
    assert await found(text="CONFIRMATION") == ["/fails", "/waituntil"]
    assert await found(text="no such user") == ["/fails"]
    assert await found(text="%") == []
    assert await found(text=".*") == []


async def test_a_search_is_bounded(app, client):
    """G26: A search text is no pattern, and what is too long is cut."""
    app.route("/r")(work)
    await client.get("/r")
    answer = await client.get(f"{PREFIX}/api/tasks", params={"text": "(a+)+$" + "a" * 1000})
    assert answer.json()["tasks"] == []
    assert (await client.get(f"{PREFIX}/api/tasks?" + "&".join(f"a{n}=1" for n in range(30)))).status_code == 400


async def test_tasks_are_filtered(app, client):
    """By name, state, execution and text; the choices there are come along."""
    marathon(app)
    for path in ("/sequential", "/waituntil", "/fails"):
        await client.get(path)
    await app.drained()

    async def found(**query):
        return [(each["label"], each["task"]["state"]) for each in (await ask(client, "tasks", **query))["tasks"]]

    assert await found() == [
        ("GET /fails", "failed"),
        ("GET /waituntil", "succeeded"),
        ("GET /sequential", "succeeded"),
    ]
    assert await found(state="failed") == [("GET /fails", "failed")]
    assert await found(execution="sequential") == [("GET /sequential", "succeeded")]
    assert await found(name="nothing") == []
    assert await found(text="550 NO") == [("GET /fails", "failed")]
    answer = await ask(client, "tasks", limit=1)
    assert (len(answer["tasks"]), answer["total"], answer["names"]) == (1, 3, ["send confirmation e-mail"])


@pytest.mark.parametrize("kind", ["txt", "svg", "json"])
async def test_a_request_in_other_forms(app, client, kind):
    """The waterfall as text and as a picture, and the record as a file."""
    marathon(app)
    await client.get("/fails")
    await app.drained()
    (request,) = (await ask(client, "requests"))["requests"]
    answer = await client.get(f"{PREFIX}/api/requests/{request['id']}.{kind}")
    assert answer.status_code == 200
    assert "550 no such user" in answer.text
    if kind == "json":
        assert msgspec.json.decode(answer.content, type=RequestView).route == "/fails"


@pytest.mark.parametrize("path", ["requests/x", "requests/x.svg", "requests", "tasks/x", "x", "dead/x/y/z"])
async def test_what_is_not_there(app, client, path):
    """An unknown request is a 404 that says so."""
    if path == "requests":
        app.route("/r")(work)
        await client.get("/r")
        (request,) = (await ask(client, "requests"))["requests"]
        path = f"requests/{request['id']}.exe"
    assert (await client.get(f"{PREFIX}/api/{path}")).status_code == 404


async def test_now(app, client):
    """The counts, the limits, the drain and the throughput of now."""
    marathon(app)
    await client.get("/long")
    await client.get("/fails")
    await asyncio.sleep(0)
    now = await ask(client, "now")
    assert (now["stats"]["running"], now["draining"], now["drain"], now["depth"]) == (2, False, None, None)
    assert (now["limits"]["max_running"], now["limits"]["overflow"]) == (1000, "reject")
    assert len(now["throughput"]) == 60
    assert sum(requests for requests, _, _ in now["throughput"]) <= now["requests"] == 2
    await app.supervisor.drain(0)
    drain = (await ask(client, "now"))["drain"]
    assert drain["late"][0]["name"] == "nightly report"


async def test_a_drain_under_way_is_seen(app, client):
    """What a drain waits for, and how long it may."""
    marathon(app)
    await client.get("/long")
    drain = asyncio.create_task(app.supervisor.drain(0.2))
    await asyncio.sleep(0)
    now = await ask(client, "now")
    assert (now["draining"], now["drain"]["unfinished"]) == (True, 1)
    assert 0 <= now["drain"]["left"] <= 0.2
    await drain


async def test_ten_thousand_rows_do_not_hold_up_the_loop(app, client):
    """G18: The answer of a full recorder has a bound in bytes, whatever was recorded."""

    @app.route("/r")
    async def register(ctx):
        for _ in range(1000):
            ctx.with_options(name="x" * 1000).defer(work, "y" * 200)

    for _ in range(10):
        await client.get("/r")
        await app.settle()
    answer = await client.get(f"{PREFIX}/api/requests")
    assert len(answer.content) < 2_000_000
    assert len((await ask(client, "tasks", limit=10_000))["tasks"]) == 500


async def test_an_app_of_its_own(app):
    """A server can run the inspector by itself: it answers the lifespan; a websocket it refuses."""
    sent = []

    async def send(message):
        sent.append(message["type"])

    messages = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}, {"type": "websocket.connect"}])

    async def receive():
        return next(messages)

    await app.inspector({"type": "lifespan"}, receive, send)
    await app.inspector({"type": "websocket", "path": "/"}, receive, send)
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete", "websocket.close"]


async def test_tasks_for_a_spreadsheet(app, client):
    """G17: The table of tasks holds no cell that a spreadsheet would compute, whatever names and errors say."""
    nasty = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", " =1", "|x", "plain"]

    @app.route("/r")
    async def register(ctx):
        for name in nasty:
            ctx.with_options(name=name).defer(fail, name)

    async def fail(text):
        raise ValueError(text)

    await client.get("/r")
    await app.settle()
    answer = await client.get(f"{PREFIX}/api/tasks.csv")
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert answer.headers["content-disposition"] == 'attachment; filename="tasks.csv"'
    titles, *rows = csv.reader(io.StringIO(answer.text))
    assert titles[:4] == ["task", "state", "execution", "request"]
    assert sorted(row[0] for row in rows) == sorted([*(f"'{name}" for name in nasty[:-1]), "plain"])
    assert not [each for row in rows for each in row if each.lstrip()[:1] in set("=+-@|%")]
    filtered = await client.get(f"{PREFIX}/api/tasks.csv", params={"name": "plain"})
    assert len(list(csv.reader(io.StringIO(filtered.text)))) == 2
