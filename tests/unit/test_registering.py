"""What is registered, where a small slip would go unseen: whose it is, what it carries, who may refuse it."""

import asyncio
import inspect

import pytest

from deferred import (
    ContextClosedError,
    ContextSettled,
    EventLoopError,
    Execution,
    Limit,
    Supervisor,
    SupervisorClosedError,
    TaskDeferred,
    TaskRejectedError,
    TaskState,
    current_context,
    current_task,
)
from deferred.engines.memory import MemoryEngine


async def fine(value="fine"):
    """Succeed."""
    return value


async def look():
    """Return the context that this runs in."""
    return current_context()


WAYS = {
    "defer": lambda ctx: ctx.defer(look),
    "view": lambda ctx: ctx.with_options(name="look").defer(look),
    "options": lambda ctx: ctx.with_options(timeout=50).defer(look),
    "thread": lambda ctx: ctx.defer(current_context),
    "wait_until": lambda ctx: ctx.wait_until(look()),
}


@pytest.mark.parametrize("way", WAYS)
async def test_work_belongs_to_the_context_it_was_given_to(way):
    """S6: the current context of a task is the one that took it, whichever is current where it was registered."""
    async with Supervisor() as supervisor:
        with supervisor.context("outer") as outer, supervisor.context("inner") as inner:
            handles = {ctx: WAYS[way](ctx) for ctx in (outer, inner)}
        alone = supervisor._launcher.open(None, "alone")
        handles[alone] = WAYS[way](alone)
        alone.end()
        for ctx, handle in handles.items():
            assert await handle is ctx
            assert handle.label == ctx.label


@pytest.mark.parametrize("way", ["defer", "wait_until", "run"])
async def test_the_arguments_of_a_handle(way):
    """A handle has the arguments that were given, and none where an awaitable was."""
    async with Supervisor() as supervisor:
        with supervisor.context() as ctx:
            if way == "wait_until":
                handle, expected = ctx.wait_until(fine(1)), ((), {})
            elif way == "run":
                handle, expected = await ctx.run(fine, value=2), ((), {"value": 2})
            else:
                handle, expected = ctx.defer(fine, 3), ((3,), {})
        await asyncio.wait_for(handle.settled(), 5)
    assert handle.arguments == expected


@pytest.mark.parametrize("way", ["defer", "function", "wait_until", "run", "thread"])
async def test_the_place_of_a_registration(way):
    """A handle knows the line that registered it, whichever way that goes."""

    def here(offset=0):
        return f"{__file__}:{inspect.currentframe().f_back.f_lineno + offset}"

    async with Supervisor() as supervisor:
        with supervisor.context() as ctx:
            if way == "defer":
                handle, place = ctx.defer(fine), here()
            elif way == "function":
                handle, place = ctx.defer(len, ""), here()
            elif way == "wait_until":
                handle, place = ctx.wait_until(fine()), here()
            elif way == "run":
                handle, place = await ctx.run(fine), here()
            else:
                handle, place = await asyncio.to_thread(lambda: (ctx.defer(fine), here()))
        await handle.settled()
    assert handle.site == place


async def test_the_times_of_what_is_told():
    """Every event of a registration, a step in line included, and of a context's end has its time."""
    told = []
    async with Supervisor(hooks=[told.append]) as supervisor:
        started = supervisor._launcher.now()
        for execution in (Execution.SEQUENTIAL, Execution.CONCURRENT):
            with supervisor.context() as ctx:
                ctx.route = execution
                await ctx.run(fine)
                ctx.defer(fine)
                ctx.defer(len, "")
            await ctx.drained()
        with supervisor.context():
            pass
        ended = supervisor._launcher.now()
    events = [event for event in told if isinstance(event, TaskDeferred | ContextSettled)]
    assert len(events) == 9
    assert all(started <= event.at <= ended for event in events)


async def test_a_stored_step():
    """S2: a durable step is stored with its arguments, positional and by name; its handle says what is known of it."""
    ran = []
    supervisor = Supervisor(engine=MemoryEngine())

    @supervisor.task("note")
    async def note(what: str, *, times: int = 1):
        ran.append((what, times))

    async with supervisor:
        with supervisor.context() as ctx:
            ctx.route = Execution.DURABLE
            handle = await ctx.run(note, "mail", times=2)
            view = ctx.with_options(name="other")
            with pytest.raises(TypeError, match=r"note is stored without the options of this view"):
                await view.run(note, "mail")
            assert view.belongs_to(supervisor._launcher)
        while not ran:
            await asyncio.sleep(0)
    assert ran == [("mail", 2)]
    assert handle.arguments == (("mail",), {"times": 2})
    assert handle.function.endswith("note")
    assert handle.execution is Execution.DURABLE
    assert handle.state is TaskState.PENDING


@pytest.mark.parametrize("named", [True, False])
async def test_a_step_waits_for_room_of_its_name(named):
    """S10: a step waits where tasks of its name wait already, be it the function's name or one given to it."""
    name = "mail" if named else "fine"
    async with Supervisor(max_running=1, overflow="wait", limits={name: Limit(pending=1)}) as supervisor:
        gate = asyncio.Event()
        with supervisor.context() as ctx:
            view = ctx.with_options(name="mail") if named else ctx
            ctx.route = Execution.CONCURRENT
            await ctx.run(gate.wait)
            first = await view.run(fine)
            second = asyncio.ensure_future(view.run(fine))
            other = asyncio.ensure_future(ctx.with_options(name="other").run(fine))
            for _ in range(10):
                await asyncio.sleep(0)
            assert other.done()
            assert not second.done()
            gate.set()
            await (await second)
        assert first.state is TaskState.SUCCEEDED


