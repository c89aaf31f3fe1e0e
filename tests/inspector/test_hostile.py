"""Names, errors, arguments and readers that nobody would wish for."""

import asyncio
import logging
import time

import pytest

from deferred import Retry, Supervisor
from deferred.inspector import RequestView, RowView, _stream, text
from deferred.inspector._errors import capture, format_error
from deferred.inspector._records import LONG, MOST_STEPS
from deferred.inspector._stream import LENGTH, PATIENCE
from tests.inspector.support import PREFIX, App, ask, marathon, opened, the_request
from tests.inspector.test_recorder import fail, nothing
from tests.inspector.test_stored import Shop

STREAM = {
    "type": "http",
    "method": "GET",
    "path": "/api/stream",
    "query_string": b"",
    "headers": [(b"host", b"127.0.0.1")],
    "client": ("127.0.0.1", 1),
}
HALF = "file-\udcff<b>\x1b[31m\u202e\x00"
"""A file name of another encoding, as Python gives it, and whatever else a terminal or a page could take amiss."""


async def test_half_a_character_hides_nothing(app, client):
    """G16: A name that cannot be written as UTF-8 is shown as what it is; the list it stands in is answered."""

    @app.route("/r")
    async def register(ctx):
        with ctx.step(HALF):
            logging.getLogger(HALF).warning("%s", HALF)
        ctx.with_options(name=HALF).defer(fail, HALF, **{HALF: HALF})

    async def fail(*_args, **_kwargs):
        raise OSError(2, "not found", HALF)

    await client.get("/r")
    await app.settle()
    request = await the_request(client)
    (task,) = (row for row in request["rows"] if row["kind"] == "task")
    assert task["name"].startswith("file-\\udcff<b>")
    assert [line["text"][:11] for line in request["lines"]] == ["file-\\udcff"]
    for path in ("requests", "tasks", "tasks.csv", f"tasks/{task['id']}/arguments"):
        answer = await client.get(f"{PREFIX}/api/{path}")
        assert (answer.status_code, "udcff" in answer.text) == (200, True)
    for kind in ("json", "txt", "svg"):
        answer = await client.get(f"{PREFIX}/api/requests/{request['id']}.{kind}")
        assert (answer.status_code, "\\udcff" in answer.text or "\\\\udcff" in answer.text) == (200, True)


def test_a_tree_of_errors_is_kept_in_part():
    """A08, G18: Groups in groups in groups are a hundred thousand errors: some are kept, and that quickly."""

    def tree(depth):
        return ExceptionGroup("many", [tree(depth - 1) if depth else ValueError("x" * 3000) for _ in range(10)])

    record = capture(tree(4))
    assert 10_000 < record.size < 1_000_000
    assert "1 of the group" in format_error(record)


async def test_a_task_with_very_many_arguments(app, client):
    """G10, G18: The first of them are kept, as text, and how many more there were."""

    @app.route("/r")
    async def register(ctx):
        ctx.defer(lambda *_args: None, *range(100_000))

    await client.get("/r")
    await app.drained()
    request = await the_request(client)
    shown = (await ask(client, f"tasks/{request['rows'][0]['id']}/arguments"))["arguments"]
    assert len(shown) == 41
    assert shown[-1] == ["…", "99960 more"]


async def test_long_names_take_their_room():
    """G18: Of long paths and long names of tasks the beginning is kept, and it is counted."""
    app = App(max_bytes=100_000)
    paths = [f"/{'a' * 20_000}{number}" for number in range(60)]
    for path in paths:

        @app.route(path)
        async def register(ctx):
            ctx.with_options(name="n" * 50_000).defer(nothing)

    async with opened(app) as client:
        for path in paths:
            await client.get(path)
        await app.settle()
        (task, *_) = (await ask(client, "tasks"))["tasks"]
        traces = app.recorder.traces()
    assert 5 < len(traces) < 40
    assert sum(2 * len(trace.label) + 2 * len(trace.ended[0].name) for trace in traces) < 100_000
    assert LONG < len(task["task"]["name"]) < 2 * LONG


