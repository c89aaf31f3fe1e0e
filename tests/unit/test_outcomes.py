"""When the outcome is known, and who learns of it: contexts that fail, close early, or hold work back."""

import asyncio
import contextlib

import pytest

from deferred import ContextClosed, Supervisor, TaskState, current_task, wait_until


async def fine():
    """Succeed."""


@pytest.mark.parametrize("fails", [True, False])
async def test_a_block_that_fails(fails):
    """S5: work for an error runs when the block raised, work for a success when it did not; the event has the error."""
    told = []
    supervisor = Supervisor(hooks=[lambda event: isinstance(event, ContextClosed) and told.append(event)])
    error = LookupError("no")
    async with supervisor:
        with contextlib.suppress(LookupError), supervisor.context() as ctx:
            handles = {when: ctx.with_options(when=when).defer(fine) for when in ("error", "success", "always")}
            if fails:
                raise error
        await ctx.drained()
    ran = {when for when, handle in handles.items() if handle.state is TaskState.SUCCEEDED}
    assert ran == {"always", "error" if fails else "success"}
    assert [event.error for event in told] == [error if fails else None]


@pytest.mark.parametrize("status", [200, 500])
async def test_work_that_is_held_back(status):
    """S5: when the client leaves before there is an outcome, all work that asks for one waits for it, in order."""
    order = []
    async with Supervisor() as supervisor:
        with supervisor.context() as ctx:

            async def note(what):
                order.append(what)

            for number in range(3):
                ctx.with_options(when="success").defer(note, ("success", number))
                ctx.with_options(when="error").defer(note, ("error", number))
            ctx.defer(note, "always")
            ctx.close(decided=False)
            for _ in range(3):
                await asyncio.sleep(0)
            assert order == ["always"]
            ctx.status = status
        await ctx.drained()
    assert order == ["always", *((("success" if status == 200 else "error"), number) for number in range(3))]


async def test_an_error_after_the_outcome():
    """S5: what a block raises after its response was out changes nothing of the outcome."""
    async with Supervisor() as supervisor:
        with pytest.raises(LookupError), supervisor.context() as ctx:
            handles = [ctx.with_options(when=when).defer(fine) for when in ("success", "error")]
            ctx.close()
            raise LookupError
        await ctx.drained()
    assert [handle.state for handle in handles] == [TaskState.SUCCEEDED, TaskState.DISCARDED]


@pytest.mark.parametrize("options", [{}, {"timeout": 60}], ids=["plain", "dressed"])
async def test_work_that_a_task_has_started_by_itself(options):
    """S6: an asyncio task that work starts by itself belongs to no task of ours, also not to the one further out."""
    found = []

    async def look():
        found.append(current_task())

    async def inner():
        await asyncio.create_task(look())
        await look()

    async def outer():
        found.append(wait_until(inner()))
        await found[0]

    async with Supervisor() as supervisor:
        with supervisor.context() as ctx:
            handle = ctx.with_options(**options).defer(outer)
        await handle
    inner_handle, nobody, itself = found
    assert nobody is None
    assert itself is inner_handle
