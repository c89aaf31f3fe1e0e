"""What the tests of the integrations share."""

import pytest

PROMISES = ("app", "background", "overload", "server", "work")
pytest.register_assert_rewrite(*(f"tests.integrations.promises_{part}" for part in PROMISES))

from tests.integrations.script import Script  # noqa: E402  # the line above comes before any import of these


@pytest.fixture
def script() -> Script:
    """Give the script of an app's handlers, with its journal."""
    return Script()