async def test_one_heavy_request_does_not_push_out_the_others():
    """G18: What a request may take is a part of the whole; of its details the oldest go first."""
    app = App(max_bytes=100_000)

    @app.route("/light")
    async def light(ctx):
        ctx.defer(nothing)

    @app.route("/heavy")
    async def heavy(ctx):
        for _ in range(150):
            ctx.defer(fail, "x" * 2000)
            logging.getLogger("shop").warning("%s", "y" * 2000)

    async with opened(app) as client:
        for path in ("/light", "/light", "/heavy", "/light"):
            await client.get(path)
        await app.settle()
        routes = [(each["route"], len(each["rows"])) for each in (await ask(client, "requests"))["requests"]]
        heavy_one = await the_request(client, 1)
    assert [route for route, _ in routes] == ["/light", "/heavy", "/light", "/light"]
    assert 0 < len(heavy_one["rows"]) < 20
    assert len(heavy_one["rows"]) + heavy_one["omitted"] == 150
    assert app.recorder.size <= 100_000


@pytest.mark.looptime
async def test_what_goes_on_counts_too():
    """G18: A connection that stays open for ever has a bound while it is open, and so have many together."""
    app = App(max_bytes=100_000)
    recorder = app.recorder
    async with app.supervisor as supervisor:
        contexts = [supervisor.context(f"socket {number}") for number in range(8)]
        for context in contexts:
            opened_one = context.__enter__()
            for _ in range(30):
                opened_one.wait_until(fail("x" * 2000))
            await asyncio.sleep(0.1)
        await asyncio.sleep(2)
        with supervisor.context("the next second"):
            pass
        assert sum(trace.size for trace in recorder.traces()) <= 100_000
        assert recorder.size >= 0
        for context in contexts:
            context.__exit__(None, None, None)
    app.inspector.close()


@pytest.mark.looptime
async def test_an_endless_retry_has_a_bound():
    """A task that fails for ever with long errors keeps its first and its last attempts."""
    app = App(max_bytes=100_000)

    async def later():
        raise OSError("x" * 2000)

    @app.route("/r")
    async def register(ctx):
        retry = Retry(on=OSError, attempts=80, wait_initial=0.01, wait_exp_base=1, wait_jitter=0)
        ctx.with_options(retry=retry).defer(later)

    async with opened(app) as client:
        await client.get("/r")
        await app.drained()
        (row,) = (await the_request(client))["rows"]
    assert row["state"] == "failed"
    assert 2 < len(row["attempts"]) < 30
    assert row["attempts"][0]["started"] < 0.01


async def test_steps_that_are_not_kept_are_counted(app, client):
    """A request with very many steps says how many more there were."""

    @app.route("/r")
    async def register(ctx):
        for number in range(MOST_STEPS + 50):
            with ctx.step(f"step {number}"):
                pass

    await client.get("/r")
    request = await the_request(client)
    assert (len(request["rows"]), request["omitted"]) == (MOST_STEPS, 50)


@pytest.mark.looptime
async def test_what_stored_work_adds_is_counted():
    """G18: Log lines and errors of deliveries come when the request is over, and are in the sum of all."""
    shop = Shop(failures=1)
    async with opened(shop.app) as client:
        for _ in range(3):
            await client.get("/r")
        await shop.empty()
        recorder = shop.app.recorder
        assert recorder.size == sum(trace.weight for trace in recorder.traces())
        await ask(client, "requests")
        assert recorder.forget(lambda _trace: True) == 3
        assert recorder.size == 0


async def test_logging_that_is_set_up_late(app, client):
    """A configuration takes every handler off; within a second the inspector listens again."""

    @app.route("/r")
    async def register(ctx):
        logging.getLogger("shop").warning("hello")

    root = logging.getLogger()
    handlers = list(root.handlers)
    await client.get("/r")
    for handler in list(root.handlers):
        root.removeHandler(handler)
    try:
        app.recorder.counts.next = 0.0
        await client.get("/r")
        assert [line["text"] for line in (await the_request(client))["lines"]] == ["hello"]
    finally:
        for handler in handlers:
            root.addHandler(handler)


