"""What the tests of engines share."""

import asyncio

import pytest

from tests.engines.benches import memory_bench, postgres_bench, sqlite_bench


def pytest_collection_modifyitems(config, items):
    """Leave the tests that take minutes to `make chaos`."""
    if "chaos" not in config.option.markexpr:
        kept = [item for item in items if item.get_closest_marker("chaos") is None]
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept


@pytest.fixture(autouse=True, scope="session")
def journals_may_block(no_blocking_calls):
    """Let a test's task write its journal, which is to be there when the process dies."""
    for function in no_blocking_calls.functions.values():
        function.can_block_in("tests/engines/shop.py", {"write"})


@pytest.fixture
def postgres_url(postgres_server):
    """Return the URL of an empty database."""
    return asyncio.run(postgres_server.new_database())


SHORT = {"keeps_a_lease", "survives_a_crash", "outlives_a_cancelled_handle"}
"""The checks that wait for the end of a lease."""


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def bench(request, tmp_path):
    """Return an empty store of each kind, with a short lease for the tests whose matter that is."""
    check = request.node.callspec.params.get("check")
    patient = check is not None and check.__name__ not in SHORT
    if request.param == "memory":
        return memory_bench()
    if request.param == "sqlite":
        return sqlite_bench(tmp_path / "jobs.db", patient=patient)
    return postgres_bench(request.getfixturevalue("postgres_url"), patient=patient)
