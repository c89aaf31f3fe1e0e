"""What is recorded, how much of it, and what it keeps alive."""

import asyncio
import logging

import pytest

from deferred import NonRetryableError, Retry, Supervisor, TaskRejectedError
from deferred.inspector import Inspector
from tests.inspector.support import App, ask, opened, the_request


async def nothing(*args, **kwargs):
    """Do nothing."""


async def fail(text="no"):
    """Fail."""
    raise ValueError(text)


def the_task(request):
    """Return the only task of a request."""
    (row,) = [row for row in request["rows"] if row["kind"] == "task"]
    return row


@pytest.mark.looptime
async def test_a_request_and_what_outlives_it(app, client):
    """Response, steps, queue wait and end are those of the loop's clock, on one axis."""

    @app.route("/register", status=201)
    async def register(ctx):
        with ctx.step("INSERT"):
            await asyncio.sleep(0.25)
        ctx.with_options(name="mail").defer(asyncio.sleep, 0.5)
        await asyncio.sleep(0.25)

    await client.get("/register")
    await app.drained()
    (request,) = (await ask(client, "requests"))["requests"]
    assert (request["method"], request["route"], request["status"]) == ("GET", "/register", 201)
    assert (request["response"], request["done"]) == (0.5, 1.0)
    step, task = request["rows"]
    assert (step["name"], step["attempts"]) == ("INSERT", [{"started": 0.0, "ended": 0.25}])
    assert (task["name"], task["state"], task["created"]) == ("mail", "succeeded", 0.25)
    assert (task["attempts"], task["ended"]) == ([{"started": 0.5, "ended": 1.0}], 1.0)


@pytest.mark.looptime
async def test_each_attempt_and_its_backoff(app, client):
    """DF-06: A retried task has an attempt for each try, with its error and the wait that followed."""
    tries = []

    async def flaky():
        await asyncio.sleep(1)
        tries.append(1)
        if len(tries) < 3:
            raise ConnectionError("421")

    @app.route("/r")
    async def register(ctx):
        ctx.with_options(retry=Retry(on=ConnectionError, wait_initial=2, wait_jitter=0)).defer(flaky)

    await client.get("/r")
    await app.drained()
    task = the_task(await the_request(client))
    assert [(each["started"], each["ended"], each.get("backoff", 0)) for each in task["attempts"]] == [
        (0.0, 1.0, 2.0),
        (3.0, 4.0, 4.0),
        (8.0, 9.0, 0),
    ]
    assert [each.get("error", "") for each in task["attempts"]] == ["ConnectionError: 421"] * 2 + [""]
    assert "flaky" in task["attempts"][0]["traceback"]
    assert task["state"] == "succeeded"
    assert "error" not in task


@pytest.mark.looptime
async def test_what_has_not_ended_is_shown_as_it_stands(app, client):
    """Pending, running and waiting tasks are in the list before they end."""
    released = asyncio.Event()

    async def flaky():
        raise ConnectionError("421")

    @app.route("/r")
    async def register(ctx):
        ctx.with_options(name="runs").defer(released.wait)
        ctx.with_options(name="waits", retry=Retry(on=ConnectionError, wait_initial=2, wait_jitter=0)).defer(flaky)
        ctx.with_options(name="later").wait_until(released.wait())

    await client.get("/r")
    await asyncio.sleep(1)
    (request,) = (await ask(client, "requests"))["requests"]
    rows = {row["name"]: row for row in request["rows"]}
    assert "done" not in request
    assert request["age"] == 1.0
    assert (rows["runs"]["state"], rows["runs"]["attempts"]) == ("running", [{"started": 0.0}])
    assert rows["waits"]["attempts"] == [
        {"started": 0.0, "ended": 0.0, "error": "ConnectionError: 421", "backoff": 2.0}
    ]
    assert rows["later"]["execution"] == "concurrent"
    released.set()
    await app.drained()