@pytest.mark.parametrize("kind", ["http.response.start", "http.response.body"])
@pytest.mark.looptime
async def test_a_reader_that_takes_nothing_is_given_up(app, client, kind, caplog):
    """A stream whose client reads no more ends soon: it would hold a slot, and the server's shutdown."""
    caplog.set_level(logging.INFO, "deferred.inspector")

    async def receive():
        await asyncio.Event().wait()

    async def send(message):
        if message["type"] == kind:
            await asyncio.Event().wait()

    began = asyncio.get_running_loop().time()
    await app.inspector(STREAM, receive, send)
    assert asyncio.get_running_loop().time() - began == pytest.approx(LENGTH + PATIENCE)
    assert app.inspector._streams._open == 0
    assert "given up" in caplog.text


async def test_a_loop_that_was_blocked_is_not_its_readers_fault(app, caplog, monkeypatch):
    """A stream that takes longer than its reader may, because the loop stood still, ends as others do."""
    caplog.set_level(logging.INFO, "deferred.inspector")
    monkeypatch.setattr(_stream, "LENGTH", 0.1)
    monkeypatch.setattr(_stream, "PATIENCE", 0.1)
    sent = []

    async def send(message):
        sent.append(message)

    async def receive():
        await asyncio.Event().wait()

    asyncio.get_running_loop().call_later(0.05, time.sleep, 0.5)
    await app.inspector(STREAM, receive, send)
    assert sent[-1] == {"type": "http.response.body", "body": b""}
    assert "given up" not in caplog.text


@pytest.mark.looptime
async def test_a_stream_brings_so_many_bytes_and_no_more(app, client, monkeypatch):
    """A flood ends the stream, which is opened anew at once: it does not fill the server's buffers."""
    monkeypatch.setattr(_stream, "MOST_BYTES", 1000)
    marathon(app)
    answer = asyncio.create_task(client.get(f"{PREFIX}/api/stream"))
    await asyncio.sleep(0.1)
    began = asyncio.get_running_loop().time()
    for _ in range(4):
        await client.get("/quiet")
    assert (await answer).text.count("data: ") > 1
    assert asyncio.get_running_loop().time() - began < LENGTH / 2


def test_times_that_run_backwards_are_drawn():
    """A clock that was set back draws bars at the beginning, and never at the end."""
    row = RowView(kind="task", name="mail", state="succeeded", created=-2.0, ended=-1.0, execution="deferred")
    request = RequestView(id="1", number=1, label="GET /", began=0, age=1, response=-0.5, done=1.0, rows=[row])
    _, mail = text.render(request, width=80).splitlines()[1:]
    assert mail.index("┊") < 20
    assert mail.rstrip().endswith("1.0 s") or "ms" in mail


async def test_scopes_of_other_kinds_are_left_alone(app):
    """A server may know kinds of connection that nobody here has heard of."""
    called = []

    async def channel(*_message):
        called.append(1)

    await app.inspector({"type": "webtransport"}, channel, channel)
    assert called == []


async def test_a_supervisor_of_many_pending_tasks(app, client):
    """G18: What waits is shown in part, with how much more there is."""
    gate = asyncio.Event()

    @app.route("/r")
    async def register(ctx):
        for _ in range(900):
            ctx.wait_until(gate.wait())

    await client.get("/r")
    request = await the_request(client)
    assert (len(request["rows"]), request["omitted"]) == (200, 700)
    gate.set()
    await app.settle()


async def test_two_inspectors_of_one_supervisor():
    """Each records by itself, and closing one leaves the other."""
    supervisor = Supervisor()
    one, other = App(supervisor), App(supervisor)

    @one.route("/r")
    async def register(ctx):
        logging.getLogger("shop").warning("hello")
        ctx.defer(nothing)

    async with opened(one) as client:
        await client.get("/r")
        await one.settle()
        one.inspector.close()
        await client.get("/r")
        await one.settle()
        assert len(one.recorder.traces()) == 1
        assert [len(trace.lines) for trace in other.recorder.traces()] == [1, 1]
    other.inspector.close()
