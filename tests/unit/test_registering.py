"""What is registered, where a small slip would go unseen: whose it is, what it carries, who may refuse it."""

import asyncio

import pytest

from deferred import Supervisor, current_context


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
