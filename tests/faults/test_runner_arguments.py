"""What may be handed over, and what is refused at the call: A21, A29 to A36."""

import asyncio
import concurrent.futures
import functools
import gc
import types
import warnings
from unittest.mock import AsyncMock, MagicMock

import pytest

from deferred import ContextClosedError, Retry, Supervisor, TaskState, defer, wait_until
from tests.faults.support import fine, nothing_left, outcome_of, settled


class Callable:
    """An object with an asynchronous ``__call__``."""

    async def __call__(self, value=1):
        """Return it."""
        await asyncio.sleep(0)
        return value

    async def method(self, value=1):
        """Return it."""
        return value

    @classmethod
    async def of_class(cls, value=1):
        """Return it."""
        return value

    @staticmethod
    async def of_nobody(value=1):
        """Return it."""
        return value

    part = functools.partialmethod(method, 7)


class Awaitable:
    """Something with ``__await__`` alone."""

    def __await__(self):
        """Return after a turn."""
        yield from asyncio.sleep(0).__await__()
        return "awaited"


class Proxy:
    """An awaitable that raises at every other attribute, as unbound proxies do."""

    def __getattr__(self, name):
        raise RuntimeError("unbound")

    def __await__(self):
        """Return after a turn."""
        yield from asyncio.sleep(0).__await__()
        return "awaited"


class EvilText(str):
    """A text that cannot be shown."""

    __slots__ = ()

    def __str__(self):
        raise ValueError("no text")

    __repr__ = __str__


class OddText(str):
    """A text that is equal to itself alone."""

    __slots__ = ()
    __hash__ = str.__hash__
    __eq__ = object.__eq__


def sync(value=1):
    """Be a plain function."""
    return value


def sync_that_returns_a_coroutine(value=1):
    """Be what many decorators make of an async function."""
    return fine(value)


def wrapped(func):
    """Decorate as most do."""

    @functools.wraps(func)
    def wrapper(*args, **kwargs):
        return func(*args, **kwargs)

    return wrapper


@types.coroutine
def old_style():
    """Be a coroutine of old."""
    yield from asyncio.sleep(0).__await__()
    return 1


FUNCTIONS = {
    "async": (fine, (1,), 1),
    "sync": (sync, (1,), 1),
    "builtin": (len, ("abc",), 3),
    "method of a builtin": ([1, 2].count, (1,), 1),
    "class": (dict, (), {}),
    "callable object": (Callable(), (), 1),
    "bound method": (Callable().method, (), 1),
    "class method": (Callable.of_class, (), 1),
    "static method": (Callable.of_nobody, (), 1),
    "static method itself": (Callable.__dict__["of_nobody"], (), 1),
    "partial method": (Callable().part, (), 7),
    "partial": (functools.partial(fine, 5), (), 5),
    "partial of partial": (functools.partial(functools.partial(fine), 5), (), 5),
    "partial of a bound method": (functools.partial(Callable().method, 5), (), 5),
    "partial of an object": (functools.partial(Callable(), 5), (), 5),
    "partial of a class": (functools.partial(dict, a=1), (), {"a": 1}),
    "lambda": (lambda: 4, (), 4),
    "lambda that returns a coroutine": (lambda: fine(4), (), 4),
    "returns a coroutine": (sync_that_returns_a_coroutine, (), 1),
    "decorated": (wrapped(fine), (1,), 1),
    "async mock": (AsyncMock(return_value=1), (), 1),
    "mock": (MagicMock(return_value=1), (), 1),
    "single dispatch": (functools.singledispatch(fine), (1,), 1),
    "cached": (functools.lru_cache(sync), (), 1),
    "old style": (old_style, (), 1),
    "itself asyncio": (asyncio.sleep, (0, 1), 1),
}


