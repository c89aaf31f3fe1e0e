"""How much is proved: a short round by default, the long one with ``LONG_PROOFS=1``."""

import os

import pytest
from hypothesis import HealthCheck, settings

LONG = os.environ.get("LONG_PROOFS", "") not in {"", "0"}
COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.filter_too_much]}

settings.register_profile("short", max_examples=150, stateful_step_count=30, **COMMON)
settings.register_profile("long", max_examples=5000, stateful_step_count=80, **COMMON)


@pytest.fixture
def quiet() -> None:
    """Do not log: thousands of failures would fill the memory of the test run."""
    import logging

    logger = logging.getLogger("deferred")
    logger.disabled = True
    yield
    logger.disabled = False
