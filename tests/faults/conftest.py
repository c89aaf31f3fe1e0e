"""Every fault runs on asyncio and on uvloop (A68); those with a clock on asyncio's virtual one."""

import asyncio
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import pytest

from deferred import _current
from tests.faults.requests import Journal

uvloop: Any = find_spec("uvloop") and import_module("uvloop")  # Windows and PyPy have none


def pytest_asyncio_loop_factories(config: pytest.Config, item: Any) -> Mapping[str, Callable[[], Any]]:
    """Return the loops that a test runs on; a test marked ``looptime`` needs a clock that can be moved."""
    if uvloop is None or item.get_closest_marker("looptime"):
        return {"asyncio": asyncio.new_event_loop}
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture(autouse=True)
def patient_drains(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give every drain a time of its own, which a machine that stands still for seconds does not use up."""
    monkeypatch.setenv("DEFERRED_DRAIN_TIMEOUT", "30")


@pytest.fixture(autouse=True)
def no_other_supervisors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the supervisors of earlier tests that are not collected yet: they would decide out of scope."""
    _current.hosts.clear()


@pytest.fixture
def journal() -> Journal:
    """What happened, in order."""
    return Journal()
