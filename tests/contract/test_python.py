"""VP: what is particular to Python."""

import asyncio
import contextvars
import functools
import gc
import threading

import pytest

from deferred import Retry, Supervisor, TaskFailed, current_task, defer, wait_until
from deferred.integrations.asgi import DeferredMiddleware
from tests.integrations.asgi_client import Client, idle, turns
from tests.integrations.raw_app import answer
from tests.integrations.script import late

variable = contextvars.ContextVar("variable", default="unset")


async def test_an_awaitable_runs_with_the_variables_of_its_registration(supervisor):
    """VP-01: it sees the values of that moment, and what it sets stays its own."""
    seen = []

    async def look():
        seen.append(variable.get())
        variable.set("changed")

    with supervisor.context() as ctx:
        variable.set("registered")
        ctx.wait_until(look())
        variable.set("later")
        await ctx.drained()
    assert seen == ["registered"]
    assert variable.get() == "later"


async def test_without_a_context_a_coroutine_is_closed(recwarn):
    """VP-02: under the policy ignore it is a no-op, and Python never warns of a coroutine never awaited."""

    async def work():
        raise AssertionError

    supervisor = Supervisor(out_of_scope="ignore")
    coroutine = work()
    handle = wait_until(coroutine)
    assert handle.done()
    assert coroutine.cr_frame is None
    del coroutine, handle
    gc.collect()
    assert list(recwarn) == []
    assert supervisor.stats().pending == 0


def sync_function():
    """Be a plain function."""


async def async_function():
    """Be a coroutine function."""


@pytest.mark.parametrize("function", [sync_function, async_function, functools.partial(async_function)])
async def test_an_uncalled_function_is_refused_with_a_hint(supervisor, function):
    """VP-04: the message shows both mends, calling it and `defer`."""
    with (
        supervisor.context() as ctx,
        pytest.raises(TypeError, match=r"wait_until\(\w+\(\.\.\.\)\).*defer\(\w+, \.\.\.\)"),
    ):
        ctx.wait_until(function)


async def test_a_coroutine_object_is_refused_by_defer(supervisor, recwarn):
    """VP-04: the other way round: `defer` wants the function, and closes the coroutine."""
    coroutine = async_function()
    with supervisor.context() as ctx, pytest.raises(TypeError, match=r"defer\(async_function, \.\.\.\)"):
        ctx.defer(coroutine)
    assert coroutine.cr_frame is None
    del coroutine
    gc.collect()
    assert list(recwarn) == []


async def test_work_in_a_thread_is_accepted_and_completed(supervisor):
    """VP-05: `asyncio.to_thread(...)` is an awaitable like any other."""
    threads = []
    with supervisor.context() as ctx:
        ctx.wait_until(asyncio.to_thread(lambda: threads.append(threading.current_thread())))
    assert (await ctx.drained()).finished == 1
    assert threads != [threading.main_thread()]
    assert len(threads) == 1


async def test_work_in_a_thread_reads_its_own_name_and_counter(supervisor):
    """RT-05: `current_task` gives both in a thread as well, in every attempt."""
    seen = []

    def look():
        seen.append((current_task().name, current_task().attempts))
        if len(seen) < 2:
            raise ValueError

    with supervisor.context() as ctx:
        ctx.with_options(name="mail", retry=Retry(on=ValueError, wait_initial=0)).defer(look)
    await ctx.drained()
    assert seen == [("mail", 1), ("mail", 2)]


async def test_overlapping_requests_each_complete_their_own(supervisor, gate):
    """VP-07: four requests at a time, each with work of its own."""
    done = []

    async def work(number):
        await turns(number)
        done.append(number)

    async def app(scope, receive, send):
        number = int(scope["path"][1:])
        defer(work, number)
        await gate.wait()
        await answer(send, 200, str(number).encode())

    client = Client(DeferredMiddleware(app, supervisor))
    exchanges = [client.open("GET", f"/{number}").start() for number in range(4)]
    await turns(10)
    assert done == []
    gate.set()
    assert [(await exchange.done()).body for exchange in exchanges] == [b"0", b"1", b"2", b"3"]
    await idle(supervisor)
    assert sorted(done) == [0, 1, 2, 3]


async def test_background_tasks_of_one_request_keep_their_order(supervisor, script):
    """VP-08: three tasks start in the order in which they were registered."""
    with supervisor.context() as ctx:
        for name in ("one", "two", "three"):
            ctx.defer(script.work, name)
    await ctx.drained()
    assert script.noted == ["one", "two", "three"]


@pytest.mark.parametrize("error", [RuntimeError, SystemExit, KeyboardInterrupt, GeneratorExit, BaseException])
@pytest.mark.parametrize("form", ["defer", "sync", "wait_until"])
async def test_a_crashing_task_takes_nothing_down(watched, told, error, form, caplog):
    """VP-10, VP-13: whatever it raises is logged and contained, and the next request is served."""

    async def crash():
        raise error("crash")

    def crash_in_thread():
        raise error("crash")

    async def app(scope, receive, send):
        if scope["path"] == "/crash":
            {
                "defer": lambda: defer(crash),
                "sync": lambda: defer(crash_in_thread),
                "wait_until": lambda: wait_until(crash()),
            }[form]()
        await answer(send, 200, b"served")

    client = Client(DeferredMiddleware(app, watched))
    assert (await client.get("/crash")).body == b"served"
    await watched.drain()
    (event,) = told.of(TaskFailed)
    assert type(event.error) is error
    assert [record.exc_info[1] for record in caplog.records if record.exc_info] == [event.error]
    assert (await client.get("/next")).body == b"served"


async def test_awaitables_start_at_registration(supervisor, script):
    """VP-11: not at the close, nor at the drain."""
    with supervisor.context() as ctx:
        ctx.wait_until(script.work())
        await turns(2)
        assert script.noted == ["work"]


@pytest.mark.parametrize("fails", [False, True])
async def test_work_runs_whether_the_handler_returned_or_failed_and_the_shutdown_waits(fails):
    """VP-14: the lifespan's shutdown is acknowledged after the work, of a failed handler too."""
    supervisor = Supervisor()
    done = []
    work = late(supervisor, lambda: done.append(list(client.lifespan.answers)))

    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            raise NotImplementedError
        defer(work)
        if fails:
            raise ValueError
        await answer(send, 200, b"")

    client = Client(DeferredMiddleware(app, supervisor))
    async with client:
        assert (await client.get("/")).status == (500 if fails else 200)
    assert done == [["startup.complete"]]
    assert client.lifespan.answers == ["startup.complete", "shutdown.complete"]
