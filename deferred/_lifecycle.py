"""How a supervisor opens, drains and closes.

Rules of this file: what a drain has not finished is recorded before anybody is told that it is
over, also when the drain itself is cancelled; of several openings the first counts, and of
several closings the first drains and closes; whoever opens it later opens it again, whether or
not the other closings ever came.
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from asyncio import _get_running_loop as running_loop
from types import TracebackType
from typing import Any, Self

from deferred._drain import Drain
from deferred._durable import DurableWork
from deferred._events import DrainFinished, DrainReport, DrainStarted, Outcome
from deferred._launch import Launcher
from deferred._process import alive
from deferred._retry import seconds
from deferred._run import enclosing_task
from deferred._task import TaskHandle, by_age
from deferred.exceptions import EventLoopError

__all__ = ["Lifecycle"]

logger = logging.getLogger("deferred")


class Lifecycle:
    """The part of a supervisor that opens and ends. Lives as long as the supervisor."""

    def _be(self, launcher: Launcher, durable: DurableWork) -> None:
        """Begin to exist; what a constructor would do, but for its arguments, which are nobody else's."""
        self._launcher = launcher
        self._durable = launcher.durable = durable
        launcher.owner = weakref.ref(self)
        self._openings = 0  # since it was opened last; only the first of them counts
        self._openings_ever = 0
        self._stopping = False  # the process has been told to end
        self._adopted: weakref.WeakSet[Lifecycle] = weakref.WeakSet()
        alive.add(self)

    async def __aenter__(self) -> Self:
        """Open it on the running event loop."""
        self.open()
        try:
            await self.ready()
        except BaseException:
            await self.close()  # nobody else will: it was never entered
            raise
        return self

    async def ready(self) -> None:
        """Have the engine connect, and create what is missing in its store.

        Leaving that out does no harm: whoever uses the engine first does it.

        Raises:
            EngineError: The store cannot be used as it is; the message says what to do.
        """
        await self._durable.ready()

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        """Drain it, then close it."""
        await self.close()

    def open(self) -> None:
        """Bind it to the running event loop.

        Apps that share it may each open it: the first opening counts, and the first closing
        closes it for all of them, because the app that is told first of the shutdown is the
        outermost. Once it is closed, the next opening opens it again, also when not every
        opening before had its closing. Opened while it closes, it stays open.

        Raises:
            EventLoopError: No asyncio event loop runs here.
        """
        launcher = self._launcher
        loop = running_loop()
        if loop is None:
            message = (
                "a supervisor is opened on a running asyncio event loop, and none runs here: do so in a coroutine, by "
                "`async with supervisor:`. Under trio nothing can be deferred, and there is nothing to open"
            )
            raise EventLoopError(message)
        if launcher.lazy or (launcher.loop is not None and launcher.loop.is_closed()):
            self._openings = 0  # it was closed, or its last life broke off with its loop
        if not self._openings:
            launcher.opened = True
            if launcher.loop is loop:
                launcher.announce()
                launcher.watch()
            else:
                launcher.move(loop, self)  # which does that too
            launcher.lazy = self._stopping = False
            launcher.shut(None)
            self._durable.start()
        self._openings += 1
        self._openings_ever += 1

    async def close(self) -> None:
        """Drain it and take no more work, however often it was opened."""
        launcher, loop = self._launcher, running_loop()
        ever = self._openings_ever
        self._openings = max(0, self._openings - 1)
        try:
            if launcher.why is None:
                closing = object()
                self._durable.closings[closing] = asyncio.get_running_loop()
                try:
                    await self._wind_up(launcher.timeout, enclosing_task())
                finally:
                    del self._durable.closings[closing]
                until = launcher.hooks.until(launcher.grace)
                await launcher.hooks.finish(until)
                if launcher.tasks:  # a hook has registered work as it was told of the end
                    await self._drain_once(launcher.timeout, enclosing_task())
                    until = launcher.hooks.until(launcher.grace)
                if ever == self._openings_ever:
                    await launcher.hooks.end(until)
        finally:
            here = launcher.loop in (None, loop)  # else refused, or this loop broke off and another has taken over
            if here and ever == self._openings_ever:
                self._shut("it has been drained and closed; work must be registered before the shutdown")
                await self._durable.close()
            elif here:
                self._durable.start()

    def _shut(self, why: str) -> None:
        launcher = self._launcher
        launcher.shut(why)
        launcher.lazy = True
        if launcher.out_of_scope == "raise":
            launcher.withdraw()  # the other policies hold as long as the supervisor exists
        launcher.unwatch()
        for task in by_age(launcher.detached):
            launcher.settle(task, Outcome.ABANDONED)

    async def drain(self, timeout: float | None = None) -> DrainReport:
        """Wait for all work, what it registers included; cancel at the deadline; then abandon.

        A drain that is under way is joined, and has the time that it has; only the closing of the
        supervisor gives it no more than its own. Work is accepted as before, until the supervisor
        is closed.

        Args:
            timeout: Seconds until what is left is cancelled; `drain_timeout` when None.

        Returns:
            What was achieved; it has been told to the hooks (the log among them) before.
        """
        limit = self._launcher.timeout if timeout is None else seconds(timeout, "timeout", zero=True)
        report = await self._join_or_lead(limit, enclosing_task())
        await self._finish_hooks()
        return report

    async def _join_or_lead(self, limit: float, me: TaskHandle[Any] | None) -> DrainReport:
        """Drain for `me`, the task that drains, if one does."""
        launcher = self._launcher
        if launcher.leading is not None:
            if me is None:
                return await self._join(limit)
            # The drain that is under way waits for this very task: it waits for the others alone.
            rest = limit if launcher.deadline is None else max(0.0, min(limit, launcher.deadline - launcher.now()))
            return await self._drain_once(rest, me)
        return await self._lead(limit, me)

    async def _wind_up(self, limit: float, me: TaskHandle[Any] | None) -> None:
        """Drain as a part of an end that must be over in time: a drain under way is given no more than `limit`."""
        launcher = self._launcher
        if launcher.leading is not None:
            launcher.leading.hasten(launcher.now() + limit)
            launcher.deadline = launcher.leading.deadline
        await self._join_or_lead(limit, me)

    async def _join(self, limit: float) -> DrainReport:
        """Wait for the drain under way; take its place if it is cancelled."""
        launcher = self._launcher
        deadline = launcher.now() + limit
        while (drain := launcher.leading) is not None:
            drain.joined += 1
            try:
                report = await asyncio.shield(drain.reported)
            except asyncio.CancelledError:
                if drain.left and drain.joined == 1 and not launcher.drains:  # to this one alone
                    for task in by_age(launcher.tasks):
                        launcher.settle(task, Outcome.ABANDONED)
                raise
            finally:
                drain.joined -= 1
            if not drain.left:
                return report
        return await self._lead(max(0.0, deadline - launcher.now()), None)

    async def _lead(self, limit: float, me: TaskHandle[Any] | None) -> DrainReport:
        """Drain, and tell of it; others may join."""
        launcher = self._launcher
        loop = asyncio.get_running_loop()
        if launcher.loop is not loop:
            launcher.meet(loop, self)
        drain = launcher.leading = self._begin(limit, me)
        launcher.deadline = drain.deadline
        self._durable.pause()
        drain.skip_waits()
        launcher.hooks.emit(DrainStarted(len(launcher.tasks), drain.deadline, at=drain.started))
        stored: list[str] = []
        try:
            await self._conduct(drain, limit, me)
            stored = await self._durable.hand_over(drain.lost, launcher.grace)
            if me is None:  # else its own verdict is among those that would be waited for
                await self._durable.finish(launcher.grace)
        finally:
            report = drain.report(stored)
            self._conclude(drain, report)
        return report

    def _conclude(self, drain: Drain, report: DrainReport) -> None:
        """Tell of the end of a drain, unless its loop broke off: whoever has taken over has forgotten it."""
        if drain.broke_off:
            return
        launcher = self._launcher
        launcher.drains.remove(drain)
        launcher.look()
        launcher.deadline = launcher.leading = None
        drain.reported.set_result(report)
        now = launcher.now()
        launcher.hooks.emit(DrainFinished(report, now - drain.started, at=now))
        if self._openings:
            self._durable.start()

    async def _conduct(self, drain: Drain, limit: float, me: TaskHandle[Any] | None) -> None:
        """Run `drain`, and those of the apps mounted in this one beside it."""
        mounted = [child for child in self._adopted if child._launcher.why is None]
        if not mounted:
            await self._launcher.conduct(drain)
            return
        async with asyncio.TaskGroup() as children:
            for child in mounted:
                children.create_task(child._wind_up_mounted(limit, me))
            # In this very task: one that is cancelled before its first step would record nothing.
            await self._launcher.conduct(drain)

    async def _wind_up_mounted(self, limit: float, me: TaskHandle[Any] | None) -> None:
        """Wind up as a part of the drain of the app around this one, which is not cut by what that raises."""
        try:
            await self._wind_up(limit, me)
            await self._finish_hooks()
        except EventLoopError as error:
            logger.error("a mounted app is not drained with the one around it: %s", error)  # noqa: TRY400  # it says why

    async def _finish_hooks(self) -> None:
        hooks = self._launcher.hooks
        await hooks.finish(hooks.until(self._launcher.grace))

    def _begin(self, limit: float, me: TaskHandle[Any] | None) -> Drain:
        launcher = self._launcher
        drain = Drain(
            launcher.tasks,
            limit,
            launcher.grace,
            me=me,
            drainers=launcher.drainers,
            now=launcher.now,
            between=launcher.between,
        )
        launcher.drains.append(drain)
        launcher.look()
        return drain

    async def _drain_once(self, limit: float, me: TaskHandle[Any] | None = None) -> DrainReport:
        """Drain without telling anybody, beside a drain that does or after it."""
        launcher = self._launcher
        drain = self._begin(limit, me)
        try:
            await launcher.conduct(drain)
        finally:
            launcher.drains.remove(drain)
            launcher.look()
        return drain.report()

    def adopt(self, other: Lifecycle) -> None:
        """Drain `other` with this one: for an app mounted inside another, which gets no lifespan."""
        if not other._drains_too(self):
            self._adopted.add(other)
            other._launcher.opened = True

    def _drains_too(self, other: Lifecycle) -> bool:
        """Say whether draining this one drains `other`: adopting must make no circle."""
        return other is self or any(child._drains_too(other) for child in self._adopted)

    @property
    def draining(self) -> bool:
        """Whether the process was told to end, it drains or is closed: readiness turns red, endless streams end."""
        return self._stopping or self._launcher.leading is not None or self._launcher.why is not None

    def _cut(self) -> bool:
        """Let every drain under way wait no longer, those of mounted apps included; say whether one was."""
        launcher = self._launcher
        for drain in launcher.drains:
            drain.cut()
            launcher.deadline = drain.deadline
        return any([bool(launcher.drains), *(child._cut() for child in self._adopted)])
