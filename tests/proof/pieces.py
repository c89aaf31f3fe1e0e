"""What the machine of `test_supervisor` handles: work by the hand, layers around it, a hook that fails."""

import asyncio
import concurrent.futures
import contextlib
from contextlib import asynccontextmanager

from deferred import ContextClosedError, TaskRejectedError
from tests.faults.support import BareError
from tests.proof.clock import VirtualLoop

TICK = 1e-12
"""Seconds: far less than what asyncio takes for the same time."""


class TickingLoop(VirtualLoop):
    """A loop on which something passes between two looks at the clock, so that each task is older than the next.

    What is done to all of them is done by age: on a clock that stood still hypothesis would see
    it done in another order the next time.
    """

    def time(self):
        """Return the virtual time in seconds."""
        self.pass_by(TICK)
        return super().time()


class Work:
    """A piece of work that the machine holds by the hand."""

    def __init__(self, *, error, early, ignores, children, steps):
        self.gate = asyncio.Event()
        self.error = error
        self.early, self.ignores = early, ignores
        self.children, self.steps = children, steps
        self.running = 0

    async def __call__(self, ctx):
        """Wait to be told how to end."""
        self.running += 1
        for _ in range(self.children):
            with contextlib.suppress(TaskRejectedError, ContextClosedError):
                ctx.defer(asyncio.sleep, 0.5)
        for _ in range(self.steps):
            with contextlib.suppress(TaskRejectedError, ContextClosedError):
                await ctx.run(asyncio.sleep, 0.5)
        while not self.early and not self.gate.is_set():
            try:
                await self.gate.wait()
            except asyncio.CancelledError:
                if not self.ignores:
                    raise
                self.ignores -= 1
        if self.error is not None:
            raise self.error


async def layer(task, call_next):
    """Be a middleware that waits on both sides."""
    await asyncio.sleep(0)
    value = await call_next()
    await asyncio.sleep(0)  # in no `finally`: what is abandoned cannot wait
    return value


@asynccontextmanager
async def scope():
    """Be a scope that waits on both sides."""
    await asyncio.sleep(0)
    yield
    await asyncio.sleep(0)


def broken(event):
    """Be a hook that fails at everything."""
    raise BareError


class AtOnce(concurrent.futures.Executor):
    """An executor without threads: whoever submits waits."""

    def submit(self, func, /, *args, **kwargs):
        """Call it."""
        future = concurrent.futures.Future()
        try:
            future.set_result(func(*args, **kwargs))
        except Exception as error:  # noqa: BLE001  # whoever submitted it gets it
            future.set_exception(error)
        return future


def plain_function(error):
    """Be a plain function, which fails where it is told to."""
    return 1 / (error is None)
