"""The promises about work: whose it is, when it starts, what it survives."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from deferred import (
    DeferredContext,
    Outcome,
    TaskDiscarded,
    current_context,
)
from tests.integrations.adapter import FAILING, MATCHES, OK, Base
from tests.integrations.asgi_client import Client, Exchange, idle, turns
from tests.integrations.script import Script, is_current

PHASES = ("before the body", "mid-handler", "mid-stream", "after the last byte")


class WorkPromises(Base):
    """Asked of every framework."""

    # -- the context ----------------------------------------------------------------------------

    @pytest.mark.parametrize("path", [*OK, *FAILING, "/own"])
    async def test_the_injected_context_is_the_current_one(self, client, script, path):
        """What a handler gets is what `current_context` finds there, and another one in the next request."""
        self.needs(path)
        seen: list[DeferredContext] = []
        script.act = lambda ctx: seen.append(ctx) or seen.append(current_context())
        await client.get(path)
        first, seen[:] = list(seen), []
        await client.get(path)
        assert len({id(ctx) for ctx in first}) == 1
        assert len({id(ctx) for ctx in seen}) == 1
        assert isinstance(first[0], DeferredContext)
        assert first[0] is not seen[0]

    async def test_streams_and_tasks_find_the_context_of_their_request(self, client, script, supervisor):
        """The generator of a stream and a deferred task find the context that their handler was given."""
        seen: list[bool] = []

        async def task(ctx: DeferredContext) -> None:
            seen.append(is_current(ctx))

        script.act = lambda ctx: ctx.defer(task, ctx)
        script.midway = lambda ctx: seen.append(is_current(ctx))
        await client.get("/stream")
        await idle(supervisor)
        assert seen == [True, True]

    # -- when work starts -----------------------------------------------------------------------

    @pytest.mark.parametrize("path", [*OK, *FAILING, "/own"])
    async def test_work_starts_after_the_response_on_a_later_turn(self, client, script, supervisor, path):
        """Deferred work starts on a later turn of the loop than the one that sent the last byte."""
        self.needs(path)
        script.act = lambda ctx: ctx.defer(script.work)
        exchange = await client.get(path)
        await idle(supervisor)
        runs = 2 if path == "/behind" else 1
        assert script.noted.count("work") == runs
        if exchange.sent:
            assert script.turn_of("work") > exchange.last

    async def test_work_of_a_stream_starts_after_its_last_chunk(self, client, script, supervisor):
        """Work deferred before and during a stream waits for the last chunk, however slow the client is."""
        script.act = lambda ctx: ctx.defer(script.work, "before")
        script.midway = lambda ctx: ctx.defer(script.work, "during")
        exchange = client.open("GET", "/stream")
        exchange.hold = lambda message: message.get("body") in {b"two", b""}
        exchange.start()
        await exchange.until(lambda: any(message.get("body") == b"one" for message in exchange.sent))
        await turns(20)
        assert script.noted == []
        exchange.gate.set()
        await exchange.done()
        await idle(supervisor)
        assert script.noted == ["before", "during"]
        assert exchange.body == b"onetwo"
        assert script.turn_of("before") > exchange.last

    async def test_wait_until_starts_now(self, client, script, supervisor):
        """What `wait_until` is given runs while the response is still open."""
        script.act = lambda ctx: ctx.wait_until(script.work("at once"))
        script.go.clear()
        exchange = client.open("GET", "/plain").start()
        await script.arrived.wait()
        await turns(3)
        assert script.noted == ["at once"]
        assert exchange.sent == []
        script.go.set()
        assert (await exchange.done()).status == 200
        await idle(supervisor)

    async def test_a_head_request_runs_its_work(self, client, script, supervisor):
        """Work of a HEAD request runs after its answer, which has no body."""
        script.act = lambda ctx: ctx.defer(script.work)
        exchange = await client.request("HEAD", "/plain")
        await idle(supervisor)
        assert exchange.status == 200
        assert script.noted == ["work"]
        assert script.turn_of("work") > exchange.last

    # -- failures -------------------------------------------------------------------------------

    @pytest.mark.parametrize(
        "error", [ValueError("no"), SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError(), BaseException("odd")]
    )
    async def test_one_failure_harms_nobody(self, client, script, supervisor, events, error):
        """A task that fails, in whatever way, leaves its neighbours, the response and the next request alone."""

        async def fails() -> None:
            raise error

        def act(ctx: DeferredContext) -> None:
            ctx.defer(script.work, "first")
            ctx.defer(fails)
            ctx.wait_until(fails())
            ctx.defer(script.work, "last")

        script.act = act
        exchange = await client.get("/plain")
        await idle(supervisor)
        assert (exchange.status, exchange.body, exchange.error) == (200, b"plain", None)
        assert script.noted == ["first", "last"]
        if not isinstance(error, asyncio.CancelledError):  # cancelling oneself is no failure
            assert [event.error for event in events] == [error, error]
        script.act = lambda ctx: ctx.defer(script.work, "next")
        assert (await client.get("/plain")).status == 200
        await idle(supervisor)
        assert script.noted[-1] == "next"

    @pytest.mark.parametrize("path", [*OK, *FAILING])
    async def test_work_runs_by_its_policy(self, client, script, supervisor, path):
        """Of work for success and for error exactly the one that the final status means runs; always always does."""
        self.needs(path)
        told: list[Any] = []
        supervisor.add_hook(lambda event: isinstance(event, TaskDiscarded) and told.append(event))

        def act(ctx: DeferredContext) -> None:
            for when in ("always", "success", "error"):
                ctx.with_options(when=when).defer(script.work, when)

        script.act = act
        await client.get(path)
        await idle(supervisor)
        times = 2 if path == "/behind" else 1
        assert sorted(script.noted) == sorted(["always", MATCHES[path]] * times)
        assert [event.outcome for event in told] == [Outcome.DISCARDED_BY_WHEN] * times

    @pytest.mark.parametrize("gone", ["drop", "raise"])
    @pytest.mark.parametrize("phase", PHASES)
    async def test_work_survives_a_disconnect(self, script, supervisor, phase, gone):
        """Work registered before, at, or after a disconnect runs once, at each phase and on both kinds of server."""
        kinds: list[str] = []

        def act(ctx: DeferredContext) -> None:
            kinds.append("act")
            for when in ("always", "success", "error"):
                ctx.with_options(when=when).defer(script.work, when)

        script.act = act
        script.midway = lambda ctx: ctx.defer(script.work, "midway")
        async with self.adapter.client(self.adapter.build(script, supervisor), gone=gone) as client:
            await disconnect(client, script, phase)
            await idle(supervisor)
            assert kinds in (["act"], []), "frameworks may refuse a request whose body never came"
            assert script.noted.count("always") == len(kinds)
            assert sum(script.noted.count(when) for when in ("success", "error")) == len(kinds)
            assert script.noted.count("midway") == (phase == "mid-stream")
            script.act = lambda ctx: ctx.defer(script.work, "next")
            await client.get("/plain")
            await idle(supervisor)
            assert script.noted[-1] == "next"

    async def test_work_starts_when_the_client_is_known_to_be_gone(self, client, script, supervisor):
        """Deferred work does not wait for a handler that goes on after its client has left, where that is seen."""
        self.needs("/listens")
        script.act = lambda ctx: ctx.defer(script.work)
        script.go.clear()
        exchange = client.open("GET", "/listens").start()
        await script.arrived.wait()
        await turns(5)
        assert script.noted == []
        exchange.leave()
        await exchange.until(lambda: True)
        await idle(supervisor)
        assert script.noted == ["work"]
        assert exchange.returned is None
        script.go.set()
        await exchange.done()

    # -- websockets -----------------------------------------------------------------------------

    async def test_a_websocket_has_one_context_for_all_its_messages(self, client, script, supervisor):
        """A websocket's work starts after its close, not after its messages."""
        self.needs("/socket")
        script.act = lambda ctx: ctx.defer(script.work)
        exchange = client.websocket("/socket", "a", "b").start()
        await exchange.until(lambda: sum(m["type"] == "websocket.send" for m in exchange.sent) == 2)
        await turns(5)
        assert script.noted == []
        exchange.push({"type": "websocket.receive", "text": "bye", "bytes": None})
        await exchange.done()
        await idle(supervisor)
        assert script.noted == ["work"]
        assert [m.get("text") for m in exchange.sent if m["type"] == "websocket.send"] == ["a", "b"]
        assert script.turn_of("work") > exchange.last

    @pytest.mark.parametrize(
        ("how", "runs"), [("bye", "success"), ("leave", "success"), ("boom", "error"), ("refuse", "error")]
    )
    async def test_a_websocket_runs_its_work_by_policy(self, client, script, supervisor, how, runs):
        """However a websocket ends, work runs; its outcome is an error when it raised or was refused."""
        self.needs("/socket", "/refused" if how == "refuse" else "/socket")

        def act(ctx: DeferredContext) -> None:
            for when in ("always", "success", "error"):
                ctx.with_options(when=when).defer(script.work, when)

        script.act = act
        exchange = client.websocket("/refused" if how == "refuse" else "/socket", *({how} & {"bye", "boom"})).start()
        if how == "leave":
            await script.arrived.wait()
            exchange.leave()
        await exchange.done()
        await idle(supervisor)
        assert sorted(script.noted) == sorted(["always", runs])


async def disconnect(client: Client, script: Script, phase: str) -> Exchange:
    """Make a request whose client leaves at this phase; return once the app call is over."""
    if phase == "before the body":
        exchange = client.open("POST", "/body")
        exchange.leave()
        return await exchange.start().done()
    if phase == "after the last byte":
        exchange = client.open("GET", "/plain")
        exchange.on_sent = lambda message: exchange.complete and exchange.leave()
        return await exchange.start().done()
    exchange = client.open("GET", "/stream" if phase == "mid-stream" else "/plain")
    script.go.clear()
    exchange.start()
    await script.arrived.wait()
    exchange.leave()
    await turns(3)
    script.go.set()
    return await exchange.done()
