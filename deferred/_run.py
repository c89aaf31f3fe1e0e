"""One task, from its first attempt to its last.

Rules of this file: nothing a task raises leaves it, `SystemExit` and `KeyboardInterrupt`
included, because servers go down with an asyncio task that raises these; whatever happens,
the task is settled, once; timeouts are `asyncio.timeout`, which keeps the work in its own
asyncio task; every wait between attempts can be cut short by a drain.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor, Future
from contextlib import AbstractAsyncContextManager
from contextvars import Context, copy_context
from functools import partial
from typing import Any, Protocol

from deferred._call import Kind
from deferred._events import Outcome, TaskRetrying, TaskStarted
from deferred._hooks import Hooks
from deferred._offload import shares_memory
from deferred._retry import RetryPolicy, Verdict, seconds
from deferred._task import Clock, Middleware, TaskHandle, runner_codes, running_task, task_here
from deferred.exceptions import NonRetryableError

__all__ = ["Runtime", "current_task", "enclosing_task", "find_runner", "run_inline", "run_plain", "run_task"]

logger = logging.getLogger("deferred")

VERDICT_TIMEOUT = 5.0
"""Seconds that an asynchronous retry predicate may take (the bound of Cloudflare Workflows)."""

_ASYNC = Kind.ASYNC
_OK = Outcome.SUCCEEDED


def current_task() -> TaskHandle[Any] | None:
    """Return the task that runs this code, or None outside deferred work.

    Its `attempts`, `name`, `id` and `scope` are those of the attempt under way. Code in an
    asyncio task that the work has started by itself (a `gather`) finds it only where something,
    a timeout or a scope, is around the attempt: hand it on to there.

    Example:
        >>> current_task() is None
        True
    """
    try:
        runner = asyncio.current_task()
    except RuntimeError:  # a thread: its context variables are the task's own
        runner = None
    if runner is not None:
        # A plain task sets no variable, which costs more than all else it does: it is found
        # as the argument of the coroutine that runs it.
        frame = getattr(runner.get_coro(), "cr_frame", None)
        if frame is not None and frame.f_code is run_plain.__code__:
            found: TaskHandle[Any] = frame.f_locals["task"]
            steps: dict[TaskHandle[Any], TaskHandle[Any] | None] = frame.f_locals["runtime"].steps
            step = running_task.get(None) if steps else None
            return step if step is not None and steps.get(step) is found else found
    return running_task.get(None)


def enclosing_task() -> TaskHandle[Any] | None:
    """Return the task that cannot end before this code has: the one around a step in line, not the step."""
    return task_here() or current_task()


class Runtime(Protocol):
    """What running a task needs of its supervisor."""

    hooks: Hooks
    now: Clock
    between: set[TaskHandle[Any]]  # those that wait between two attempts
    dressed: int  # how many tasks run by `run_task` and `run_inline`
    steps: dict[TaskHandle[Any], TaskHandle[Any] | None]  # those under way in `run_inline`, and the tasks around them

    @property
    def offload(self) -> Executor:
        """Where synchronous functions run."""
        ...

    @property
    def task_scope(self) -> Callable[..., AbstractAsyncContextManager[Any]] | None:
        """What is entered around every attempt."""
        ...

    def takes_over(self, task: TaskHandle[Any], /) -> bool:
        """Say whether `task` is stored if a drain cannot finish it."""
        ...

    def succeed(self, task: TaskHandle[Any], /) -> None:
        """Bring `task`, which has returned, to its end."""
        ...

    def settle(self, task: TaskHandle[Any], outcome: Outcome, /) -> None:
        """Bring `task` to its end."""
        ...


async def run_plain(task: TaskHandle[Any], runtime: Runtime) -> None:
    """Run a task that is one plain coroutine: one attempt with nothing around it."""
    task._attempts = 1
    hooks = runtime.hooks
    if hooks.timed:  # what _tell_started() does
        task._started = now = runtime.now()
        if hooks.started:
            hooks.emit(TaskStarted(task, 1, at=now))
    try:
        if task._kind is not _ASYNC:
            task._value = await task._work
        elif task._kwargs:
            task._value = await task._work(*task._args, **task._kwargs)
        else:
            task._value = await task._work(*task._args)
    except BaseException as error:  # noqa: BLE001  # the rule of this file
        runtime.settle(task, _ending(task, error))
        del task  # its error holds the frame that it was raised in, and that one holds this one
    else:
        runtime.succeed(task)


def _tell_started(task: TaskHandle[Any], runtime: Runtime) -> None:
    """Note when an attempt began, for whoever wants to know."""
    task._started = now = runtime.now()
    if runtime.hooks.started:
        runtime.hooks.emit(TaskStarted(task, task._attempts, at=now))


async def run_task(task: TaskHandle[Any], runtime: Runtime) -> None:
    """Run a task with all that its options ask for."""
    running_task.set(task)
    runtime.dressed += 1
    try:
        ending = await _all_attempts(task, runtime)
    except BaseException as error:  # noqa: BLE001  # the rule of this file
        ending = _ending(task, error)
    finally:
        runtime.dressed -= 1
    runtime.settle(task, ending)


async def run_inline(task: TaskHandle[Any], runtime: Runtime) -> None:
    """Run a step inside the caller's own asyncio task, and raise what it raises."""
    around = current_task()
    if around is not None:
        around = runtime.steps.get(around, around)  # the outermost one
    runtime.steps[task] = around
    runner = id(asyncio.current_task())  # who refers to it keeps it alive
    outer = running_task.set(task)
    runtime.dressed += 1
    try:
        ending = await _all_attempts(task, runtime)
    except BaseException as error:
        runtime.settle(task, _ending(task, error, runner))
        raise
    finally:
        runtime.dressed -= 1
        del runtime.steps[task]
        with contextlib.suppress(ValueError):  # Python closes it, with the variables of whoever let go of it
            running_task.reset(outer)
    runtime.settle(task, ending)
    if task._error is not None:
        raise task._error


