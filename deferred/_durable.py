"""Durable work of one supervisor: stored, served, handed over, buried.

Rules of this file: policy is here and storage in the engine; a delivery is a task like any
other, with a context of its own, so that hooks, middleware, limits and drains apply to it;
without an engine nothing here runs.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Iterable
from contextvars import ContextVar, copy_context
from typing import Any, Literal

import msgspec

from deferred._delivery import CRASHES, SUSPECT, new_job_id, read_note, verdict_of
from deferred._events import Execution, Outcome, TaskDead, TaskEnqueued
from deferred._launch import Launcher
from deferred._registry import RegisteredTask, Registry, check_name
from deferred._retry import seconds
from deferred._settings import check_choice
from deferred._suspects import Suspects
from deferred._task import TaskHandle, current_unit, running_task
from deferred._unit import UnitOfWork
from deferred.engines._lookup import find_engine
from deferred.engines._protocol import Dead, Delivery, Engine, Job, RetryIn, Verdict
from deferred.engines._support import UnreachableError, clean
from deferred.exceptions import EngineError, PayloadError, TaskRejectedError

__all__ = ["DurableWork", "OnDrain"]

logger = logging.getLogger("deferred")

OnDrain = Literal["abandon", "enqueue"]

UNKNOWN_DELAY = 10.0
"""Seconds between looks whether a worker knows a name by now."""

UNKNOWN_LIMIT = 3600.0
"""Seconds after which nobody is expected to know it: a rolling deployment takes minutes."""

LONGEST_DELAY = 3_155_760_000.0
"""Seconds: more than any store is asked to keep, and less than any overflows at."""

LONGEST_LABEL = 500
"""Characters of a context's label that travel with a job; a path may have more."""

MOST_BURIED = 3
"""How many times in a row a hook may store work for a job that died, before that is a loop."""

CLOSING = 10.0
"""Seconds that an engine has to close; ours take less, whatever their store does."""

CONTEXT = "deferred-context"
LABEL = "deferred-label"
BURIED = "deferred-buried"

_buried: ContextVar[int] = ContextVar("deferred_buried", default=0)
"""Inside the hooks of a dead letter: how many in a row there were, each stored by the hooks of the one before."""


def _delay(value: object) -> float:
    found = seconds(value, "delay", zero=True)
    if found > LONGEST_DELAY:
        message = f"delay must be {LONGEST_DELAY:.0f} seconds (a hundred years) or less, not {value!r}"
        raise ValueError(message)
    return found


