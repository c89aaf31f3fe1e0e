"""What the tests of the integrations share."""

import pytest

pytest.register_assert_rewrite("tests.integrations.promises_app", "tests.integrations.promises_work")

from tests.integrations.script import Script  # noqa: E402  # the line above comes before any import of these


@pytest.fixture
def script() -> Script:
    """Give the script of an app's handlers, with its journal."""
    return Script()
