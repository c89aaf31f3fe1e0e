"""Small parts that scenarios reach by chance alone: arguments, settings, marks, threads, ids."""

import asyncio
import functools
import gc
import inspect
import logging
import threading
import weakref

import pytest

from deferred import (
    Retry,
    Supervisor,
    _current,
    _launch,
    _offload,
    _process,
    _supervisor,
    _task,
    concurrent,
    current_context,
    deferred,
    sequential,
)
from deferred._arguments import _MANY, ArgumentCheck
from deferred._offload import DaemonThreads
from deferred._settings import check_choice, check_drain_timeout, check_scope
from deferred._unit import UnitOfWork
from deferred.exceptions import NoCurrentContextError


def made_in(module, name, base=object):
    """Return a class of this name that says it is of that module."""
    return type(name, (base,), {"__module__": module})


class TestArguments:
    @pytest.mark.parametrize(
        ("module", "name", "mend"),
        [
            ("starlette.requests", "Request", "its body is consumed"),
            ("litestar.connection.websocket", "WebSocket", "its body is consumed"),
            ("django.http.request", "HttpRequest", "its body is consumed"),
            ("sqlalchemy.ext.asyncio.session", "AsyncSession", "goes back to its pool"),
            ("databases.core", "Connection", "goes back to its pool"),
        ],
    )
    def test_what_does_not_outlive_the_request(self, module, name, mend):
        """A request or a connection among the arguments is warned of, once, also of a subclass's instance."""
        kind = made_in(module, name)
        check, told = ArgumentCheck(), []
        check((1, kind()), {}, told.append)
        check((kind(),), {"again": kind()}, told.append)
        assert len(told) == 1
        assert mend in told[0]
        check((), {"connection": made_in("app", "Mine", kind)()}, told.append)
        assert len(told) == 2

    @pytest.mark.parametrize(("module", "name"), [("app.requests", "Request"), ("starlette.datastructures", "URL")])
    def test_what_may_be_kept(self, module, name):
        """A class of the same name elsewhere, and another one of a framework, are nobody's loan."""
        told = []
        ArgumentCheck()((made_in(module, name)(),), {}, told.append)
        assert told == []

    def test_types_made_at_run_time(self):
        """Types that a program makes without end do not pile up."""
        check = ArgumentCheck()
        for number in range(3 * _MANY):
            check((made_in("app", f"Kind{number}")(),), {}, pytest.fail)
        assert len(check._known) <= _MANY + 1
        gc.collect()


class TestSettings:
    def test_the_defaults(self):
        """The settings that nobody gives are those that the documentation names."""
        policy, launcher = Retry(on=OSError), Supervisor()._launcher
        assert (policy.attempts, policy.wait_initial, policy.wait_max) == (3, 0.1, 5.0)
        assert (policy.wait_exp_base, policy.wait_jitter, policy.timeout) == (2.0, 1.0, 45.0)
        assert (launcher.slots.max_running, launcher.max_pending, launcher.max_per_context) == (1000, 10_000, 1000)
        assert (launcher.overflow, launcher.out_of_scope, launcher.grace) == ("reject", "raise", 2.0)
        assert (launcher.hooks.limit, launcher.stall, launcher.options.retry) == (5.0, None, None)

    @pytest.mark.parametrize(("text", "expected"), [(None, 20.0), ("3.5", 3.5), ("0", 0.0)])
    def test_the_drain_timeout_of_the_environment(self, text, expected, monkeypatch):
        """The environment says how long a drain waits where the program does not."""
        monkeypatch.delenv("DEFERRED_DRAIN_TIMEOUT", raising=False)
        if text is not None:
            monkeypatch.setenv("DEFERRED_DRAIN_TIMEOUT", text)
        assert check_drain_timeout(None) == expected
        assert check_drain_timeout(7) == 7.0

    @pytest.mark.parametrize("text", ["", "soon", "-1", "nan", "inf", "5 s"])
    def test_an_environment_that_makes_no_sense(self, text, monkeypatch):
        """A text that is no number of seconds is refused, by the variable's name."""
        monkeypatch.setenv("DEFERRED_DRAIN_TIMEOUT", text)
        with pytest.raises(ValueError, match="DEFERRED_DRAIN_TIMEOUT must be a number of seconds") as caught:
            check_drain_timeout(None)
        assert repr(text) in str(caught.value)

    def test_a_choice_that_is_none(self):
        """An unknown word is refused with the known ones."""
        with pytest.raises(ValueError, match=r"overflow must be one of 'reject', 'wait', 'discard', not 'explode'"):
            check_choice("explode", _supervisor.Overflow, "overflow")

    def test_scopes_with_and_without_the_task(self):
        """A task scope is called with the task if it takes one, without if not, and with if nobody can say."""

        def takes(task):
            return task

        def bare():
            return "bare"

        assert check_scope(takes) is takes
        assert check_scope(takes)("the task") == "the task"
        assert check_scope(bare)("the task") == "bare"
        with pytest.raises(ValueError, match="no signature"):
            inspect.signature(type)
        assert check_scope(type) is type

    def test_scopes_with_parameters_of_their_own(self):
        """S14: what has a default is the factory's own, a pool's timeout say, and never the task."""

        class Pool:
            def connection(self, timeout=None):
                return timeout

            def acquire(self, *, timeout=None):
                return timeout

            def session(self, **options):
                return options

            def of(self, task=None, timeout=None):
                return task

            def anything(self, *args, **kwargs):
                return args

        pool = Pool()
        assert check_scope(pool.connection)("the task") is None
        assert check_scope(pool.acquire)("the task") is None
        assert check_scope(functools.partial(pool.connection, timeout=5))("the task") == 5
        assert check_scope(pool.session)("the task") == {}
        assert check_scope(pool.of)("the task") == "the task"
        assert check_scope(pool.anything)("the task") == ("the task",)

    @pytest.mark.parametrize("factory", [lambda first, second: None, lambda *, dsn: None])
    def test_scopes_that_ask_for_more(self, factory):
        """S14: a factory that asks for more than the task is refused where it is given."""
        with pytest.raises(
            TypeError, match=r"task_scope must be a function of the task, or of nothing, .*'(second|dsn)'"
        ):
            Supervisor(task_scope=factory)


