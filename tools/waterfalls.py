"""Draw the waterfalls of the documentation: each execution of the marathon, run on a clock that jumps.

``python tools/waterfalls.py`` writes ``docs/waterfalls/*.svg``. What is drawn is what the inspector
recorded of a real supervisor; only the time is virtual, so that the pictures are the same every time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import looptime

from deferred import DeferredContext, Retry, Supervisor, concurrent, deferred, durable, fire_and_forget, sequential
from deferred.engines.memory import MemoryEngine
from deferred.inspector import RequestView
from deferred.inspector._recorder import Recorder
from deferred.inspector._views import view_requests
from deferred.inspector.svg import render

__all__ = ["draw_all"]

FOLDER = Path(__file__).resolve().parents[1] / "docs/waterfalls"
STORE, CONFIRM = "INSERT runners", "send confirmation e-mail"

Handler = Callable[[DeferredContext], Awaitable[None]]


async def insert() -> None:
    """Store a runner, in 180 ms."""
    await asyncio.sleep(0.18)


async def send_mail() -> None:
    """Send a mail, in 350 ms."""
    await asyncio.sleep(0.35)


async def refused() -> None:
    """Send a mail that the server refuses for good."""
    await asyncio.sleep(0.35)
    message = "550 no such user"
    raise RuntimeError(message)


class Moody:
    """A mail server that is not ready twice. Lives as long as one picture."""

    def __init__(self) -> None:
        self._moods = iter([True, True, False])

    async def __call__(self) -> None:
        """Send a mail, if it is in the mood."""
        await asyncio.sleep(0.1)
        if next(self._moods):
            message = "421 try again later"
            raise ConnectionError(message)


async def _register(ctx: DeferredContext, mail: Callable[[], Awaitable[None]] = send_mail) -> None:
    with ctx.step(STORE):
        await insert()
    retry = Retry(on=ConnectionError, wait_initial=0.15, wait_jitter=0)
    await ctx.with_options(name=CONFIRM, retry=retry).run(mail)


async def _both_beside(ctx: DeferredContext) -> None:
    await ctx.with_options(name=STORE).run(insert)
    await ctx.with_options(name=CONFIRM).run(send_mail)


async def _store_both(ctx: DeferredContext) -> None:
    with ctx.step(STORE):
        await insert()
        await ctx.enqueue(CONFIRM, delay=0.12)  # until a worker has found it


PICTURES: dict[str, tuple[str, int, Handler]] = {
    "sequential": ("/api/marathon-sequential", 200, sequential(_register)),
    "fire-and-forget": ("/api/marathon-fire-and-forget", 201, fire_and_forget(_register)),
    "concurrent": ("/api/marathon-concurrent", 202, concurrent(_both_beside)),
    "waituntil": ("/api/marathon-waituntil", 201, deferred(_register)),
    "durable": ("/api/marathon-durable", 201, durable(_store_both)),
    "retried": ("/api/marathon-waituntil", 201, lambda ctx: _register(ctx, Moody())),
    "failed": ("/api/marathon-waituntil", 201, lambda ctx: _register(ctx, refused)),
}


async def _record(path: str, status: int, handler: Handler) -> RequestView:
    supervisor = Supervisor(on_error=lambda _: None, engine=MemoryEngine())
    supervisor.task(CONFIRM)(send_mail)
    recorder = Recorder(supervisor, count=1, size=10**6, age=60, arguments=False)
    async with supervisor:
        with supervisor.context(f"POST {path}") as ctx:
            ctx.status = status
            await handler(ctx)
        await asyncio.sleep(2)
    recorder.close()
    (view,) = view_requests(recorder, recorder.traces())
    return view


def draw_all() -> dict[str, str]:
    """Return each picture by the name of its file."""
    drawn: dict[str, str] = {}
    for name, picture in PICTURES.items():
        with asyncio.Runner(loop_factory=looptime.new_event_loop) as runner:
            drawn[f"{name}.svg"] = render(runner.run(_record(*picture)))
    return drawn


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for file, picture in draw_all().items():
        (FOLDER / file).write_text(picture)