class TestCallables:
    @pytest.mark.parametrize("kind", FUNCTIONS)
    @pytest.mark.parametrize("layered", [False, True])
    async def test_what_can_be_deferred(self, kind, layered):
        """A21, A34: every kind of function runs, and the handle gives its result."""
        func, args, expected = FUNCTIONS[kind]
        async with Supervisor() as supervisor:
            with supervisor.context() as ctx:
                view = ctx.with_options(timeout=60, retry=Retry(on=OSError)) if layered else ctx
                handle = view.defer(func, *args)
            assert await handle == expected
            assert isinstance(handle.name, str)
        assert nothing_left(supervisor)

    @pytest.mark.parametrize(
        "make",
        [
            lambda: fine(),
            lambda: _asynchronous_generator(),
            lambda: _asynchronous_generator,
            lambda: _generator,
            lambda: _generator(),
            lambda: functools.partial(_asynchronous_generator),
            lambda: 3,
            lambda: None,
            lambda: "fine",
            lambda: EvilText("fine"),
            lambda: Awaitable(),
            lambda: concurrent.futures.Future(),
        ],
    )
    async def test_what_cannot(self, make):
        """A29, A32, A33, A36: what is no function is a TypeError at the call, and its coroutine is closed."""
        async with Supervisor() as supervisor:
            with supervisor.context() as ctx:
                for register in (ctx.defer, defer, ctx.run):
                    work = make()
                    with pytest.raises(TypeError):
                        register(work)
                    if isinstance(work, types.CoroutineType):
                        assert work.cr_frame is None
        assert supervisor.stats().failed == 0

    async def test_their_own_arguments(self):
        """A21: every keyword belongs to the function, also those that options have."""

        async def takes(**kwargs):
            return kwargs

        mine = {"name": 1, "retry": 2, "timeout": 3, "func": 4, "self": 5, "when": 6, "args": 7}
        async with Supervisor() as supervisor:
            with supervisor.context() as ctx:
                handles = [ctx.defer(takes, **mine), defer(takes, **mine), await ctx.run(takes, **mine)]
            assert [await handle for handle in handles] == [mine] * 3

    async def test_wrong_arguments(self):
        """A21: arguments that the function refuses fail the task, in the loop and in a thread."""
        async with Supervisor() as supervisor:
            with supervisor.context() as ctx:
                handles = [ctx.defer(fine, 1, 2, 3), ctx.defer(sync, 1, 2, 3)]
            answers = [await outcome_of(_wait(handle)) for handle in handles]
        assert [type(answer) for answer in answers] == [TypeError] * 2