class TestMarks:
    def test_marks_outside_any_unit_of_work(self):
        """A marked function called outside any unit of work is just called."""

        @concurrent
        def handler(number):
            return number + 1

        assert handler(1) == 2

    async def test_marks_of_synchronous_handlers(self):
        """A marked synchronous handler says how its steps run, and a nested one only as long as it runs."""
        seen = []

        @sequential
        def inner():
            seen.append(current_context().execution)

        @concurrent
        def outer():
            seen.append(current_context().execution)
            inner()
            seen.append(current_context().execution)

        async with Supervisor() as supervisor:
            with supervisor.context() as ctx:
                assert ctx.execution.value == "deferred"
                outer()
                assert ctx.execution.value == "concurrent"
        assert [execution.value for execution in seen] == ["concurrent", "sequential", "concurrent"]

    async def test_a_marked_handler_that_raises(self):
        """The mark of a nested handler is taken back when that raises, whether it is async or not."""

        @sequential
        def fails():
            raise LookupError

        @sequential
        async def fails_later():
            raise LookupError

        @deferred
        async def outer():
            with pytest.raises(LookupError):
                fails()
            with pytest.raises(LookupError):
                await fails_later()
            return current_context().execution.value

        async with Supervisor() as supervisor:
            with supervisor.context():
                assert await outer() == "deferred"

    @pytest.mark.parametrize("thing", [7, object(), asyncio.Event])
    def test_what_cannot_be_marked(self, thing):
        """What is no function is refused, with the place where the mark belongs."""
        with pytest.raises(TypeError, match="below the framework's decorator"):
            sequential(thing)


class TestThreads:
    def test_work_after_the_shutdown(self):
        """Threads that were shut down take nothing more."""
        threads = DaemonThreads(1)
        assert threads.submit(lambda: 1).result(60) == 1
        threads.shutdown()
        with pytest.raises(RuntimeError, match="these threads were shut down"):
            threads.submit(lambda: 1)

    def test_no_thread_to_be_had(self, monkeypatch):
        """Without a single thread the call fails; with one, that one does the work of all."""
        threads = DaemonThreads(4)

        def refused(_thread):
            raise RuntimeError("can't start new thread")

        with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="can't start"):
            patch.setattr(threading.Thread, "start", refused)
            threads.submit(lambda: 1)
        gate = threading.Event()
        first = threads.submit(gate.wait, 60)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refused)
            second = threads.submit(lambda: 2)
        gate.set()
        assert (first.result(60), second.result(60), threads._threads) == (True, 2, 1)
        threads.shutdown()

    def test_as_many_threads_as_allowed(self):
        """No more threads are started than allowed; the rest waits."""
        threads = DaemonThreads(2)
        gate = threading.Event()
        futures = [threads.submit(gate.wait, 60) for _ in range(5)]
        assert threads._threads == 2
        gate.set()
        assert [future.result(60) for future in futures] == [True] * 5
        threads.shutdown()

    def test_a_call_that_was_cancelled(self):
        """A call that was cancelled while it waited is never made."""
        threads = DaemonThreads(1)
        gate, made = threading.Event(), []
        first = threads.submit(gate.wait, 60)
        second = threads.submit(made.append, 1)
        assert second.cancel()
        gate.set()
        assert first.result(60)
        assert threads.submit(lambda: 3).result(60) == 3
        assert made == []
        threads.shutdown()

    def test_the_default_number_of_threads(self, monkeypatch):
        """The number of threads follows the processors, as the standard library's does."""
        for processors, expected in ((None, 5), (2, 6), (64, 32)):
            monkeypatch.setattr(_offload.os, "cpu_count", lambda known=processors: known)
            assert DaemonThreads()._max == expected


