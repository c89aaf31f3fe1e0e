"""The pytest plugin of `deferred`: the fixture ``deferred`` and the marker of the same name.

It stands outside the package, because pytest loads it into every run: `deferred` itself is
imported by the first test that asks for the fixture.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:  # see above
    from deferred.testing import Kit

__all__ = ["deferred"]

MARKER = """deferred(mode="run", backoff="skip", timeout=5.0, allow_errors=(), allow_leftovers=False): \
watch the deferred work of this test, as its fixture `deferred` does. mode: "run", "inline" or "capture". \
backoff: "skip" or "wait". timeout: seconds that the end of the test waits for work. \
allow_errors: an exception class, several, or True for all."""

_KIT = pytest.StashKey[Any]()
_FAILED = pytest.StashKey[bool]()


def pytest_configure(config: pytest.Config) -> None:
    """Tell pytest of the marker."""
    config.addinivalue_line("markers", MARKER)


def pytest_itemcollected(item: pytest.Item) -> None:
    """Give a marked test the fixture, whether or not it asks for it; have it watch what other fixtures do."""
    names = getattr(item, "fixturenames", None)
    if names is None:
        return
    if "deferred" in names:
        names.remove("deferred")
    elif item.get_closest_marker("deferred") is None:
        return
    names.insert(0, "deferred")


@pytest.fixture
def deferred(request: pytest.FixtureRequest) -> Generator[Kit, None, None]:
    """Watch all deferred work; fail the test for errors nobody has seen, and for work without an end."""
    from deferred.testing import Kit  # noqa: PLC0415  # see above

    marker = request.node.get_closest_marker("deferred")
    options = _options(() if marker is None else marker.args, {} if marker is None else dict(marker.kwargs))
    errors, leftovers = options.pop("allow_errors", ()), options.pop("allow_leftovers", False)
    with Kit(**options) as kit:
        if errors:
            kit.allow_errors(*_classes(errors))
        if leftovers:
            kit.allow_leftovers()
        request.node.stash[_KIT] = kit
        yield kit
        if not request.node.stash.get(_FAILED, False):
            kit.settle_sync(kit.timeout)
            _judge(kit)


def _options(args: tuple[Any, ...], options: dict[str, Any]) -> dict[str, Any]:
    known = {"mode", "backoff", "timeout", "allow_errors", "allow_leftovers"}
    if args or not options.keys() <= known:
        wrong = ", ".join([*map(repr, args), *sorted(options.keys() - known)])
        message = f"@pytest.mark.deferred takes {', '.join(sorted(known))}, by name, not {wrong}"
        raise pytest.UsageError(message)
    return options


def _classes(errors: Any) -> tuple[type[BaseException], ...]:
    if errors is True:
        return (BaseException,)
    return tuple(errors) if isinstance(errors, list | tuple | set | frozenset) else (errors,)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]  # of the user's making


def _judge(kit: Kit) -> None:
    __tracebackhide__ = True
    verdict = kit.findings.verdict()
    if verdict is not None:
        text, cause = verdict
        raise AssertionError(text) from cause


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Wait for deferred work when the test function is done, while its event loop is there; then judge."""
    __tracebackhide__ = True
    kit: Kit | None = item.stash.get(_KIT, None)
    if kit is None:
        return (yield)
    with _waiting(item, kit):
        try:
            result = yield
        except BaseException:
            item.stash[_FAILED] = True
            _report(item, kit)
            raise
    kit.settle_sync(kit.timeout, held=False)  # a context of a fixture is closed as that is torn down
    _judge(kit)
    return result


def _report(item: pytest.Item, kit: Kit) -> None:
    """Tell of the deferred work beside the failure of the test itself."""
    verdict = kit.findings.verdict()
    if verdict is not None:
        item.add_report_section("call", "deferred", verdict[0])


@contextmanager
def _waiting(item: pytest.Item, kit: Kit) -> Generator[None, None, None]:
    """Have an asynchronous test function wait, once it has returned, on the loop that runs it."""
    function: Any = getattr(item, "obj", None)
    if not inspect.iscoroutinefunction(function):
        yield
        return
    holder: Any = item

    @functools.wraps(function)
    async def test(*args: Any, **kwargs: Any) -> None:
        __tracebackhide__ = True
        await function(*args, **kwargs)
        await kit.settle(kit.timeout, held=False)

    holder.obj = test
    try:
        yield
    finally:
        holder.obj = function
