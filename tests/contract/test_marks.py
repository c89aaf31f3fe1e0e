"""Several execution marks within one unit of work."""

import asyncio

from deferred import Execution, concurrent, current_context, deferred, sequential


async def work():
    """Be a step."""


async def test_marks_side_by_side_do_not_meet(supervisor):
    """S2: two functions with different marks that run side by side in one context each go by their own."""
    gate = asyncio.Event()

    @sequential
    async def first(ctx):
        await gate.wait()
        return (await ctx.run(work)).execution

    @concurrent
    async def second(ctx):
        handle = await ctx.run(work)
        gate.set()
        return handle.execution

    with supervisor.context() as ctx:
        assert await asyncio.gather(first(ctx), second(ctx)) == [Execution.SEQUENTIAL, Execution.CONCURRENT]


async def test_the_innermost_mark_holds_as_far_as_it_goes(supervisor):
    """S2: a marked function inside a marked handler goes by its own mark, and the handler by the handler's after it."""

    @concurrent
    async def inner(ctx):
        return ctx.execution

    @sequential
    async def outer(ctx):
        return [ctx.execution, await inner(ctx), ctx.execution]

    with supervisor.context() as ctx:
        assert await outer(ctx) == [Execution.SEQUENTIAL, Execution.CONCURRENT, Execution.SEQUENTIAL]
        assert ctx.execution is Execution.SEQUENTIAL  # what the response streams, after its handler


async def test_a_mark_belongs_to_one_unit_of_work(supervisor):
    """S2: a context opened inside a marked handler is not marked by it."""

    @sequential
    async def handler():
        with supervisor.context() as ctx:
            return ctx.execution, current_context().execution

    with supervisor.context():
        assert await handler() == (Execution.DEFERRED, Execution.DEFERRED)


async def test_a_mark_outside_any_unit_of_work_changes_nothing(supervisor):
    """S2: a marked function that is called outside any unit of work runs as it would without the mark."""

    @deferred
    async def handler():
        return 1

    @sequential
    def plain():
        return 2

    assert (await handler(), plain()) == (1, 2)
