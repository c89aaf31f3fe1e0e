"""Odd callables, odd awaitables, odd arguments: of the same kinds as the listed ones, and stranger."""

import asyncio
import contextvars
import functools
import inspect
import operator
import types
from collections.abc import Coroutine
from unittest import mock

import pytest

from deferred import Supervisor, SupervisorClosedError, TaskState, defer
from tests.faults.support import (
    BoomError,
    Told,
    fine,
    loop_errors,
    nothing_left,
    settled,
    turns,
)


@functools.singledispatch
async def dispatched(value):
    """Be a function that is chosen by its argument."""
    return "anything"


@dispatched.register
async def _(value: int):
    return "a number"


class Service:
    """Has every kind of method."""

    @classmethod
    async def of_class(cls, value):
        """Be a class method."""
        return cls.__name__, value

    @staticmethod
    async def static(value):
        """Be a static method."""
        return value

    @functools.singledispatchmethod
    async def chosen(self, value):
        """Be chosen by the argument."""
        raise AssertionError

    @chosen.register
    async def _(self, value: int):
        return "a number"

    @functools.cache  # noqa: B019  # the method of a test
    def remembered(self, value):
        """Be a method that is called once."""
        return value

    async def method(self, first, second):
        """Be a bound method."""
        return first, second

    partial = functools.partialmethod(method, "first")


class Awaited:
    """An instance is awaitable, so the class is a function that gives one."""

    def __init__(self, value):
        self.value = value

    def __await__(self):
        yield
        return self.value


class Meta(type):
    """A metaclass that makes calling a class asynchronous."""

    async def __call__(cls, value):
        """Be called in place of the class."""
        return cls, value


class Asynchronous(metaclass=Meta):
    """A class whose call is a coroutine."""


@types.coroutine
def from_generator(value):
    """Be a coroutine of the old kind."""
    yield
    return value


def marked(value):
    """Be a function that says of itself that it is asynchronous, where Python knows that (3.12)."""
    return fine(value)


getattr(inspect, "markcoroutinefunction", id)(marked)


def decorated(function):
    """Wrap an async function into one that is not."""

    @functools.wraps(function)
    def call(*args, **kwargs):
        return function(*args, **kwargs)

    return call


CALLABLES = {
    "singledispatch, by the argument": (dispatched, (1,), "a number"),
    "singledispatch, by default": (dispatched, ("x",), "anything"),
    "singledispatchmethod": (Service().chosen, (1,), "a number"),
    "class method": (Service.of_class, (1,), ("Service", 1)),
    "static method": (Service().static, (1,), 1),
    "partialmethod": (Service().partial, ("second",), ("first", "second")),
    "cached method": (Service().remembered, (1,), 1),
    "partial of a partial": (functools.partial(functools.partial(fine), 1), (), 1),
    "partial of a bound method": (functools.partial(Service().method, 1), (2,), (1, 2)),
    "class of awaitables": (Awaited, (1,), 1),
    "generator-based coroutine": (from_generator, (1,), 1),
    "partial of a generator-based coroutine": (functools.partial(from_generator, 1), (), 1),
    "bound generator-based coroutine": (types.MethodType(from_generator, 1), (), 1),
    "marked as a coroutine function": (marked, (1,), 1),
    "plain wrapper of an async function": (decorated(fine), (1,), 1),
    "lambda that makes a coroutine": (lambda value: fine(value), (1,), 1),
    "builtin": (len, ("four",), 4),
    "builtin method": ([3, 1].index, (1,), 1),
    "slot wrapper": (int.__add__, (1, 2), 3),
    "method of an instance of a builtin": ((1).__add__, (2,), 3),
    "operator.methodcaller": (operator.methodcaller("upper"), ("a",), "A"),
    "operator.attrgetter": (operator.attrgetter("real"), (7,), 7),
    "type": (int, ("7",), 7),
    "AsyncMock": (mock.AsyncMock(return_value=7), (), 7),
    "Mock": (mock.Mock(return_value=7), (), 7),
    "contextvars.Context.run": (contextvars.Context().run, (len, "four"), 4),
}


@pytest.mark.parametrize("what", CALLABLES)
async def test_callables(what):
    """A21, A32: whatever can be called is run with its arguments, and what it gives is awaited where it can be."""
    func, args, expected = CALLABLES[what]
    async with Supervisor() as supervisor:
        with supervisor.context() as ctx:
            handle = ctx.defer(func, *args)
            again = ctx.with_options(timeout=60).defer(func, *args)
        assert await handle == await again == expected
    assert nothing_left(supervisor)


async def test_a_class_with_a_metaclass_of_its_own():
    """A21: a class whose call is a coroutine is called, and that awaited."""
    async with Supervisor() as supervisor:
        with supervisor.context() as ctx:
            handle = ctx.defer(Asynchronous, 1)
        assert await handle == (Asynchronous, 1)


async def test_arguments_named_as_ours():
    """S14: keyword arguments belong to the function, whatever they are called."""

    async def work(**given):
        return given

    names = {
        name: name for name in ("self", "func", "args", "kwargs", "task", "timeout", "name", "retry", "context", "loop")
    }
    async with Supervisor() as supervisor:
        with supervisor.context() as ctx:
            handles = [ctx.defer(work, **names), defer(work, **names), await ctx.run(work, **names)]
        assert [await handle for handle in handles] == [names] * 3


