"""A supervisor in a server's process: opened, told of signals, drained.

Rules of this file: a signal handler notes and calls the one before it, nothing else; what it
has replaced is put back at the end; a process that dies of a signal today does so tomorrow
as well, but for hypercorn's workers, which would die of one that is meant for their parent.
granian's are told once: at the second time they may block for ever.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

from deferred._supervisor import Supervisor
from deferred.instrumentation.logging import SHOWN, logger

__all__ = ["Served", "owner"]

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_LIMITS = {"gunicorn": (30, "--graceful-timeout"), "hypercorn": (60, "shutdown_timeout")}
"""Seconds after which a server ends a drain by force, unless its setting says otherwise."""


def owner(given: Supervisor | None) -> Supervisor:
    """Return the supervisor that an integration was given, or one with default settings where that is None.

    Raises:
        TypeError: It is something else.
    """
    if given is not None and not isinstance(given, Supervisor):  # pyright: ignore[reportUnnecessaryIsInstance]  # callers may be untyped
        message = f"supervisor must be a Supervisor, such as `Supervisor(drain_timeout=10)`, or None, not {given!r}"
        raise TypeError(message)
    return Supervisor() if given is None else given


class Served:
    """A supervisor opened for a server. Lives from the server's startup to its shutdown.

    The first SIGTERM or SIGINT makes `Supervisor.draining` true, before any server says so to
    the app. A further one cuts a drain that is under way: what is left is cancelled at once.
    In a worker process only SIGINT does so, because parents repeat SIGTERM; and SIGQUIT after
    SIGTERM, by which gunicorn says that it has lost its patience.

    Args:
        supervisor: The supervisor to open.
    """

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._replaced: dict[int, tuple[Callable[..., None], Any]] = {}
        self._noted: list[int] = []
        self._late: asyncio.TimerHandle | None = None
        self._server = _parent_server()
        self._told = self._raised = False  # of granian: that it has to end; by a SIGINT of ours

    async def __aenter__(self) -> Self:
        """Open the supervisor and listen."""
        self.open()
        await self.ready()
        return self

    async def ready(self) -> None:
        """Have the supervisor's engine connect; what it raises ends the start of the server."""
        try:
            await self._supervisor.ready()
        except BaseException:
            await self.close()
            raise

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        """Drain the supervisor, then stop listening."""
        await self.close()

    def open(self) -> None:
        """Open the supervisor on the running event loop, and listen."""
        self._supervisor.open()
        self._loop = asyncio.get_running_loop()
        if threading.current_thread() is threading.main_thread():  # nobody else may, or is told
            for signum in (*_SIGNALS, signal.SIGQUIT) if self._server == "gunicorn" else _SIGNALS:
                self._listen(signum)
            if self._server == "granian" and signal.SIGINT in self._replaced:
                self._loop.add_signal_handler(signal.SIGTERM, self._tell_once)
        self._compare_limits()

    async def close(self) -> None:
        """Drain the supervisor, then put back what handled the signals before."""
        if self._late is not None:
            self._late.cancel()
        try:
            await self._supervisor.close()
        finally:
            for signum, (handler, before) in self._replaced.items():
                if signal.getsignal(signum) is handler:  # else somebody has replaced it in turn
                    signal.signal(signum, before)
            self._replaced.clear()

    def _listen(self, signum: int) -> None:
        before = signal.getsignal(signum)
        if not callable(before) and (before is None or self._server != "hypercorn"):
            return  # nobody handles it, or something that cannot be called: the process's own affair

        def handler(number: int, frame: FrameType | None) -> None:
            self._told = True
            raised, self._raised = self._raised, False
            if not raised and not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._note, number)
            if callable(before):
                before(number, frame)

        self._replaced[signum] = (handler, before)
        signal.signal(signum, handler)
        signal.siginterrupt(signum, False)  # as the event loop has it

    def _tell_once(self) -> None:
        """Tell granian of a SIGTERM, by a SIGINT, unless it has been told.

        A terminal and systemd signal its whole group, upon which its parent repeats that as a SIGTERM. A
        worker that is told again in the moment in which its other threads look waits for them, and they for it.
        """
        self._note(signal.SIGTERM)
        if not self._told:
            self._raised = True
            signal.raise_signal(signal.SIGINT)

    def _note(self, signum: int) -> None:
        """Act on a signal; on the event loop."""
        self._noted.append(signum)
        name = signal.Signals(signum).name
        parent = multiprocessing.parent_process()
        if self._server == "hypercorn" and parent is not None and not parent.is_alive():
            self._leaving = self._loop.create_task(self._leave(signum))
        elif len(self._noted) == 1:
            self._supervisor._stopping = True
            self._late = self._loop.call_later(self._supervisor._launcher.timeout, self._warn_late, name)
        elif self._cuts(signum):
            left = self._left()
            if self._supervisor._cut():
                logger.warning("%s cuts the drain, which still waited for %s", name, left)
            else:  # uvicorn leaves without a shutdown after two SIGINTs
                logger.warning("%s again, before any shutdown: a server that leaves without one loses %s", name, left)

    def _cuts(self, signum: int) -> bool:
        """Say whether a signal that is not the first one means: now."""
        if self._server is None or signum == signal.SIGINT:
            return True
        return signum not in _SIGNALS and signal.SIGTERM in self._noted  # SIGQUIT: see above

    def _left(self) -> str:
        tasks = sorted(self._supervisor._launcher.tasks, key=lambda task: task._created)
        names = ", ".join(repr(task.name) for task in tasks[:SHOWN]) + (", ..." if len(tasks) > SHOWN else "")
        return f"{len(tasks)} unfinished task(s){': ' if names else ''}{names}"

    def _warn_late(self, name: str) -> None:
        """Name what is lost if the server is killed while it waits for a request, a stream or a websocket."""
        logger.warning(
            "%s came %g s ago, and the server has not begun its shutdown: a request, a stream or a websocket is open; "
            "if it is killed now, it loses %s",
            name,
            self._supervisor._launcher.timeout,
            self._left(),
        )

    async def _leave(self, signum: int) -> None:
        """End as a process that nobody else will tell to stop."""
        logger.error("hypercorn's parent process is gone: this worker drains, and ends")
        await self._supervisor.close()
        signal.signal(signum, signal.SIG_DFL)
        os.kill(os.getpid(), signum)

    def _compare_limits(self) -> None:
        """Say so where the server would end the drain before its own deadline."""
        launcher = self._supervisor._launcher
        needed = launcher.timeout + launcher.grace
        server = "gunicorn" if _is_gunicorn() else "hypercorn" if _is_hypercorn() else None
        if server is not None and needed >= (limit := _LIMITS[server][0]):
            logger.warning(
                "the drain may take %g s (drain_timeout and cancel_grace), and %s ends a shutdown after %d s "
                "unless its %s says otherwise: set that higher",
                needed,
                server,
                limit,
                _LIMITS[server][1],
            )


def _parent_server() -> str | None:
    """Return the server whose parent process started this one, as far as it matters; None in a process of its own."""
    if _is_gunicorn():
        return "gunicorn"
    if multiprocessing.parent_process() is None:
        return None
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        return "hypercorn" if _is_hypercorn() else "other"
    return "granian" if _is_granian() else "other"


def _is_gunicorn() -> bool:
    return "gunicorn.arbiter" in sys.modules and os.environ.get("SERVER_SOFTWARE", "").startswith("gunicorn/")


def _is_hypercorn() -> bool:
    return "hypercorn.asyncio.run" in sys.modules


def _is_granian() -> bool:
    return "granian.server.mp" in sys.modules and sys.platform != "win32"  # where loops handle no signals
