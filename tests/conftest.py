"""What every test shares."""

from collections.abc import Iterator

import pytest
from blockbuster import BlockBuster, blockbuster_ctx


@pytest.fixture(autouse=True, scope="session")
def no_blocking_calls() -> Iterator[BlockBuster]:
    """Raise where code of `deferred` blocks the event loop (a file, a socket, a sleep)."""
    with blockbuster_ctx("deferred") as watch:
        yield watch
