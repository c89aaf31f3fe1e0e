"""What the core does where scenarios come by chance alone: races, ends of loops, refusals, small words."""

import asyncio
import gc
import threading
import weakref
from types import SimpleNamespace
from unittest import mock

import pytest

from deferred import (
    Outcome,
    Retry,
    StepFinished,
    Supervisor,
    SupervisorClosedError,
    TaskAbandoned,
    TaskStarted,
    TaskState,
    TaskUnfinishedError,
    _process,
    _run,
    _supervisor,
    current_context,
    fire_and_forget,
)
from deferred._call import claimed, site_of


async def fine(value="fine"):
    """Succeed."""
    return value


async def forever():
    """Wait for what never comes."""
    await asyncio.get_running_loop().create_future()


class TestWords:
    def test_a_site_without_code(self):
        """A task that nobody's code registered has an unknown site."""
        assert site_of(None, 0) == "unknown"

    async def test_what_a_handle_says(self):
        """A handle shows its name, state and attempts and never its arguments, which it hands out when asked."""
        async with Supervisor() as supervisor:
            with supervisor.context() as ctx:
                handle = ctx.defer(fine, "secret")
                assert handle.arguments == (("secret",), {})
                assert handle.function == "fine"
                assert 0 < handle.created <= asyncio.get_running_loop().time()
                assert repr(handle) == f"<TaskHandle 'fine' pending id={handle.id} attempts=0>"
                with pytest.raises(asyncio.InvalidStateError, match="task 'fine' is pending"):
                    handle.result()
            await handle
        assert "succeeded" in repr(handle)
        assert "secret" not in repr(handle)

    @pytest.mark.parametrize("how", ["discarded", "abandoned"])
    async def test_work_that_never_had_a_result(self, how):
        """Work that was discarded or abandoned has no result, and says what became of it and where it was deferred."""
        async with Supervisor() as supervisor:
            with supervisor.context() as ctx:
                handle = ctx.with_options(when="error").defer(fine)
                if how == "abandoned":
                    supervisor._launcher.settle(handle, Outcome.ABANDONED)
            await ctx.drained()
        with pytest.raises(TaskUnfinishedError, match=rf"'fine' \(deferred at .*test_core\.py:\d+\) was {how}"):
            handle.result()

    async def test_a_borrowed_argument(self, caplog):
        """A request among the arguments is warned of with the task's name and site, and the task runs."""
        request = type("Request", (), {"__module__": "starlette.requests"})()
        async with Supervisor() as supervisor:
            with supervisor.context() as ctx:
                handle = ctx.defer(fine, request)
                ctx.defer(fine, request)
            assert await handle is request
        (record,) = [record for record in caplog.records if "was given a starlette Request" in record.message]
        assert handle.site in record.message

    def test_errors_to_retry_are_classes(self):
        """A tuple of errors with anything else in it is refused."""
        with pytest.raises(TypeError, match="on must name exception classes, not 3"):
            Retry(on=(OSError, 3))

    async def test_a_scope_is_entered_once(self):
        """A `with supervisor.context()` that is entered a second time is refused, and left twice no harm."""
        async with Supervisor() as supervisor:
            scope = supervisor.context()
            with scope as ctx:
                handle = ctx.defer(fine)
            with pytest.raises(RuntimeError, match="entered before"):
                scope.__enter__()
            scope.__exit__(None, None, None)
            assert await handle == "fine"


class TestSteps:
    @pytest.mark.looptime
    async def test_a_step_is_timed_for_whoever_watches(self):
        """A step tells its name, its times and its error, from a view as well; unwatched, it is nothing."""
        told = []
        supervisor = Supervisor()
        async with supervisor:
            with supervisor.context() as ctx:
                with ctx.step("unwatched"):
                    pass
                supervisor.add_hook(lambda event: isinstance(event, StepFinished) and told.append(event))
                with ctx.step("insert"):
                    await asyncio.sleep(2)
                with pytest.raises(LookupError), ctx.with_options(name="view").step("select"):
                    raise LookupError
        insert, select = told
        assert (insert.name, select.name, insert.error, type(select.error)) == ("insert", "select", None, LookupError)
        assert insert.at - insert.started == pytest.approx(2)
        assert insert.context is select.context is ctx