class TestIds:
    def test_an_id_is_given_once(self):
        """Whoever asks second, even at the same time, gets the id that was given first."""

        class Thing:
            _id = None

        thing = Thing()
        assert _task.new_id(thing) == _task.new_id(thing)
        assert _task.new_id(Thing()) != thing._id

    def test_a_child_process_has_ids_of_its_own(self, monkeypatch):
        """A45: after a fork the child's ids begin differently."""
        before = _task._prefix
        monkeypatch.setattr(_task, "_prefix", before)
        _task._reseed()
        assert _task._prefix != before


class TestLeftovers:
    async def test_the_last_words_of_a_process(self, monkeypatch, caplog):
        """A44: what is left when the interpreter ends is named in one line, up to a bound, and told as abandoned."""
        told = []
        supervisor, idle = Supervisor(hooks=[told.append]), Supervisor()
        monkeypatch.setattr(_process, "alive", weakref.WeakSet([supervisor, idle]))
        async with supervisor:
            with supervisor.context() as ctx:
                handles = [ctx.defer(asyncio.sleep, 0) for _ in range(_process.SHOWN + 3)]
                _process._report_leftovers()
            (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
            assert f"the process ends with {len(handles)} unfinished task(s): 'sleep' (deferred at" in record.message
            assert record.message.count("'sleep'") == _process.SHOWN
            assert record.message.endswith(" and 3 more")
        assert {handle.state.value for handle in handles} == {"abandoned"}
        assert sum(type(event).__name__ == "TaskAbandoned" for event in told) == len(handles)


class TestHosts:
    @pytest.fixture(autouse=True)
    def known(self, monkeypatch):
        """Know no supervisor but those of the test."""
        found = []
        for module in (_current, _launch):
            monkeypatch.setattr(module, "hosts", found)
        return found

    def test_supervisors_that_are_gone(self, known):
        """A supervisor that nobody holds any more decides nothing out of scope."""
        supervisor = Supervisor(out_of_scope="run")
        assert len(known) == 1
        del supervisor
        gc.collect()
        with pytest.raises(NoCurrentContextError):
            _current._host_outside()
        assert known == []

    def test_two_threads_that_find_one_gone(self, known):
        """S6, S8: of two threads that look at the same time both get an answer, whoever tidies up."""

        def gone():
            known.remove(gone)  # the other one was faster

        known.append(gone)
        with pytest.raises(NoCurrentContextError):
            _current._host_outside()

    async def test_the_one_that_is_open_decides(self, known):
        """Of several supervisors the one that is open on this loop decides, in whatever order they were made."""
        first = Supervisor(out_of_scope="run")
        async with first:
            later = Supervisor(out_of_scope="ignore")
            assert [reference() for reference in known] == [first._launcher, later._launcher]
            assert _current._host_outside() is first._launcher

    async def test_one_whose_loop_is_gone_does_not_decide(self, known):
        """S8: a supervisor that was left open on a loop that has ended decides nothing, where another one is open."""

        async def left_open():
            ended = Supervisor(out_of_scope="run")
            ended.open()
            return ended

        async with Supervisor(out_of_scope="run") as supervisor:
            ended = await asyncio.to_thread(lambda: asyncio.run(left_open()))
            assert [reference() for reference in known] == [supervisor._launcher, ended._launcher]
            assert _current._host_outside() is supervisor._launcher
            assert await asyncio.to_thread(_current._host_outside) is supervisor._launcher

    async def test_the_context_of_work_that_belongs_nowhere(self, known):
        """S8: whoever acts on an out-of-scope policy gets the context of such work under that policy alone."""
        async with Supervisor(out_of_scope="run") as supervisor:
            assert _current.context_outside("run") is supervisor._launcher.ambient
            with pytest.raises(NoCurrentContextError, match="out_of_scope is 'run'"):
                _current.context_outside("ignore")


async def test_a_context_has_the_earliest_deadline():
    """The deadline of a context is the earliest of all that drain it; None while nobody does."""
    async with Supervisor() as supervisor:
        with supervisor.context() as ctx:
            assert isinstance(ctx, UnitOfWork)
            assert ctx.deadline is None
            assert ctx.with_options(name="view").deadline is None
