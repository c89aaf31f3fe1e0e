"""The promises about the app around the work: lifespan, pass-through, limits, execution, leaks."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from deferred import (
    ContextClosedError,
    ContextOpened,
    DeferredContext,
    DrainFinished,
    DrainStarted,
    SupervisorClosedError,
    TaskRejectedError,
    defer,
)
from tests.integrations.adapter import FAILING, OK, Base
from tests.integrations.asgi_client import Exchange, idle, turn, turns, until
from tests.integrations.script import BoomError, is_current, late

EXECUTIONS = ("sequential", "fire-and-forget", "concurrent", "deferred", "none")


class AppPromises(Base):
    """Asked of every framework."""

    # -- nesting --------------------------------------------------------------------------------

    async def test_mounted_twice_is_one_context_and_one_drain(self, script, supervisor):
        """The integration around itself gives one context, runs work once and drains once."""
        told: list[Any] = []
        supervisor.add_hook(lambda event: told.append(type(event)))
        app = self.adapter.wrap_again(self.adapter.build(script, supervisor), supervisor)
        script.act = lambda ctx: (script.note(str(is_current(ctx))), ctx.defer(script.work))
        async with self.adapter.client(app) as client:
            assert (await client.get("/plain")).status == 200
            await idle(supervisor)
        assert script.noted == ["True", "work"]
        assert told.count(ContextOpened) == 1
        assert told.count(DrainFinished) == 1

    # -- lifespan -------------------------------------------------------------------------------

    async def test_without_a_lifespan_it_works_and_warns_once(self, script, supervisor, caplog):
        """Where the server sends no lifespan, work runs all the same, and one warning says what that risks."""
        self.needs("no lifespan")
        client = self.adapter.client(self.adapter.build(script, supervisor))
        script.act = lambda ctx: ctx.defer(script.work)
        for _ in range(3):
            assert (await client.get("/plain")).status == 200
        await idle(supervisor)
        assert script.noted == ["work"] * 3
        warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
        assert [record.name for record in warnings] == ["deferred"]
        assert "lifespan" in warnings[0].message

    async def test_the_drain_ends_before_the_apps_own_resources_close(self, script, supervisor):
        """Work that is under way at the shutdown ends while the app's own resource is still open."""
        self.needs("lifespan")
        slow = late(supervisor, lambda: script.note(f"open: {script.resource}"))

        script.act = lambda ctx: ctx.defer(slow)
        client = self.adapter.client(self.adapter.build(script, supervisor))
        async with client:
            assert script.resource is True
            await client.get("/plain")
        assert script.noted == ["open: True"]
        assert script.resource is False
        assert client.lifespan.answers == ["startup.complete", "shutdown.complete"]

    async def test_after_the_shutdown_work_is_refused(self, script, supervisor):
        """Once drained, registering raises instead of losing the work."""
        caught: list[BaseException] = []

        def act(ctx: DeferredContext) -> None:
            try:
                ctx.defer(script.work)
            except SupervisorClosedError as error:
                caught.append(error)

        client = self.adapter.client(self.adapter.build(script, supervisor))
        async with client:
            pass
        script.act = act
        await client.get("/plain")
        await turns(5)
        assert len(caught) == 1
        assert script.noted == []

    async def test_a_failing_startup_is_the_apps_own(self, script, supervisor):
        """B28: an app that fails to start says so as it does without us, and no drain follows."""
        self.needs("lifespan")
        told: list[Any] = []
        supervisor.add_hook(lambda event: told.append(type(event)))
        answers = []
        for owner in (None, supervisor):
            script.fail_startup = True
            client = self.adapter.client(self.adapter.build(script, owner))
            await client.lifespan.startup()
            answers.append((client.lifespan.answers, type(client.lifespan.error)))
            await client.lifespan.shutdown()
        assert answers[0] == answers[1]
        assert DrainStarted not in told

    # -- pass-through ---------------------------------------------------------------------------

    @pytest.mark.parametrize("path", [*OK, *FAILING, "/own", "/missing", "/body", "HEAD /plain"])
    async def test_the_messages_are_those_of_the_app(self, script, supervisor, path):
        """What the server is sent is the same with and without the integration, deferred work or not."""
        self.needs(path)
        method, _, path = path.rpartition(" ")
        answers = []
        for owner in (None, supervisor):
            async with self.adapter.client(self.adapter.build(script, owner)) as client:
                exchange = await client.request(method or "GET", path)
                answers.append((exchange.sent, type(exchange.error)))
                if owner is not None:
                    script.act = lambda ctx: ctx.defer(script.work)
                    exchange = await client.request(method or "GET", path)
                    answers.append((exchange.sent, type(exchange.error)))
                    await idle(supervisor)
        assert answers[0] == answers[1] == answers[2]

    async def test_missing_routes_and_methods_are_answered_by_the_framework(self, client, script):
        """404 and 405 stay the framework's own, and cost nobody anything."""
        assert (await client.get("/missing")).status == 404
        if "405" not in self.adapter.lacks:
            assert (await client.request("DELETE", "/plain")).status == 405
        assert (await client.get("/plain")).status == 200

    # -- the framework's own background tasks ---------------------------------------------------

    async def test_the_frameworks_background_task_and_ours_run_both(self, client, script, supervisor):
        """Theirs and ours both run, ours not inside their call, and theirs may defer as well."""
        self.needs("/own")
        script.act = lambda ctx: ctx.defer(script.work, "ours")
        script.after = lambda ctx: ctx.defer(script.work, "from theirs")
        exchange = await client.get("/own")
        await idle(supervisor)
        assert sorted(script.noted) == ["from theirs", "ours", "own"]
        assert script.turn_of("ours") > exchange.last

    async def test_a_failing_background_task_of_the_framework_harms_not_ours(self, client, script, supervisor):
        """When the framework's own background task raises, ours run all the same."""
        self.needs("/own-raises")
        script.act = lambda ctx: ctx.defer(script.work, "ours")
        exchange = await client.get("/own-raises")
        await idle(supervisor)
        assert exchange.status == 200
        assert script.noted == ["ours"]

    # -- limits ---------------------------------------------------------------------------------

    @pytest.mark.parametrize("supervisor", [{"max_per_context": 1}], indirect=True)
    async def test_a_reached_limit_is_answered_with_503(self, client, script, supervisor):
        """A rejection that the handler lets through is a 503 with Retry-After; what was accepted runs."""

        def act(ctx: DeferredContext) -> None:
            ctx.defer(script.work, "accepted")
            ctx.defer(script.work, "rejected")

        script.act = act
        exchange = await client.get("/plain")
        await idle(supervisor)
        assert exchange.status == 503
        assert exchange.headers["retry-after"] == "1"
        assert exchange.error is None
        assert script.noted == ["accepted"]

    @pytest.mark.parametrize("supervisor", [{"max_per_context": 1}], indirect=True)
    async def test_a_handler_may_catch_a_rejection(self, client, script, supervisor):
        """A handler that catches the rejection answers as it likes."""

        def act(ctx: DeferredContext) -> None:
            ctx.defer(script.work, "accepted")
            with pytest.raises(TaskRejectedError):
                ctx.defer(script.work, "rejected")

        script.act = act
        assert (await client.get("/plain")).status == 200
        await idle(supervisor)
        assert script.noted == ["accepted"]

    # -- execution ------------------------------------------------------------------------------

    @pytest.mark.parametrize("execution", EXECUTIONS)
    async def test_a_decorator_decides_when_steps_run(self, client, script, supervisor, execution):
        """Sequential steps run before the answer, those started at once without being awaited, deferred ones after."""
        exchange = client.open("GET", f"/run/{execution}")
        held = asyncio.Event()
        exchange.hold = lambda message: held.set() is None and message["type"] == "http.response.start"
        exchange.start()
        await held.wait()
        await turns(20)
        early = list(script.noted)
        exchange.gate.set()
        await exchange.done()
        await idle(supervisor)
        assert early == ([] if execution in {"deferred", "none"} else ["step"])
        assert script.noted == ["step"]

    async def test_a_decorator_changes_nothing_else(self, client, script, supervisor):
        """The messages of a route are the same under every decorator."""
        sent = [(await client.get(f"/run/{execution}")).sent for execution in EXECUTIONS]
        await idle(supervisor)
        assert all(messages == sent[0] for messages in sent)
        assert script.noted == ["step"] * len(EXECUTIONS)

    @pytest.mark.parametrize("execution", EXECUTIONS)
    async def test_only_a_sequential_step_can_fail_the_answer(self, client, script, supervisor, events, execution):
        """A failing step fails a sequential answer, and under the other decorators only tells the error hooks."""

        async def fails() -> None:
            raise BoomError

        script.step = fails  # type: ignore[method-assign]
        exchange = await client.get(f"/run/{execution}")
        await idle(supervisor)
        assert exchange.status == (500 if execution == "sequential" else 200)
        assert [type(event.error) for event in events] == [BoomError]

    # -- leaks ----------------------------------------------------------------------------------

    async def test_a_leaked_closed_context_raises(self, client, script, supervisor):
        """Code that kept a context beyond its request is refused, also in the midst of another request."""
        kept: list[DeferredContext] = []
        script.act = kept.append
        await client.get("/plain")
        refused: list[BaseException] = []

        def act(ctx: DeferredContext) -> None:
            try:
                kept[0].defer(script.work, "leaked")
            except ContextClosedError as error:
                refused.append(error)

        script.act = act
        assert (await client.get("/plain")).status == 200
        await idle(supervisor)
        assert len(refused) == 1
        assert script.noted == []

    async def test_a_task_left_running_never_reaches_the_next_request(self, client, script, supervisor):
        """An asyncio task that a handler left behind gets `ContextClosedError`, not the context of the next request."""
        caught: list[BaseException] = []
        go_on = asyncio.Event()
        left: list[asyncio.Task[None]] = []

        async def straggler() -> None:
            await go_on.wait()
            try:
                defer(script.work, "straggler")
            except ContextClosedError as error:
                caught.append(error)

        script.act = lambda ctx: left.append(asyncio.get_running_loop().create_task(straggler()))
        await client.get("/plain")
        script.act = lambda ctx: go_on.set()
        await client.get("/plain")
        await left[0]
        await idle(supervisor)
        assert len(caught) == 1
        assert script.noted == []

    async def test_overlapping_requests_keep_their_work_apart(self, client, script, supervisor):
        """Four requests at a time each run their own work after their own answer."""
        script.go.clear()
        seen: list[DeferredContext] = []

        async def work(ctx: DeferredContext) -> None:
            script.note(f"{seen.index(ctx)} {is_current(ctx)}")

        script.act = lambda ctx: (seen.append(ctx), ctx.defer(work, ctx))
        exchanges: list[Exchange] = [client.open("GET", "/plain").start() for _ in range(4)]
        await until(lambda: len(seen) == 4)
        await turns(30)
        assert script.noted == []
        script.go.set()
        for exchange in exchanges:
            await exchange.done()
        await idle(supervisor)
        assert sorted(script.noted) == ["0 True", "1 True", "2 True", "3 True"]
        assert turn() > max(exchange.last for exchange in exchanges)