async def test_a_failure_with_its_traceback(app, client):
    """The error of a failed task is its line, its traceback the user's own frames."""

    @app.route("/r")
    async def register(ctx):
        ctx.defer(fail, "boom")

    await client.get("/r")
    await app.settle()
    task = the_task(await the_request(client))
    assert (task["state"], task["outcome"], task["error"]) == ("failed", "failed", "ValueError: boom")
    assert task["attempts"][0]["traceback"].startswith("Traceback (most recent call last):\n  File ")
    assert "raise ValueError(text)" in task["attempts"][0]["traceback"]
    assert __file__ in task["site"]


async def test_every_ending(app, client):
    """WD-27, DF-08: Cancelled, discarded and refused work is recorded with its reason."""

    @app.route("/r")
    async def register(ctx):
        ctx.with_options(name="unwanted", when="error").defer(nothing)
        ctx.with_options(name="cancelled").defer(nothing).cancel()
        ctx.with_options(name="final").defer(give_up)

    async def give_up():
        raise NonRetryableError("for good")

    await client.get("/r")
    await app.settle()
    request = await the_request(client)
    assert {row["name"]: row["outcome"] for row in request["rows"]} == {
        "unwanted": "discarded_by_when",
        "cancelled": "cancelled_by_handle",
        "final": "non_retryable",
    }


async def test_refused_work_is_a_row_of_its_own():
    """A48: What a limit has refused is seen in the request that wanted it."""
    app = App(Supervisor(max_per_context=1))

    @app.route("/r")
    async def register(ctx):
        ctx.defer(nothing)
        with pytest.raises(TaskRejectedError):
            ctx.with_options(name="too much").defer(nothing)

    async with opened(app) as client:
        await client.get("/r")
        await app.settle()
        request = await the_request(client)
    assert [row["state"] for row in request["rows"]] == ["succeeded", "rejected"]
    assert "max_per_context=1" in request["rows"][1]["error"]


async def test_the_handlers_own_error(app, client):
    """A request whose handler raised shows the line and the traceback."""

    @app.route("/r")
    async def register(ctx):
        await fail("the handler")

    assert (await client.get("/r")).status_code == 500
    request = await the_request(client)
    assert (request["error"], request["status"]) == ("ValueError: the handler", 500)
    assert "register" in request["traceback"]


@pytest.mark.looptime
async def test_work_that_nobody_waits_for_is_of_its_request(app, client):
    """A fire-and-forget task belongs to the record of its request, which is done when it is."""
    from deferred import fire_and_forget

    @app.route("/r")
    @fire_and_forget
    async def register(ctx):
        await ctx.run(asyncio.sleep, 1)
        await ctx.run(asyncio.sleep, 2)

    await client.get("/r")
    (request,) = (await ask(client, "requests"))["requests"]
    assert ("done" in request, len(request["rows"])) == (False, 2)
    await asyncio.sleep(3)
    (request,) = (await ask(client, "requests"))["requests"]
    assert (request["done"], [row["state"] for row in request["rows"]]) == (2.0, ["succeeded"] * 2)


async def test_work_of_no_request():
    """What is deferred outside any context is recorded under a name of its own."""
    from deferred import defer

    app = App(Supervisor(out_of_scope="run"))
    async with opened(app) as client:
        defer(nothing)
        await app.settle()
        (request,) = (await ask(client, "requests"))["requests"]
    assert (request["label"], request["rows"][0]["state"]) == ("background", "succeeded")


async def test_a_sequential_step_while_somebody_watches(app, client):
    """A step that runs inside the handler is seen while it runs."""
    from deferred import sequential

    inside, released = asyncio.Event(), asyncio.Event()

    async def step():
        inside.set()
        await released.wait()

    @app.route("/r")
    @sequential
    async def register(ctx):
        await ctx.run(step)

    with app.recorder.watched():
        answer = asyncio.create_task(client.get("/r"))
        await inside.wait()
        (request,) = (await ask(client, "requests"))["requests"]
        assert (request["rows"][0]["state"], request["execution"]) == ("running", "sequential")
        released.set()
        await answer
    assert (await the_request(client))["rows"][0]["state"] == "succeeded"


async def test_the_inspectors_own_requests_are_not_recorded(app, client):
    """Looking adds nothing to what is seen."""
    for _ in range(3):
        listed = await ask(client, "requests")
    assert (listed["requests"], (await ask(client, "now"))["requests"]) == ([], 0)


