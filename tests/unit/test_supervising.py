"""The face of a supervisor, where a small slip would go unseen: defaults, counts, refusals, openings."""

import asyncio

import pytest

from deferred import (
    EventLoopError,
    Execution,
    NoCurrentContextError,
    Supervisor,
    SupervisorClosedError,
    TaskState,
    _current,
    _launch,
    defer,
)
from deferred.engines.memory import MemoryEngine


async def fine(value="fine"):
    """Succeed."""
    return value


async def turns(count):
    """Let the loop make so many turns."""
    for _ in range(count):
        await asyncio.sleep(0)


async def test_waiting_work_nobody_drains_is_counted():
    """Fire-and-forget work that waits for a slot is pending, as any other is."""
    async with Supervisor(max_running=1) as supervisor:
        gate = asyncio.Event()
        with supervisor.context() as ctx:
            ctx.route = Execution.FIRE_AND_FORGET
            handles = [await ctx.run(gate.wait) for _ in range(3)]
        await turns(5)
        stats = supervisor.stats()
        assert (stats.pending, stats.running) == (2, 1)
        gate.set()
        await asyncio.gather(*(handle.settled() for handle in handles))


def test_a_new_supervisor():
    """A supervisor that was just made drains nothing, runs nothing, and serves twenty durable tasks at a time."""
    supervisor = Supervisor()
    assert supervisor.draining is False
    assert supervisor._durable.concurrency == 20
    assert set(vars_of(supervisor.stats())) == {0}


def vars_of(struct):
    """Return the values of a Struct's fields."""
    return [getattr(struct, field) for field in struct.__struct_fields__]


REFUSALS = {
    "hook": (lambda supervisor: supervisor.add_hook(3), TypeError, "^hook must be functions, not 3$"),
    "wrap": (lambda supervisor: supervisor.wrap(3), TypeError, r"^wrap\(\) takes an `async def` function, not 3$"),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_refusals(what):
    """S3: what a supervisor cannot use is refused by the argument's name, with nothing after it that says nothing."""
    call, error, text = REFUSALS[what]
    with pytest.raises(error, match=text):
        call(Supervisor())


async def test_refused_times():
    """A drain refuses a time that is none, by name, the supervisor's and the context's."""
    async with Supervisor() as supervisor:
        with pytest.raises(ValueError, match=r"^timeout must be 0 or more and finite, not -1$"):
            await supervisor.drain(-1)
        with supervisor.context() as ctx:
            pass
        with pytest.raises(TypeError, match=r"^timeout must be a number of seconds, not str$"):
            await ctx.drained("soon")
        assert (await supervisor.drain(0)).finished == 0
        assert (await ctx.drained(0)).finished == 0


@pytest.mark.parametrize("call", ["drain", "defer"])
def test_another_loop(call):
    """What would bind a supervisor to a second loop while the first one runs is refused, by what was asked for."""
    supervisor = Supervisor()

    async def second():
        if call == "drain":
            await supervisor.drain()
        else:
            with supervisor.context() as ctx:
                ctx.defer(fine)

    async def first():
        async with supervisor:
            await asyncio.to_thread(asyncio.run, second())

    name = "fine" if call == "defer" else "Supervisor"
    with pytest.raises(EventLoopError, match=rf"{name}.* was not accepted: this supervisor works on the event loop"):
        asyncio.run(first())


async def test_whose_policy_holds_outside(monkeypatch):
    """S8: one that raises, and was never opened, does not decide for one that runs such work."""
    monkeypatch.setattr(_current, "hosts", hosts := [])
    monkeypatch.setattr(_launch, "hosts", hosts)
    runs, raises = Supervisor(out_of_scope="run"), Supervisor()
    handle = defer(fine)
    assert await handle == "fine"
    await runs.drain()
    async with raises:
        with pytest.raises(NoCurrentContextError):
            defer(fine)


async def test_opened_again():
    """A supervisor that was closed says so until it is opened again, and is then as new."""
    supervisor = Supervisor()
    for _ in range(3):
        async with supervisor:
            assert not supervisor.draining
            with supervisor.context() as ctx:
                handle = ctx.defer(fine)
        assert handle.state is TaskState.SUCCEEDED
        assert supervisor.draining
        with pytest.raises(SupervisorClosedError), supervisor.context() as ctx:
            ctx.defer(fine)


async def test_opened_twice():
    """S11: of several openings the first counts, of as many closings the first drains."""
    supervisor = Supervisor()
    supervisor.open()
    supervisor.open()
    with supervisor.context() as ctx:
        handle = ctx.defer(fine)
    await supervisor.close()
    assert handle.state is TaskState.SUCCEEDED
    await supervisor.close()
    await supervisor.close()
    supervisor.open()
    with supervisor.context() as ctx:
        ctx.defer(fine)
    await supervisor.close()
    assert supervisor.stats().succeeded == 2


async def test_work_is_served_until_the_end_and_again():
    """S15: a drain stops the serving of stored work for its own time, a close for good, an opening begins anew."""
    engine, ran = MemoryEngine(), []
    supervisor = Supervisor(engine=engine)

    @supervisor.task("note")
    async def note(what: str):
        ran.append(what)

    async def enqueue(what):
        with supervisor.context() as ctx:
            await ctx.enqueue(note, what)

    for life in ("first", "second"):
        async with supervisor:
            await enqueue(f"{life}, before")
            while len(ran) % 2 == 0:
                await asyncio.sleep(0)
            await supervisor.drain()
            await enqueue(f"{life}, after")
            while len(ran) % 2:
                await asyncio.sleep(0)
        assert supervisor._durable._serving is None
    assert ran == ["first, before", "first, after", "second, before", "second, after"]
