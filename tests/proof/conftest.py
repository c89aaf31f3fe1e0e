"""How much is proved: a short round by default, the long one with ``LONG_PROOFS=1``."""

import os

import pytest
from hypothesis import HealthCheck, Phase, settings

LONG = os.environ.get("LONG_PROOFS", "") not in {"", "0"}
# `make mutation` only has to know that something is wrong.
PHASES = [Phase.generate] if os.environ.get("MUTATION") else list(Phase)
COMMON = {
    "phases": PHASES,
    "deadline": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.filter_too_much],
}

settings.register_profile("short", max_examples=200, stateful_step_count=40, **COMMON)
settings.register_profile("long", max_examples=5000, stateful_step_count=80, **COMMON)


@pytest.fixture
def quiet() -> None:
    """Do not log: thousands of failures would fill the memory of the test run."""
    import logging

    logger = logging.getLogger("deferred")
    logger.disabled = True
    yield
    logger.disabled = False
