"""Starlette: the middleware, and background tasks that run on the context.

Works with Starlette 0.29 to 1.10. Three ways in, which may be mixed::

    Starlette(middleware=[Middleware(DeferredMiddleware, supervisor=supervisor)])
    app.add_middleware(DeferredMiddleware, supervisor=supervisor)
    app = DeferredMiddleware(app, supervisor)

All of them drain before the app's own lifespan closes. The last one stands outside of
Starlette's own error page, so work waits for that to be sent too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, ParamSpec

from starlette import background

from deferred._call import check_callable
from deferred.integrations._background import Chain, Site, Work, caller, hand_over
from deferred.integrations.asgi import DeferredMiddleware, deferred_from

__all__ = ["BackgroundTask", "BackgroundTasks", "DeferredMiddleware", "deferred_from"]

P = ParamSpec("P")


class BackgroundTask(background.BackgroundTask):
    """Starlette's `BackgroundTask`, run on the context of the request it was sent with.

    It is registered when the response that carries it is out: it is retried as the supervisor's
    default says, its failure is logged and told to the hooks, and the shutdown waits for it.
    Without the middleware it runs as Starlette's own does, and one warning says so. It lives as
    long as its response, or longer, for one may serve many responses.

    Example:
        >>> from starlette.responses import PlainTextResponse
        >>> response = PlainTextResponse("now", background=BackgroundTask(print, "after the answer"))
    """

    _site = Site()

    def __init__(self, func: Callable[P, Any], *args: P.args, **kwargs: P.kwargs) -> None:
        check_callable(func, "BackgroundTask")
        super().__init__(func, *args, **kwargs)
        self._site = caller()

    async def __call__(self) -> None:
        """Hand the task over to the context; run it here where there is none."""
        if await hand_over(self._works()):
            await super().__call__()

    def _works(self) -> Iterator[Work]:
        yield Work(self.func, self.args, self.kwargs, self._site)


class BackgroundTasks(background.BackgroundTasks):
    """Starlette's `BackgroundTasks`, run on the context of the request they were sent with.

    They run one after the other, as Starlette's do, but a failure does not stop those behind
    it. It lives as long as its response.

    Example:
        >>> tasks = BackgroundTasks()
        >>> tasks.add_task(print, "after the answer")
        >>> [task.func.__name__ for task in tasks.tasks]
        ['print']
    """

    _chain: Chain | None = None

    def __init__(self, tasks: Sequence[background.BackgroundTask] | None = None) -> None:
        super().__init__(tasks)

    def add_task(self, func: Callable[P, Any], *args: P.args, **kwargs: P.kwargs) -> None:
        """Add a function to be called with these arguments once the response is out, after those added before.

        Raises:
            TypeError: `func` is no function that could be run.
        """
        check_callable(func, "add_task")
        task = BackgroundTask(func, *args, **kwargs)
        task._site = caller()
        if self._chain is None or not self._chain.take(next(task._works())):
            self.tasks.append(task)

    async def __call__(self) -> None:
        """Hand the tasks over to the context; run here what it does not take."""
        added = len(self.tasks)
        self._chain = Chain()
        for work in await hand_over(self._works(), self._chain):
            await background.BackgroundTask(work.func, *work.args, **work.kwargs)()
        while added < len(self.tasks):  # by those that have run here
            await self.tasks[added]()
            added += 1

    def _works(self) -> Iterator[Work]:
        for task in self.tasks:
            call = type(task).__call__
            if isinstance(task, BackgroundTask | BackgroundTasks) and call in _OURS:
                yield from task._works()
            elif call is background.BackgroundTask.__call__:
                yield Work(task.func, task.args, task.kwargs)
            else:  # it knows best what calling it does
                yield Work(task)


_OURS = (BackgroundTask.__call__, BackgroundTasks.__call__)