async def test_many_and_large_arguments():
    """S1: thousands of arguments, and very large ones, reach the function as the very objects."""
    large = bytes(10_000_000)

    async def work(*args, **kwargs):
        return args, kwargs

    async with Supervisor() as supervisor:
        with supervisor.context() as ctx:
            handle = ctx.defer(work, *range(5000), large, **{f"k{number}": number for number in range(5000)})
        args, kwargs = await handle
    assert args[-1] is large
    assert (len(args), len(kwargs)) == (5001, 5000)


class Foreign(Coroutine):
    """A coroutine of another language, as compiled extensions make them: equal to nothing, hashed by nothing."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, value):
        self.value = value

    def __eq__(self, other):
        raise AssertionError

    def send(self, _value):
        """End at once."""
        raise StopIteration(self.value)

    throw = close = None

    def __await__(self):
        return self

    __next__ = functools.partialmethod(send, None)


class BadIterator:
    """Is awaitable by name alone."""

    def __await__(self):
        return 7


class BadYield:
    """Yields what no event loop knows."""

    def __await__(self):
        yield "what is this"


class BadAwait:
    """Raises when it is awaited, before there is anything to wait for."""

    def __await__(self):
        raise BoomError("boom")


AWAITABLES = {
    "task": lambda: asyncio.ensure_future(fine(1)),
    "future": lambda: _done(1),
    "gather": lambda: asyncio.gather(fine(1)),
    "shield": lambda: asyncio.shield(fine(1)),
    "wait_for": lambda: asyncio.wait_for(fine(1), 60),
    "to_thread": lambda: asyncio.to_thread(int, 1),
    "run_in_executor": lambda: asyncio.get_running_loop().run_in_executor(None, int, 1),
    "wrapped future of a thread": lambda: asyncio.wrap_future(_thread_done(1)),
    "generator-based coroutine": lambda: from_generator(1),
    "object": lambda: Awaited(1),
    "handle": lambda: defer(fine, 1),
    "queue": lambda: _filled(1).get(),
}


def _done(value):
    future = asyncio.get_running_loop().create_future()
    future.set_result(value)
    return future


def _thread_done(value):
    import concurrent.futures

    future = concurrent.futures.Future()
    future.set_result(value)
    return future


def _filled(value):
    queue = asyncio.Queue()
    queue.put_nowait(value)
    return queue


@pytest.mark.parametrize("what", AWAITABLES)
async def test_awaitables(what):
    """A34: whatever can be awaited is, and its result is the task's."""
    async with Supervisor() as supervisor:
        with supervisor.context() as ctx:
            handle = ctx.wait_until(AWAITABLES[what]())
        assert await handle in (1, [1])
    assert nothing_left(supervisor)


async def test_a_foreign_coroutine():
    """A34: a coroutine that Python has not made is awaited, however it compares and hashes."""
    async with Supervisor() as supervisor:
        with supervisor.context() as ctx:
            handle = ctx.wait_until(Foreign(1))
        assert await handle == 1
    assert nothing_left(supervisor)


@pytest.mark.parametrize(("kind", "error"), [(BadIterator, TypeError), (BadYield, RuntimeError), (BadAwait, BoomError)])
async def test_awaitables_that_are_none(kind, error):
    """A34, A01: what breaks as it is awaited is a failed task, told once, and the others run."""
    told = Told()
    with loop_errors() as loose:
        async with Supervisor(on_error=told) as supervisor:
            with supervisor.context() as ctx:
                bad, good = ctx.wait_until(kind()), ctx.defer(fine)
            assert await settled(bad, good) == [TaskState.FAILED, TaskState.SUCCEEDED]
    assert [type(found) for found in told.errors] == [error]
    assert loose == []


async def test_ways_to_wait_for_a_handle():
    """S1: a handle can be gathered, shielded, waited for with a limit, and awaited any number of times."""
    async with Supervisor() as supervisor:
        with supervisor.context() as ctx:
            handle = ctx.defer(fine, 1)
            waiting = asyncio.gather(handle, handle, asyncio.shield(handle), asyncio.wait_for(handle, 60))
            await turns(3)
        assert await waiting == [1] * 4
        assert await handle == 1


async def test_a_context_that_drains_itself():
    """S7: a task that drains its own context, by `wait_until` or `defer`, waits for the others alone."""
    async with Supervisor() as supervisor:
        with supervisor.context() as ctx:
            other = ctx.defer(fine)
            handles = [
                ctx.wait_until(ctx.drained()),
                ctx.defer(ctx.drained),
                ctx.with_options(timeout=9).defer(ctx.drained),
            ]
        assert await settled(other, *handles) == [TaskState.SUCCEEDED] * 4
    assert nothing_left(supervisor)


async def test_a_task_that_closes_its_supervisor():
    """S11: a task may close the supervisor it runs in; what comes later is refused."""
    async with Supervisor() as supervisor:
        with supervisor.context() as ctx:
            handle, other = ctx.defer(supervisor.close), ctx.defer(fine)
        assert await settled(handle, other) == [TaskState.SUCCEEDED] * 2
        with pytest.raises(SupervisorClosedError), supervisor.context() as late:
            late.defer(fine)
    assert nothing_left(supervisor)


@pytest.mark.parametrize("depth", [1, 50])
async def test_drains_inside_drains(depth):
    """S7, S11: tasks that each register the next and drain end, all of them, under one drain."""
    ended = []

    async def nest(level):
        if level:
            defer(nest, level - 1)
        await supervisor.drain()
        ended.append(level)

    async with Supervisor() as supervisor:
        with supervisor.context() as ctx:
            ctx.defer(nest, depth)
    assert sorted(ended) == list(range(depth + 1))
    assert nothing_left(supervisor)
