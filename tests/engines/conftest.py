"""What the tests of engines share."""

import pytest


@pytest.fixture(autouse=True, scope="session")
def opening_may_block(no_blocking_calls):
    """Let cairnq read its own small files when a store is opened, which happens once."""
    for function in no_blocking_calls.functions.values():
        function.can_block_in("cairnq/store/sqlite.py", {"connect"})
        function.can_block_in("cairnq/_sql.py", {"load_migrations"})