async def test_log_lines_are_of_the_task_that_wrote_them(app, client, caplog):
    """WD-39: Lines are attributed to the task, or to the request outside any task."""
    log = logging.getLogger("shop")

    async def work():
        log.warning("in the task, password=hunter2")
        await asyncio.to_thread(log.warning, "in its thread")

    @app.route("/r")
    async def register(ctx):
        log.warning("in the %s", "handler")
        ctx.defer(work)

    await client.get("/r")
    await app.settle()
    log.warning("of nobody")
    request = await the_request(client)
    task = the_task(request)
    assert [(line["text"], line.get("task")) for line in request["lines"]] == [
        ("in the handler", None),
        ("in the task, password=•••", task["id"]),
        ("in its thread", None),  # a thread of its own making: the request is all that is known
    ]


def test_an_app_that_sets_up_its_logging_late_is_not_in_the_way():
    """`logging.basicConfig` after the inspector was made still does what it does."""
    root = logging.getLogger()
    before = list(root.handlers)
    inspector = Inspector(Supervisor())
    assert root.handlers == before
    inspector.close()


async def test_without_any_logging_warnings_are_printed_as_before(app, client, capsys, monkeypatch):
    """A handler of ours does not silence Python's last resort."""
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])

    @app.route("/r")
    async def register(ctx):
        logging.getLogger("shop").warning("look here")
        logging.getLogger("shop").info("not here")

    await client.get("/r")
    assert capsys.readouterr().err == "look here\n"


@pytest.mark.parametrize("text", [None, "x" * 3_000_000])
async def test_hostile_errors_are_recorded_within_bounds(app, client, text):
    """A09, G18: An exception that cannot be shown is known by its type; a long one is cut."""

    class Hostile(Exception):
        def __str__(self):
            if text is None:
                raise SystemExit
            return text

    async def work():
        raise Hostile

    @app.route("/r")
    async def register(ctx):
        ctx.defer(work)

    await client.get("/r")
    await app.settle()
    error = the_task(await the_request(client))["error"]
    assert "Hostile" in error
    assert len(error) < 2500


async def test_groups_and_causes(app, client):
    """A08: The leaves of a group and the cause of an error are in the traceback."""

    async def work():
        try:
            await fail("first")
        except ValueError as error:
            raise ExceptionGroup("several", [KeyError("leaf"), OSError("other")]) from error

    @app.route("/r")
    async def register(ctx):
        ctx.defer(work)

    await client.get("/r")
    await app.settle()
    trace = the_task(await the_request(client))["attempts"][0]["traceback"]
    for part in ("ValueError: first", "direct cause", "several", "KeyError: 'leaf'", "OSError: other"):
        assert part in trace


async def test_an_inspector_made_late_sees_what_is_there(app):
    """Tasks that were running before are shown from their registration on."""
    supervisor = Supervisor()
    async with supervisor:
        with supervisor.context("before") as ctx:
            task = ctx.defer(asyncio.Event().wait)
        await asyncio.sleep(0)
        late = App(supervisor)
        async with late.client() as client:
            (request,) = (await ask(client, "requests"))["requests"]
        assert (request["label"], request["rows"][0]["state"]) == ("before", "running")
        task.cancel()
        await app.settle()
    late.inspector.close()


async def test_the_throughput_of_the_last_minute(app, client):
    """What happened is counted in the second in which it did."""
    counts = app.recorder.counts
    launcher = app.supervisor._launcher
    start = int(launcher.now())
    clock = [start + 0.5]
    launcher.now = lambda: clock[0]

    @app.route("/r")
    async def register(ctx):
        ctx.defer(nothing)
        ctx.defer(fail)

    for second in (0, 1, 1, 5):
        clock[0] = start + second + 0.5
        await client.get("/r")
        await app.settle()
    clock[0] = start + 10
    assert counts.latest(10) == [(1, 1, 1), (2, 2, 2), (0, 0, 0), (0, 0, 0), (0, 0, 0), (1, 1, 1), *[(0, 0, 0)] * 4]