class DurableWork:
    """What a supervisor knows of durable work. Lives as long as it.

    Attributes:
        registry: The functions that may be run by name.
        engine: Where jobs are; None if there is none.
        serve: Whether this process runs jobs too.
        closings: The closings under way, with their loops: meanwhile nothing is served there.
        concurrency: How many at a time.
        queues: Which queues to serve; those of the registered tasks if None.
    """

    def __init__(
        self,
        launcher: Launcher,
        engine: Engine | str | None,
        *,
        serve: bool,
        concurrency: int,
        on_dead: tuple[Any, ...],
        on_drain: OnDrain,
    ) -> None:
        self._launcher = launcher
        self._on_dead = on_dead
        self._on_drain = check_choice(on_drain, OnDrain, "on_drain")
        self._stop: asyncio.Event | None = None
        self._serving: asyncio.Task[None] | None = None
        self._suspects = Suspects()
        self.registry = Registry()
        self.engine = None if engine is None else find_engine(engine)
        self.serve = serve
        self.closings: dict[object, asyncio.AbstractEventLoop] = {}
        self.concurrency = concurrency
        self.queues: tuple[str, ...] | None = None
        if self._on_drain == "enqueue" and self.engine is None:
            message = 'on_drain="enqueue" needs an engine to hand work over to: Supervisor(engine=...)'
            raise ValueError(message)

    # -- storing --------------------------------------------------------------------------------

    async def store(
        self,
        context: UnitOfWork,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        connection: Any = None,
        delay: float | None = None,
        key: str | None = None,
    ) -> str:
        """Store a call of a registered task; return the id of its job."""
        engine, registered = self._engine, self.registry.of(func)
        if self._launcher.why is not None:
            self._launcher.meet(None, func)  # says why nothing is accepted
        job = self._job(registered, context, args, kwargs, new_job_id())
        if delay is not None or key is not None:
            job = msgspec.structs.replace(
                job,
                delay=0.0 if delay is None else _delay(delay),
                key=None if key is None else f"{registered.name}:{check_name(key, 'key')}",
            )
        (found,) = await engine.enqueue([job], connection)
        self._tell_stored(found, registered.name, context)
        return found

    @property
    def _engine(self) -> Engine:
        if self.engine is None:
            message = 'this supervisor has no engine to store work in: Supervisor(engine="sqlite:///jobs.db")'
            raise EngineError(message)
        return self.engine

    def _job(
        self, task: RegisteredTask, context: UnitOfWork, args: tuple[Any, ...], kwargs: dict[str, Any], job_id: str
    ) -> Job:
        headers = {**task.headers(), CONTEXT: context.id}
        if buried := _buried.get():
            if buried > MOST_BURIED:
                message = (
                    f"task {task.name!r} was not stored: a hook of dead letters stores work that dies in its turn, "
                    f"{buried} times in a row by now. Mend what fails, or store something else there"
                )
                raise TaskRejectedError(message)
            headers[BURIED] = str(buried)
        if context.label:
            headers[LABEL] = context.label[:LONGEST_LABEL]
        self._launcher.hooks.carry(headers)
        if not "".join(headers.values()).isprintable():  # a path or a header of a request may hold anything
            headers = {key: clean(value) for key, value in headers.items()}
        payload = task.arguments.encode(args, kwargs)
        return Job(id=job_id, name=task.name, payload=payload, headers=headers, queue=task.queue)

    def _tell_stored(self, job_id: str, name: str, context: UnitOfWork) -> None:
        hooks = self._launcher.hooks
        if hooks.listeners(TaskEnqueued):
            self._launcher.on_loop(hooks.emit, TaskEnqueued(job_id, name, context, at=self._launcher.now()))

    # -- serving --------------------------------------------------------------------------------

    async def ready(self) -> None:
        """Have the engine connect, and create what is missing.

        A store that is away is waited for by whoever needs it, not by the start of the app.

        Raises:
            EngineError: The store cannot be used as it is; the message says what to do.
        """
        if self.engine is not None:
            try:
                await self.engine.setup()
            except Exception as error:  # a driver raises what it likes
                if isinstance(error, EngineError) and not isinstance(error, UnreachableError):
                    raise
                logger.warning("the engine's store cannot be reached yet: %s: %s", type(error).__name__, error)

    def start(self) -> None:
        """Serve in the background, if there is anything to serve; on the loop."""
        loop = asyncio.get_running_loop()
        serving = self._serving
        if serving is not None and (serving.done() or serving.get_loop() is not loop):
            serving = self._serving = None  # it has ended, after a drain or with its loop
        if self.engine is None or not self.serve or loop in self.closings.values():
            return
        if serving is not None:
            serving.add_done_callback(self._again)  # a drain has stopped it that one of its own jobs has asked for
        elif len(self.registry):
            self._stop = asyncio.Event()
            self._serving = loop.create_task(
                self.engine.serve(
                    self._deliver,
                    queues=self.queues or self.registry.queues,
                    concurrency=self.concurrency,
                    stop=self._stop,
                ),
                name="deferred: serving",
            )
            self._serving.add_done_callback(self._ended)

    def _ended(self, serving: asyncio.Task[None]) -> None:
        if not serving.cancelled() and (error := serving.exception()) is not None:
            logger.error("durable work is no longer served by this process: %s", error, exc_info=error)

    def _again(self, serving: asyncio.Task[None]) -> None:
        """Serve again, unless that has been seen to, or is not wanted any more."""
        launcher = self._launcher
        if serving is self._serving and not serving.cancelled() and launcher.leading is None and launcher.why is None:
            self.start()

    def pause(self) -> None:
        """Take no further jobs."""
        if self._stop is not None:
            self._stop.set()

    async def finish(self, grace: float) -> None:
        """Wait until the last verdict is stored, at most `grace` seconds; what is not is delivered again."""
        serving, self._serving = self._serving, None
        if serving is not None:
            _, late = await asyncio.wait({serving}, timeout=grace)
            if late:
                logger.warning("the engine did not stop within %g s; its unsettled jobs are delivered again", grace)
                serving.cancel()
                await asyncio.wait({serving}, timeout=grace)

    async def close(self) -> None:
        """Let go of the store; what goes wrong with that, or hangs, keeps no app from its end."""
        if self.engine is not None:
            try:
                async with asyncio.timeout(CLOSING):
                    await self.engine.close()
            except Exception as error:  # a driver raises what it likes
                logger.exception("the engine could not be closed: %s", type(error).__name__)

    async def _deliver(self, delivery: Delivery) -> Verdict:
        """Run one delivery; what every engine is given as its handle."""
        note = read_note(delivery.note)
        task = self.registry.named(delivery.name)
        if task is None or task.is_newer(delivery.headers):
            since = min(note.unknown or delivery.now, delivery.now)
            if delivery.now - since < UNKNOWN_LIMIT:
                # A rolling deployment: a newer worker knows it, or soon will.
                delay = UNKNOWN_DELAY * random.uniform(0.5, 1.0)  # noqa: S311  # jitter, no secret
                return RetryIn(delay, note.after(counted=False, unknown=since))
            what = "no task of that name is registered" if task is None else "newer code than this stored it"
            return self._bury(delivery, Dead("unknown_task", f"{what}; the last worker asked knows {self._known()}"))
        crashes = note.crashes(delivery)
        if crashes >= CRASHES:
            return self._bury(delivery, Dead("crash_loop", f"{crashes} processes ended while they ran it"))
        suspect = crashes >= SUSPECT
        if delay := self._suspects.turn_away(suspect=suspect):
            return RetryIn(delay, note.after(counted=False))
        try:
            args, kwargs = task.read(delivery.payload, delivery.headers)
        except PayloadError as error:
            return self._bury(delivery, Dead("payload", str(error)))
        note = note.begun(delivery)
        redelivery = note.redelivery(delivery)
        if suspect:
            async with self._suspects.alone():
                handle = await self._run(task, delivery, args, kwargs, redelivery)
        else:
            self._suspects.begin()
            try:
                handle = await self._run(task, delivery, args, kwargs, redelivery)
            finally:
                self._suspects.end()
        verdict = verdict_of(handle, note, redelivery)
        return self._bury(delivery, verdict, handle.attempts) if isinstance(verdict, Dead) else verdict

    async def _run(self, *delivered: Any) -> TaskHandle[Any]:
        """Run a delivery to its end."""
        handle = self._launch(*delivered)
        context: Any = handle._unit
        try:
            await handle.settled()
        except asyncio.CancelledError:  # by the engine, which has lost the job
            self._launcher.cancel(handle, Outcome.CANCELLED_LEASE_LOST)
            await handle.settled()
            raise
        finally:
            context.end(handle.error)
        return handle

    def _known(self) -> str:
        return ", ".join(self.registry.names) or "none"

    def _launch(
        self, task: RegisteredTask, delivery: Delivery, args: tuple[Any, ...], kwargs: dict[str, Any], redelivery: Any
    ) -> TaskHandle[Any]:
        """Run a delivery as a task of a context of its own; a drain waits for it."""
        launcher = self._launcher
        context = launcher.open(None, delivery.headers.get(LABEL) or task.name)
        variables = copy_context()
        variables.run(current_unit.set, context)
        variables.run(running_task.set, None)
        handle: TaskHandle[Any] = TaskHandle(
            task.kind,
            task.func,
            args,
            kwargs,
            msgspec.structs.replace(task.options, name=task.name, redelivery=redelivery),
            context,
            variables,
            task.code,
            0,
            launcher.now(),
            True,
            Execution.DURABLE,
            delivery.id,
        )
        launcher.slots.accept(handle)
        launcher.tasks.add(handle)
        context._pending += 1
        launcher.launch(handle, eager=True)
        return handle

    def _bury(self, delivery: Delivery, verdict: Dead, attempts: int = 0) -> Dead:
        """Tell of a job that becomes a dead letter."""
        event = TaskDead(delivery.id, delivery.name, verdict.reason, verdict.error, attempts, at=self._launcher.now())
        before = delivery.headers.get(BURIED, "")
        token = _buried.set(1 + (int(before[:9]) if before.isdecimal() else 0))
        try:
            self._launcher.hooks.emit(event, self._on_dead)
        finally:
            _buried.reset(token)
        return verdict

    # -- handing over ---------------------------------------------------------------------------

    def takes(self, task: TaskHandle[Any]) -> bool:
        """Say whether a task in memory that a drain cannot finish is stored instead."""
        return self._on_drain == "enqueue" and task._options.redelivery is None and self.registry.knows(task._work)

    async def hand_over(self, tasks: Iterable[TaskHandle[Any]], grace: float) -> list[str]:
        """Store the tasks that a drain could not finish, as far as they are registered; return their ids."""
        jobs: list[tuple[Job, UnitOfWork]] = []
        for task in tasks:
            if self.takes(task):
                context: Any = task._unit
                try:
                    jobs.append((self._job(self.registry.of(task._work), context, *task.arguments, task.id), context))
                except PayloadError as error:
                    logger.error("task %r could not be handed over: %s", task.name, error)  # noqa: TRY400  # it says why
        if not jobs:
            return []
        try:
            async with asyncio.timeout(max(1.0, grace)):
                await self._engine.enqueue([job for job, _ in jobs])
        except Exception:
            logger.exception("%d unfinished task(s) could not be handed over, and are lost", len(jobs))
            return []
        for job, context in jobs:
            self._tell_stored(job.id, job.name, context)
        return [job.id for job, _ in jobs]