def test_a_step_without_a_loop():
    """A step in line needs an event loop, and says so with its own name."""
    supervisor = Supervisor()
    ctx = supervisor._launcher.open(None, None)
    ctx.route = Execution.SEQUENTIAL
    with pytest.raises(EventLoopError, match=r"^fine was not accepted: no asyncio event loop runs here"):
        ctx.run(fine).send(None)


@pytest.mark.parametrize("taker", ["defer", "run", "enqueue"])
async def test_a_refused_coroutine_is_told_of_by_the_name_of_the_method(taker):
    """VP-04: the mend in the message is the very call that was made, without the parentheses too many."""
    refused = pytest.raises(TypeError, match=rf"^{taker}\(\) takes a function .* write `{taker}\(fine, \.\.\.\)`")
    async with Supervisor(engine=MemoryEngine()) as supervisor:
        with supervisor.context() as ctx, refused:
            await getattr(ctx, taker)(fine())


async def test_what_a_context_refuses():
    """Each refusal of a context names the work or the argument that it is about."""
    supervisor = Supervisor()
    async with supervisor:
        with supervisor.context() as ctx:
            with pytest.raises(ValueError, match=r"fine would start now, .* so when='success' cannot hold"):
                ctx.with_options(when="success").wait_until(fine())
            with pytest.raises(TypeError, match="on_error must be functions, not 3"):
                ctx.on_error(3)
            assert ctx.step("one") is ctx.step("another")  # nobody watches
        with pytest.raises(
            ContextClosedError, match=r"^fine came too late: the unit of work has ended and nothing of it is pending\. "
        ):
            ctx.defer(fine)
        with supervisor.context("POST /register") as labelled:
            pass
        with pytest.raises(ContextClosedError, match="the unit of work of POST /register has ended"):
            labelled.wait_until(fine())
        with supervisor.context() as ctx:
            ctx.defer(fine)
    with pytest.raises(SupervisorClosedError, match=r"^fine was not accepted: it has been drained and closed"):
        ctx.defer(fine)


async def test_no_more_wait_than_may():
    """S10: as many tasks wait as `max_pending` says, and not one more, the short way as well."""
    async with Supervisor(max_pending=3) as supervisor:
        with supervisor.context() as ctx:
            handles = [ctx.defer(fine) for _ in range(3)]
            with pytest.raises(TaskRejectedError, match=r"3 tasks wait already \(max_pending=3\)"):
                ctx.defer(fine)
    assert {handle.state for handle in handles} == {TaskState.SUCCEEDED}


async def test_a_borrowed_argument_of_a_function(caplog):
    """A request among the arguments is warned of whatever way its task is registered."""
    request = type("Request", (), {"__module__": "starlette.requests"})()
    async with Supervisor() as supervisor:
        with supervisor.context() as ctx:
            handle = ctx.defer(id, request)
    assert handle.result() == id(request)
    assert "task 'id'" in caplog.text
    assert "was given a starlette Request" in caplog.text


@pytest.mark.parametrize("inline", [True, False])
async def test_a_task_of_a_task_is_not_its_parent(inline):
    """Code that a plain task runs in a thread belongs to no task, and never to the one that registered it."""
    found, gate = [], asyncio.Event()

    async def inner():
        found.append(current_task())
        found.append(await asyncio.to_thread(current_task))

    async def outer():
        await gate.wait()
        found.append(await asyncio.to_thread(current_task))
        found.append(current_context().defer(inner))

    async with Supervisor() as supervisor:
        launcher = supervisor._launcher

        async def one(work):
            with supervisor.context() as ctx:
                if not inline:
                    return await ctx.with_options(timeout=50).wait_until(work())
                ctx.route = Execution.SEQUENTIAL
                return await ctx.run(work)

        long = asyncio.ensure_future(one(outer))
        await asyncio.sleep(0)
        await one(fine)  # begins and ends beside the other
        assert launcher.dressed == 1
        gate.set()
        await long
    parent, task, itself, thread = found
    assert parent.name.endswith("outer")
    assert (itself, thread) == (task, None)
    assert launcher.dressed == 0


@pytest.mark.parametrize("execution", [Execution.SEQUENTIAL, Execution.CONCURRENT, Execution.FIRE_AND_FORGET])
@pytest.mark.parametrize("when", ["success", "error"])
async def test_a_step_that_would_start_before_the_outcome(execution, when):
    """S2, S5: a step that asks for an outcome is refused where the route starts it before, and never run regardless."""
    ran = []
    async with Supervisor() as supervisor:
        with supervisor.context() as ctx:
            ctx.route = execution
            with pytest.raises(ValueError, match=rf"would start now, .* so when='{when}' cannot hold\. Use `defer"):
                await ctx.with_options(when=when).run(ran.append, 1)
            handle = ctx.with_options(when=when).defer(ran.append, 2)
            ctx.route = Execution.DEFERRED
            step = await ctx.with_options(when=when).run(ran.append, 3)
            assert ctx.pending == 2
    assert handle.state is step.state
    assert sorted(ran) == ([2, 3] if when == "success" else [])