class TestRaces:
    async def test_a_waiter_that_is_cancelled_as_the_task_ends(self):
        """A waiter cancelled on the very turn on which its task ends is cancelled, and nothing else happens."""
        async with Supervisor() as supervisor:
            with supervisor.context() as ctx:
                handle = ctx.defer(fine)
                waiting = asyncio.ensure_future(handle)
                await asyncio.sleep(0)
                waiting.cancel()
                assert handle.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        assert handle.state is TaskState.CANCELLED

    async def test_a_waiter_whose_loop_is_gone(self):
        """A wait that was left behind on a closed loop holds nobody up."""
        async with Supervisor() as supervisor:
            with supervisor.context() as ctx:
                handle = ctx.defer(fine)
                kept = []

                async def begin():
                    kept.append(handle.__await__())
                    next(kept[0])

                def elsewhere():
                    loop = asyncio.new_event_loop()
                    loop.run_until_complete(begin())
                    loop.close()

                await asyncio.to_thread(elsewhere)
            assert await handle == "fine"
        kept[0].close()

    async def test_an_end_between_the_question_and_the_wait(self, monkeypatch):
        """A task that ends in another thread just as somebody begins to wait is not waited for."""
        async with Supervisor() as supervisor:
            with supervisor.context() as ctx:
                handle = ctx.defer(fine)
                loop = asyncio.get_running_loop()

                class Racing:
                    def create_future(self):
                        supervisor._launcher.settle(handle, Outcome.ABANDONED)
                        return loop.create_future()

                with monkeypatch.context() as patch, pytest.raises(TaskUnfinishedError):
                    patch.setattr(asyncio, "get_running_loop", Racing)
                    next(handle.__await__())

    async def test_work_of_a_thread_that_ends_before_it_arrives(self):
        """Work that a thread registered and somebody ended before the loop saw it is counted once."""
        async with Supervisor() as supervisor:
            with supervisor.context() as ctx:
                handles = []
                thread = threading.Thread(target=lambda: handles.append(ctx.defer(fine)))
                thread.start()
                thread.join()
                assert ctx.pending == 1
                assert handles[0].cancel()
                assert ctx.pending == 0
            await ctx.drained()
            assert ctx.pending == 0
        assert supervisor.stats().cancelled == 1

    @pytest.mark.parametrize("overflow", ["reject", "discard"])
    async def test_a_thread_that_crosses_the_close(self, overflow, monkeypatch):
        """A thread that registers just as the supervisor closes is told so, whatever became of its work."""
        async with Supervisor(max_pending=1, overflow=overflow) as supervisor:
            launcher = supervisor._launcher
            admit = launcher.admit

            def crossed(task, context):
                accepted = admit(task, context)
                launcher.shut("it was closed just now")
                return accepted

            with supervisor.context() as ctx:
                if overflow == "discard":
                    ctx.defer(fine)
                monkeypatch.setattr(type(launcher), "admit", staticmethod(crossed))
                with pytest.raises(SupervisorClosedError, match="closed just now"):
                    await asyncio.to_thread(ctx.defer, fine)
                launcher.shut(None)
                with pytest.raises(SupervisorClosedError, match="closed just now"):
                    await asyncio.to_thread(ctx.wait_until, fine())
                assert not claimed
                monkeypatch.undo()
                launcher.shut(None)
            report = await ctx.drained()
            assert report.finished == (overflow == "discard")
            assert ctx.pending == 0

    def test_a_timer_that_comes_with_the_cut(self):
        """A backoff that a drain has cut is not ended again by its own timer."""
        loop = asyncio.new_event_loop()
        waiter = loop.create_future()
        waiter.set_result(False)
        _run._wake(waiter)
        assert waiter.result() is False
        loop.close()

    async def test_looking_for_what_does_not_run(self):
        """A task that no asyncio task runs has none to be found."""
        async with Supervisor() as supervisor:
            with supervisor.context() as ctx:
                handle = ctx.defer(fine)
                assert _run.find_runner(handle) is None

    async def test_adopting_what_is_gone(self):
        """A supervisor that is gone is drained by nobody."""
        supervisor, other = Supervisor(), Supervisor()
        launcher = other._launcher
        del other
        gc.collect()
        supervisor._launcher.adopt(launcher)
        assert not supervisor._adopted