async def _all_attempts(task: TaskHandle[Any], runtime: Runtime) -> Outcome:
    """Attempt within the policy's total time; return how it ended."""
    policy = task._options.retry
    started = runtime.now()
    redelivery = task._options.redelivery
    if redelivery is not None:
        task._attempts = redelivery.attempts
        started -= redelivery.elapsed
    limit = None if policy is None else policy.timeout
    budget = None if limit is None else started + seconds(limit, "the timeout of the retry policy")
    # A delivery may come late: the policy's total time then ends the retries, not the attempt.
    total = asyncio.timeout_at(budget if redelivery is None else None)
    try:
        async with total:
            return await _until_done(task, runtime, started, budget)
    except TimeoutError as error:  # of the total: those of attempts are judged there
        task._error = _trimmed(error)
        return Outcome.TIMED_OUT


async def _until_done(task: TaskHandle[Any], runtime: Runtime, started: float, budget: float | None) -> Outcome:
    while True:
        task._attempts += 1
        if runtime.hooks.timed:
            _tell_started(task, runtime)
        limit = asyncio.timeout(task._options.timeout)
        try:
            async with limit:
                task._value = await _attempt(task, runtime)
        except (asyncio.CancelledError, GeneratorExit, KeyboardInterrupt, SystemExit):
            raise  # never retried, whatever the policy says
        except BaseException as error:  # noqa: BLE001  # judged below
            task._error = _trimmed(error)
        else:
            task._error = None
            return _OK
        if task._outcome is not None:
            return task._outcome  # abandoned meanwhile: nobody waits for another attempt
        outcome = await _before_next(task, runtime, started, budget, timed_out=limit.expired())
        if outcome is not None:
            return outcome


async def _before_next(
    task: TaskHandle[Any], runtime: Runtime, started: float, budget: float | None, *, timed_out: bool
) -> Outcome | None:
    """Say why there is no further attempt, or wait until it is due and return None."""
    error: Any = task._error
    outcome, delay = await _judge(task, error, runtime.now() - started, timed_out=timed_out)
    if outcome is not None:
        return outcome
    redelivery, deadline = task._options.redelivery, task._unit.deadline
    if budget is not None and runtime.now() + delay >= budget:
        return Outcome.EXHAUSTED_DEADLINE
    if redelivery is None and deadline is not None and runtime.now() + delay >= deadline:
        return _cut_short(task, runtime)
    runtime.hooks.emit(TaskRetrying(task, error, task._attempts, delay, at=runtime.now()))
    if redelivery is not None:  # the wait is the engine's
        redelivery.delay = delay
        return Outcome.POSTPONED
    return None if await _backoff(task, runtime, delay) else _cut_short(task, runtime)


