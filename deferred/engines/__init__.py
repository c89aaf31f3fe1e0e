"""Durable work on existing job systems: the protocol, and how one is found.

The engines themselves are modules of their own, loaded when asked for:
`deferred.engines.sqlite`, `deferred.engines.postgres`. `deferred.engines.testing` is the
suite that an engine of yours can be run against.
"""

from deferred.engines._lookup import find_engine
from deferred.engines._protocol import (
    Capabilities,
    Dead,
    DeadJob,
    Delivery,
    Depth,
    Done,
    Engine,
    Handle,
    Job,
    RetryIn,
    Verdict,
)

__all__ = [
    "Capabilities",
    "Dead",
    "DeadJob",
    "Delivery",
    "Depth",
    "Done",
    "Engine",
    "Handle",
    "Job",
    "RetryIn",
    "Verdict",
    "find_engine",
]