class TestEnds:
    async def test_a_loop_that_refuses_a_callback(self, monkeypatch):
        """A registration that the open loop refuses is refused; one that its end overtakes stays unfinished."""
        refusing = SimpleNamespace(call_soon=mock.Mock(side_effect=RecursionError), is_closed=lambda: closed)
        async with Supervisor() as supervisor:
            with supervisor.context() as ctx, monkeypatch.context() as patch:
                patch.setattr(supervisor._launcher, "loop", refusing)
                closed = True
                supervisor._launcher.release(ctx)
                closed = False
                with pytest.raises(RecursionError):
                    supervisor._launcher.release(ctx)

    @pytest.mark.looptime
    async def test_a_backoff_that_is_cut_twice(self):
        """A32: a wait between attempts that two drains cut on one turn ends once."""
        async with Supervisor() as supervisor:
            with supervisor.context() as ctx:
                retry = Retry(on=OSError, wait_initial=5, wait_max=5, wait_jitter=0)
                handle = ctx.with_options(retry=retry).defer(fails)
            await asyncio.sleep(1)
            for _ in range(2):
                assert supervisor._launcher.cancel(handle, Outcome.CANCELLED_BY_DRAIN)
            await ctx.drained()
        assert handle.outcome is Outcome.EXHAUSTED_DEADLINE

    @pytest.mark.looptime
    async def test_a_drain_that_is_cut_cuts_the_mounted_ones(self):
        """S11: cutting the drain of an app cuts those of the apps mounted in it, if there are any."""
        inner = Supervisor()
        async with Supervisor() as outer:
            outer.adopt(inner)
            with outer.context() as ctx, inner.context() as other:
                handles = [ctx.defer(forever), other.defer(forever)]
            assert not outer._cut()
            draining = asyncio.ensure_future(outer.drain(timeout=60))
            await asyncio.sleep(1)
            assert outer._cut()
            await draining
            assert asyncio.get_running_loop().time() < 30
        assert {handle.outcome for handle in handles} == {Outcome.CANCELLED_BY_DRAIN}

    @pytest.mark.parametrize("handler", [len, lambda: None, 7])
    def test_what_cannot_be_wrapped(self, handler):
        """A21: `wrap` takes async functions alone."""
        with pytest.raises(TypeError, match=r"wrap\(\) takes an `async def` function"):
            Supervisor().wrap(handler)

    def test_whoever_waits_for_supervisors(self, monkeypatch):
        """Whoever asked to be told of supervisors is told of each that is made."""
        told = []
        monkeypatch.setattr(_supervisor, "_newcomers", [told.append])
        assert [Supervisor()] == told

    def test_a_loop_that_ends_under_a_task(self):
        """A44: a task whose loop was closed is abandoned when Python lets go of it, by name."""
        told = []

        async def main():
            supervisor = Supervisor(hooks=[lambda event: told.append((type(event), getattr(event, "task", None)))])
            supervisor.open()
            with supervisor.context() as ctx:
                ctx.defer(forever)
                ctx.with_options(timeout=60).defer(forever)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            await asyncio.sleep(0)

        loop = asyncio.new_event_loop()
        loop.run_until_complete(main())
        loop.close()
        assert [kind for kind, _ in told].count(TaskStarted) == 2
        told.clear()
        del loop
        gc.collect()
        assert [(kind, task.name) for kind, task in told if task is not None] == [(TaskAbandoned, "forever")] * 2

    @pytest.mark.looptime
    async def test_an_attempt_that_took_too_long(self):
        """S9: a timeout is told apart from the failures that the work has by itself, its own TimeoutErrors included."""

        async def own():
            raise TimeoutError

        async with Supervisor() as supervisor:
            with supervisor.context() as ctx:
                view = ctx.with_options(timeout=3)
                timed, failed = view.defer(forever), view.defer(own)
            await ctx.drained()
        assert (timed.outcome, failed.outcome) == (Outcome.TIMED_OUT, Outcome.FAILED)
        assert {type(handle.error) for handle in (timed, failed)} == {TimeoutError}

    @pytest.mark.looptime
    async def test_the_total_time_ends_within_an_attempt(self):
        """S9: the time of all attempts together ends an attempt that is under way, as a timeout."""
        async with Supervisor() as supervisor:
            with supervisor.context() as ctx:
                handle = ctx.with_options(retry=Retry(on=OSError, timeout=3)).defer(forever)
            started = asyncio.get_running_loop().time()
            with pytest.raises(TimeoutError):
                await handle
            assert asyncio.get_running_loop().time() - started == pytest.approx(3)
        assert (handle.outcome, handle.attempts) == (Outcome.TIMED_OUT, 1)

    async def test_a_drain_counts_what_it_waits_for(self):
        """S2, S11: fire-and-forget work that ends during a drain is no part of its report."""

        @fire_and_forget
        async def route():
            return await current_context().run(gate.wait)

        gate = asyncio.Event()
        async with Supervisor() as supervisor:
            with supervisor.context() as ctx:
                detached, waited = await route(), ctx.defer(gate.wait)
            await asyncio.sleep(0)
            draining = asyncio.ensure_future(supervisor.drain())
            await asyncio.sleep(0)
            gate.set()
            await detached
            report = await draining
        assert waited.done()
        assert (report.finished, supervisor.stats().succeeded) == (1, 2)

    @pytest.mark.looptime
    async def test_a_drain_that_is_cut(self):
        """A32: a drain cut short ends waits between attempts as exhausted and cancels the rest, at once."""
        async with Supervisor() as supervisor:
            with supervisor.context() as ctx:
                waits = ctx.with_options(retry=Retry(on=OSError, wait_initial=5, wait_max=5, wait_jitter=0)).defer(
                    fails
                )
                runs = ctx.defer(forever)
            draining = asyncio.ensure_future(supervisor.drain(timeout=60))
            await asyncio.sleep(1)
            (drain,) = supervisor._launcher.drains
            drain.cut()
            drain.cut()
            report = await draining
            drain.cut()
            assert asyncio.get_running_loop().time() < 30
        assert (waits.outcome, runs.outcome) == (Outcome.EXHAUSTED_DEADLINE, Outcome.CANCELLED_BY_DRAIN)
        assert [task.id for task in report.cancelled] == [runs.id]

    async def test_a_forked_child(self, monkeypatch):
        """A45: in a forked child nothing of the parent's is counted, and nothing is accepted."""
        supervisor, never_used = Supervisor(), Supervisor()
        monkeypatch.setattr(_process, "alive", weakref.WeakSet([supervisor, never_used]))
        async with supervisor:
            with supervisor.context() as ctx:
                ctx.defer(fine)
                _process._after_fork()
                assert supervisor.stats().pending == supervisor.stats().running == 0
                with pytest.raises(SupervisorClosedError, match="forked"):
                    ctx.defer(fine)


async def fails():
    """Fail with what is retried."""
    raise OSError
