"""The promises about a framework's background tasks, taken from our module instead of its own."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable
from typing import Any

import pytest

from deferred import DrainFinished, Retry, Supervisor, TaskStarted, current_context, current_task
from deferred.integrations import _background
from tests.integrations.asgi_client import Client, idle, turns
from tests.integrations.script import BoomError

Calls = list[tuple[Callable[..., Any], tuple[Any, ...]]]


class BackgroundPromises:
    """Asked of every face of a framework's background tasks. Lives as long as a test."""

    @staticmethod
    def app(supervisor: Supervisor | None, calls: Calls) -> Any:
        """Build an app whose ``GET /`` is answered ``now`` with these calls as its background tasks.

        Without our middleware when `supervisor` is None.
        """
        raise NotImplementedError

    @pytest.fixture(autouse=True)
    def unwarned(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let the warning that is said once in a process be said in this test."""
        monkeypatch.setattr(_background, "_warned", False)

    async def test_they_run_one_after_the_other_when_the_response_is_out(self, script):
        """Tasks of one response run in order, each when the one before has ended, after the app call."""
        supervisor = Supervisor()
        go_on = asyncio.Event()

        async def slow() -> None:
            script.note(f"slow, of {current_context().label}")
            await go_on.wait()
            script.note("slow has ended")

        async with Client(self.app(supervisor, [(slow, ()), (script.work, ("next",))])) as client:
            exchange = await client.get("/")
            assert (exchange.status, exchange.body, exchange.error) == (200, b"now", None)
            await turns(20)
            assert script.noted == ["slow, of GET /"]
            assert supervisor.stats().pending == 1, "what is to come is accepted already"
            go_on.set()
            await idle(supervisor)
        assert script.noted == ["slow, of GET /", "slow has ended", "next"]
        assert script.turn_of("slow, of GET /") > exchange.last

    async def test_one_failure_stops_no_other(self, script):
        """A task that raises is told once, with its own error, and those behind it run."""
        error, told = BoomError(), []

        async def fails() -> None:
            raise error

        supervisor = Supervisor(on_error=told.append)
        async with Client(self.app(supervisor, [(fails, ()), (script.work, ())])) as client:
            exchange = await client.get("/")
            await idle(supervisor)
        assert (exchange.status, exchange.error) == (200, None)
        assert [event.error for event in told] == [error]
        assert script.noted == ["work"]

    async def test_they_are_named_after_their_functions_and_where_they_were_made(self, script):
        """Hooks see the function and the line that made the task, not ours."""
        started: list[TaskStarted] = []
        supervisor = Supervisor(hooks=[lambda event: isinstance(event, TaskStarted) and started.append(event)])
        async with Client(self.app(supervisor, [(script.work, ())])) as client:
            await client.get("/")
            await idle(supervisor)
        assert started[0].task.name == "Script.work"
        assert "test_" in started[0].task.site

    async def test_they_are_retried_as_the_supervisor_says(self, script):
        """The supervisor's default policy holds for them, and the next waits for the last attempt."""

        async def fails_once() -> None:
            script.note(f"attempt {current_task().attempts}")
            if current_task().attempts == 1:
                raise BoomError

        supervisor = Supervisor(retry=Retry(on=BoomError, wait_initial=0, wait_max=0))
        async with Client(self.app(supervisor, [(fails_once, ()), (script.work, ())])) as client:
            await client.get("/")
            await idle(supervisor)
        assert script.noted == ["attempt 1", "attempt 2", "work"]

    async def test_the_shutdown_waits_for_them(self, script):
        """What a response has left is drained, in order, those that have not started included."""
        supervisor = Supervisor()

        async def slow() -> None:
            await turns(10)
            script.note("slow")

        async with Client(self.app(supervisor, [(slow, ()), (script.work, ())])) as client:
            await client.get("/")
            assert script.noted == []
        assert script.noted == ["slow", "work"]

    async def test_a_drain_that_is_late_names_all_of_them(self, script):
        """At the deadline the running one is cancelled, the others never start, and all are in the report."""
        reports: list[Any] = []
        supervisor = Supervisor(
            drain_timeout=0, hooks=[lambda event: isinstance(event, DrainFinished) and reports.append(event.report)]
        )

        async def hangs() -> None:
            await asyncio.get_running_loop().create_future()

        async with Client(self.app(supervisor, [(hangs, ()), (script.work, ())])) as client:
            await client.get("/")
            await turns(5)
        assert sorted(task.name.rpartition(".")[2] for task in reports[0].cancelled) == ["hangs", "work"]
        assert script.noted == []

    @pytest.mark.parametrize("options", [{"max_running": 1}, {"max_per_context": 1}, {"max_pending": 1}])
    async def test_a_limit_makes_them_wait_and_loses_none(self, script, options):
        """Under any limit all of them run: there is nobody left to be told of a rejection."""
        supervisor = Supervisor(**options)
        calls: Calls = [(script.work, (str(number),)) for number in range(4)]
        async with Client(self.app(supervisor, calls)) as client:
            exchanges = [client.open("GET", "/").start() for _ in range(2)]
            for exchange in exchanges:
                assert (await exchange.done()).error is None
            await idle(supervisor)
        assert sorted(script.noted) == sorted("0123" * 2)

    @pytest.mark.parametrize("options", [{"overflow": "discard"}])
    async def test_the_policy_discard_discards(self, script, options):
        """Who asked for work to be discarded beyond a limit gets that, and the rest still runs in order."""
        supervisor = Supervisor(max_per_context=2, **options)
        calls: Calls = [(script.work, (str(number),)) for number in range(4)]
        async with Client(self.app(supervisor, calls)) as client:
            await client.get("/")
            await idle(supervisor)
        assert script.noted == ["0", "1"]
        assert supervisor.stats().discarded == 2

    async def test_a_plain_function_runs_in_a_thread(self, script):
        """A synchronous function runs in a thread of the supervisor's."""
        supervisor = Supervisor()
        threads: list[int] = []
        async with Client(
            self.app(supervisor, [(lambda: threads.append(threading.get_ident()), ()), (script.work, ())])
        ) as client:
            await client.get("/")
        assert threads
        assert threads != [threading.get_ident()]
        assert script.noted == ["work"]

    async def test_without_the_middleware_they_run_as_the_frameworks_own(self, script, caplog):
        """Where nobody has added the middleware they run in the app call, and one warning says so."""
        gc.collect()  # a supervisor of another test may still be there to ask
        caplog.clear()  # and have something to say
        client = Client(self.app(None, [(script.work, ("first",)), (script.work, ("second",))]))
        for _ in range(2):
            assert (await client.get("/")).body == b"now"
        assert script.noted == ["first", "second"] * 2
        warnings = [record.message for record in caplog.records if record.name == "deferred"]
        assert len(warnings) == 1
        assert "DeferredMiddleware" in warnings[0]

    async def test_without_the_middleware_a_supervisor_may_take_them(self, script, caplog):
        """An open supervisor that runs work out of scope runs them as its own."""
        async with Supervisor(out_of_scope="run") as supervisor:
            await Client(self.app(None, [(script.work, ())])).get("/")
            await idle(supervisor)
            assert supervisor.stats().succeeded == 1
        assert script.noted == ["work"]
        assert [record for record in caplog.records if record.levelname == "WARNING"] == []

    async def test_after_the_shutdown_they_run_as_the_frameworks_own(self, script, caplog):
        """A request that comes after the drain loses nothing either."""
        client = Client(self.app(Supervisor(), [(script.work, ())]))
        async with client:
            pass
        await client.get("/")
        assert script.noted == ["work"]
        assert "drained" in caplog.text

    async def test_what_cannot_be_run_is_refused_at_the_call(self):
        """A coroutine instead of its function is a TypeError where the task is made."""

        async def work() -> None:
            raise AssertionError

        client = Client(self.app(Supervisor(), [(work(), ())]))
        async with client:
            exchange = await client.get("/")
        assert exchange.status == 500
