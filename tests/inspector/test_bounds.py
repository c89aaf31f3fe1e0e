"""How much is recorded, and what it keeps alive."""

import asyncio
import gc
import logging
import weakref

import pytest

from deferred import Supervisor
from deferred.inspector import Inspector
from deferred.inspector._records import MOST_LINES, MOST_TASKS
from tests.inspector.support import App, ask, opened, the_request
from tests.inspector.test_recorder import fail, nothing


async def test_the_number_of_requests_is_bounded():
    """G18: The oldest request makes room for the newest."""
    app = App(max_requests=10)

    @app.route("/r")
    async def register(ctx):
        ctx.defer(nothing)

    async with opened(app) as client:
        for _ in range(25):
            await client.get("/r")
        await app.settle()
        numbers = [each["number"] for each in (await ask(client, "requests"))["requests"]]
    assert len(numbers) == 10
    assert numbers == sorted(numbers, reverse=True)


async def test_the_bytes_are_bounded():
    """G18: Long errors take the room of many short requests."""
    app = App(max_bytes=100_000)

    @app.route("/r")
    async def register(ctx):
        ctx.defer(fail, "x" * 10_000)

    async with opened(app) as client:
        for _ in range(100):
            await client.get("/r")
        await app.settle()
        assert 5 < len((await ask(client, "requests"))["requests"]) < 40
        assert app.recorder.size <= 100_000


async def test_the_tasks_of_one_request_are_bounded(app, client):
    """Failures outlast successes where a request has more tasks than are kept."""

    @app.route("/r")
    async def register(ctx):
        ctx.defer(fail)
        for _ in range(3 * MOST_TASKS):
            ctx.defer(nothing)

    await client.get("/r")
    await app.settle()
    request = await the_request(client)
    assert len(request["rows"]) <= MOST_TASKS
    assert len(request["rows"]) + request["omitted"] == 3 * MOST_TASKS + 1
    assert request["rows"][0]["state"] == "failed"


async def test_the_lines_of_one_request_are_bounded(app, client):
    """A request that logs without end keeps its latest lines."""

    @app.route("/r")
    async def register(ctx):
        for number in range(2 * MOST_LINES):
            logging.getLogger("shop").warning("line %d", number)

    await client.get("/r")
    lines = (await the_request(client))["lines"]
    assert [lines[0]["text"], lines[-1]["text"], len(lines)] == [
        f"line {MOST_LINES}",
        f"line {2 * MOST_LINES - 1}",
        200,
    ]


@pytest.mark.looptime
async def test_what_is_old_is_forgotten():
    """G24: Requests are forgotten when their time is over."""
    app = App(max_age=60)

    @app.route("/r")
    async def register(ctx):
        ctx.defer(nothing)

    async with opened(app) as client:
        await client.get("/r")
        await asyncio.sleep(59)
        assert len((await ask(client, "requests"))["requests"]) == 1
        await asyncio.sleep(2)
        assert (await ask(client, "requests"))["requests"] == []
    assert app.recorder.size == 0


async def test_nothing_of_the_users_is_kept_alive(app, client, monkeypatch):
    """A10: Arguments, results, errors, functions and contexts are free once a task has ended."""
    monkeypatch.setattr(logging.getLogger("deferred"), "disabled", True)  # pytest keeps what is logged

    class Thing:
        pass

    alive = weakref.WeakSet()

    def thing():
        made = Thing()
        alive.add(made)
        return made

    @app.route("/r")
    async def register(ctx):
        captured = thing()

        async def closure(argument):
            if argument is captured:
                raise AssertionError
            return thing()

        async def broken(argument):
            local = thing()
            raise LookupError(type(local).__name__)

        ctx.defer(closure, thing())
        ctx.defer(broken, thing())
        alive.add(ctx)

    await client.get("/r")
    await app.settle()
    await asyncio.sleep(0)
    gc.collect()
    assert list(alive) == []
    assert len((await the_request(client))["rows"]) == 2


async def test_an_inspector_that_is_not_there_costs_nothing():
    """Without it no hook is asked for anything; closing it takes all of them back."""
    supervisor = Supervisor()
    before = supervisor._launcher.hooks._hooks
    inspector = Inspector(supervisor)
    assert len(supervisor._launcher.hooks._hooks) > len(before)
    inspector.close()
    assert supervisor._launcher.hooks._hooks == before
    assert not supervisor._launcher.hooks.timed


@pytest.mark.parametrize("bound", ["max_requests", "max_bytes", "max_age"])
def test_bounds_are_checked(bound):
    """A bound that is none is refused by name."""
    with pytest.raises(ValueError, match=f"{bound} must be more than 0, not 0"):
        Inspector(Supervisor(), **{bound: 0})