class TestAwaitables:
    @pytest.mark.parametrize(
        "make",
        [
            lambda: fine(1),
            lambda: asyncio.ensure_future(fine(1)),
            lambda: _done_future(1),
            lambda: asyncio.gather(fine(1)),
            Awaitable,
            Proxy,
            old_style,
            lambda: asyncio.shield(fine(1)),
            lambda: _asynchronous_generator().__anext__(),
            lambda: asyncio.wrap_future(_done_in_thread(1)),
            lambda: AsyncMock(return_value=1)(),
        ],
    )
    async def test_what_can_be_waited_for(self, make):
        """A34: anything with ``__await__`` is kept alive, and the handle gives its result."""
        async with Supervisor() as supervisor:
            with supervisor.context() as ctx:
                handle = ctx.wait_until(make())
            assert await handle in (1, "awaited", [1])
        assert nothing_left(supervisor)

    @pytest.mark.parametrize(
        "make",
        [
            lambda: fine,
            lambda: sync,
            lambda: functools.partial(fine),
            lambda: _asynchronous_generator(),
            lambda: _generator(),
            lambda: concurrent.futures.Future(),
            lambda: 3,
            lambda: None,
            lambda: Awaitable,
            lambda: Callable(),
        ],
    )
    async def test_what_cannot(self, make):
        """A32, A33: what cannot be awaited is a TypeError at the call, which says what to write instead."""
        async with Supervisor() as supervisor:
            with supervisor.context() as ctx:
                for register in (ctx.wait_until, wait_until):
                    with pytest.raises(TypeError):
                        register(make())

    async def test_twice(self):
        """A29: a coroutine handed over twice is refused the second time, by whatever way; the first runs."""
        async with Supervisor() as supervisor, Supervisor() as other:
            with supervisor.context() as ctx, other.context() as second:
                coroutine = fine(1)
                handle = ctx.wait_until(coroutine)
                for register in (ctx.wait_until, wait_until, second.wait_until):
                    with pytest.raises((TypeError, ValueError)):
                        register(coroutine)
            assert await handle == 1

    async def test_after_its_end(self):
        """A30: a coroutine that has ended, runs or was closed is refused at the call."""
        ended, closed = fine(), fine()
        await ended
        closed.close()
        started = asyncio.ensure_future(fine())
        await asyncio.sleep(0)
        async with Supervisor() as supervisor:
            with supervisor.context() as ctx:
                for coroutine in (ended, closed, started.get_coro()):
                    with pytest.raises((TypeError, ValueError)):
                        ctx.wait_until(coroutine)

                async def hands_itself_over():
                    with pytest.raises((TypeError, ValueError)):
                        ctx.wait_until(asyncio.current_task().get_coro())

                await hands_itself_over()
        await started

    async def test_what_has_ended(self):
        """A30: a finished future or task is taken, and its end recorded."""
        loop = asyncio.get_running_loop()
        failed, cancelled = loop.create_future(), loop.create_future()
        failed.set_exception(OSError())
        cancelled.cancel()
        async with Supervisor() as supervisor:
            with supervisor.context() as ctx:
                handles = [ctx.wait_until(each) for each in (_done_future(1), failed, cancelled)]
            states = await settled(*handles)
        assert states == [TaskState.SUCCEEDED, TaskState.FAILED, TaskState.CANCELLED]

    async def test_the_same_task_twice(self):
        """A29: a task may be waited for twice: it is not run by that."""
        async with Supervisor() as supervisor:
            with supervisor.context() as ctx:
                task = asyncio.ensure_future(fine(1))
                handles = [ctx.wait_until(task), ctx.wait_until(task)]
            assert [await handle for handle in handles] == [1, 1]

    @pytest.mark.parametrize("error", [lambda: StopIteration(5), lambda: OSError(), lambda: SystemExit()])
    async def test_await_itself_raises(self, error):
        """A06, A34: an awaitable whose ``__await__`` raises fails its task."""

        class Raises:
            def __await__(self):
                raise error()

        class Returns:
            def __await__(self):
                return 3

        async with Supervisor() as supervisor:
            with supervisor.context() as ctx:
                handles = [ctx.wait_until(Raises()), ctx.wait_until(Returns())]
            states = await settled(*handles)
        assert states == [TaskState.FAILED] * 2

    async def test_no_warning(self):
        """A36, A37: whatever is refused, for whatever reason, no coroutine is left to warn."""
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            async with Supervisor() as supervisor:
                with supervisor.context() as ctx:
                    for register in (
                        lambda: ctx.defer(fine()),
                        lambda: ctx.with_options(retry=Retry(on=OSError)).wait_until(fine()),
                        lambda: ctx.with_options(when="error").wait_until(fine()),
                    ):
                        with pytest.raises((TypeError, ValueError)):
                            register()
                for register in (lambda: ctx.wait_until(fine()), lambda: wait_until(fine())):
                    with pytest.raises((ContextClosedError, LookupError)):
                        register()
            with supervisor.context() as ctx, pytest.raises(RuntimeError):
                ctx.wait_until(fine())
            gc.collect()
        assert [str(warning.message) for warning in found] == []


class TestNames:
    @pytest.mark.parametrize("name", [EvilText("x"), OddText("x")], ids=["evil", "odd"])
    async def test_texts_that_fight_back(self, name):
        """A09: a name of a class of its own is refused, or is a name like any other; the others run."""
        async with Supervisor() as supervisor:
            with supervisor.context() as ctx:
                view = ctx.with_options(name=name)
                handles = [view.defer(fine), ctx.defer(fine), view.defer(_boom), ctx.defer(fine)]
            states = await settled(*handles)
        assert states == [TaskState.SUCCEEDED, TaskState.SUCCEEDED, TaskState.FAILED, TaskState.SUCCEEDED]
        assert nothing_left(supervisor)

    @pytest.mark.parametrize("bad", ["", None, 3, b"name", ["x"]])
    async def test_bad_names(self, bad):
        """A58: a name is a text that is not empty."""
        with Supervisor().context() as ctx, pytest.raises((TypeError, ValueError)):
            ctx.with_options(name=bad)

    @pytest.mark.parametrize("option", ["retry", "when", "middleware", "on_error"])
    async def test_bad_options(self, option):
        """A58: an option of the wrong kind is refused where it is given."""
        with Supervisor().context() as ctx:
            for bad in (3, "never", object()):
                with pytest.raises((TypeError, ValueError)):
                    ctx.with_options(**{option: bad})


async def _boom():
    raise OSError


async def _asynchronous_generator():
    yield 1


def _generator():
    raise AssertionError
    yield


def _done_future(value):
    future = asyncio.get_running_loop().create_future()
    future.set_result(value)
    return future


def _done_in_thread(value):
    future = concurrent.futures.Future()
    future.set_result(value)
    return future


async def _wait(handle):
    return await handle