def _cut_short(task: TaskHandle[Any], runtime: Runtime) -> Outcome:
    """Return how a task ends whose next attempt would come after the deadline of a drain."""
    return Outcome.CANCELLED_BY_DRAIN if runtime.takes_over(task) else Outcome.EXHAUSTED_DEADLINE


async def _attempt(task: TaskHandle[Any], runtime: Runtime) -> Any:  # the user's result
    call: Callable[[], Awaitable[Any]] = partial(_invoke, task, runtime)
    if runtime.task_scope is not None:
        call = partial(_scoped, runtime.task_scope, task, call)
    for middleware in reversed(task._options.middleware):
        call = partial(_through, middleware, task, call)
    return await call()


async def _through(
    middleware: Middleware, task: TaskHandle[Any], call: Callable[[], Awaitable[Any]]
) -> Any:  # the user's result
    async def call_next(_task: object = None, /) -> Any:  # the user's result
        return await call()

    answer = middleware(task, call_next)
    if not inspect.isawaitable(answer):
        message = f"the middleware {middleware!r} must be an `async def`, it returned {type(answer).__name__}"
        raise TypeError(message)
    return await answer


async def _scoped(
    factory: Callable[..., AbstractAsyncContextManager[Any]],
    task: TaskHandle[Any],
    call: Callable[[], Awaitable[Any]],
) -> Any:  # the user's result
    async with factory(task) as scope:
        task._scope = scope
        try:
            return await call()
        finally:
            task._scope = None


async def _invoke(task: TaskHandle[Any], runtime: Runtime) -> Any:  # the user's result
    if task._kind is _ASYNC:
        return await task._work(*task._args, **task._kwargs)
    if task._kind is Kind.AWAITABLE:
        return await task._work
    call: Callable[[], Any] = partial(task._work, *task._args, **task._kwargs)
    executor = runtime.offload
    submit: Callable[..., Future[Any]] = executor.submit
    if shares_memory(executor):
        call = partial(copy_context().run, call)
    else:
        submit = partial(Context().run, submit)  # a process that is forked for it serves others later: it inherits none
    value = await _in_thread(task, submit, call)
    return await value if inspect.isawaitable(value) else value


async def _in_thread(
    task: TaskHandle[Any], submit: Callable[..., Future[Any]], call: Callable[[], Any]
) -> Any:  # the user's result
    """Wait for a thread; it cannot be interrupted, so a cancelled task stays until it is done."""
    thread = submit(call)
    future = asyncio.wrap_future(thread)
    while True:
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            # Without a stop from outside it was a timeout: that attempt is over, its thread is not.
            if future.done() or task._stopped_by is None or thread.cancel():
                future.add_done_callback(partial(_tell_late, task))
                raise


def _tell_late(task: TaskHandle[Any], future: asyncio.Future[Any]) -> None:
    """Log what a thread has raised after its attempt was over."""
    if not future.cancelled() and (error := future.exception()) is not None:
        logger.warning("a thread of task %r, left behind by its attempt, has failed", task.name, exc_info=error)


async def _judge(  # noqa: PLR0911  # a list of reasons
    task: TaskHandle[Any], error: BaseException, elapsed: float, *, timed_out: bool
) -> tuple[Outcome | None, float]:
    """Say why nothing more is to be tried, or after how many seconds to try again."""
    policy = task._options.retry
    if _gives_up(error):
        return Outcome.NON_RETRYABLE, 0.0
    if policy is None:
        return (Outcome.TIMED_OUT if timed_out else Outcome.FAILED), 0.0
    if task._stopped_by is not None:
        return Outcome.FAILED, 0.0  # cancelled, and it made another error of that
    try:
        verdict = True if timed_out else await _ask(policy, error)
        if verdict is False:
            return Outcome.FAILED, 0.0
        if policy.exhausted(task._attempts, elapsed):
            return Outcome.EXHAUSTED_ATTEMPTS, 0.0
        delay = policy.delay(task._attempts, error) if verdict is True else verdict
        return None, seconds(delay, "the delay of the retry policy", zero=True)
    except BaseException as failure:
        if isinstance(failure, asyncio.CancelledError) and _being_cancelled():
            raise
        logger.exception("the retry policy of task %r failed: the task is not retried", task.name)
        return Outcome.NON_RETRYABLE, 0.0


def _gives_up(error: BaseException) -> bool:
    """Say whether the work has asked for no further attempt; one of the errors of a group is enough."""
    errors = [error]
    while errors:
        error = errors.pop()
        if isinstance(error, NonRetryableError):
            return True
        if issubclass(type(error), BaseExceptionGroup):  # not one that only says it is
            group: Any = error
            errors.extend(group.exceptions)
    return False


def _being_cancelled() -> bool:
    """Say whether somebody has asked the current asyncio task to end, and not just raised a CancelledError."""
    runner = asyncio.current_task()
    return runner is not None and runner.cancelling() > 0


async def _ask(policy: RetryPolicy, error: BaseException) -> bool | float:
    answer = policy.verdict(error)
    if inspect.isawaitable(answer):
        async with asyncio.timeout(VERDICT_TIMEOUT):
            answer = await answer
    verdict: Verdict = answer
    if verdict is None or isinstance(verdict, bool):
        return bool(verdict)
    return seconds(verdict, "the delay that the retry predicate returned", zero=True)


async def _backoff(task: TaskHandle[Any], runtime: Runtime, delay: float) -> bool:
    """Wait before the next attempt; False when a drain cut the wait short."""
    loop = asyncio.get_running_loop()
    waiter: asyncio.Future[bool] = loop.create_future()
    timer = loop.call_later(delay, _wake, waiter)
    task._retry_at = runtime.now() + delay
    task._backoff = waiter
    runtime.between.add(task)
    try:
        return await waiter
    finally:
        timer.cancel()
        task._backoff = None
        runtime.between.discard(task)


def _wake(waiter: asyncio.Future[bool]) -> None:
    if not waiter.done():
        waiter.set_result(True)


def _ending(task: TaskHandle[Any], error: BaseException, runner: int | None = None) -> Outcome:
    """Return the outcome that this exception, out of the work itself, means.

    Args:
        task: The task.
        error: What came out of it.
        runner: The id of the asyncio task that a step in line is in.
    """
    task._error = _trimmed(error)
    if isinstance(error, asyncio.CancelledError):
        return task._stopped_by or Outcome.CANCELLED_BY_ITSELF
    if runner is None and task._runner is not None:
        runner = id(task._runner)
    if isinstance(error, GeneratorExit) and _destroyed(runner):
        return Outcome.ABANDONED
    if _gives_up(error):
        return Outcome.NON_RETRYABLE
    return Outcome.FAILED


def find_runner(task: TaskHandle[Any]) -> asyncio.Task[Any] | None:
    """Return the asyncio task of one that is in its first, eager step, when nobody holds it yet."""
    for runner in asyncio.all_tasks():
        frame = getattr(runner.get_coro(), "cr_frame", None)
        if frame is not None and frame.f_code in runner_codes and frame.f_locals["task"] is task:
            return runner
    return None


def _destroyed(runner: int | None) -> bool:
    """Say whether Python is closing the coroutine in this asyncio task, outside of it: nobody raised that."""
    try:
        return runner is not None and runner != id(asyncio.current_task())
    except RuntimeError:  # no running loop
        return True


def _trimmed(error: BaseException) -> BaseException:
    """Cut this file's frames off the traceback: it then starts where the user's code does."""
    with contextlib.suppress(Exception):  # an error may refuse to be looked at or changed: it keeps our frames
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
            trace = trace.tb_next
        if trace is not None:
            error.__traceback__ = trace
    return error


runner_codes.update({run_plain.__code__, run_task.__code__, run_inline.__code__})
