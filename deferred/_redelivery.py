"""What a task is told of its delivery, when it is durable."""

from __future__ import annotations

import msgspec

__all__ = ["Redelivery"]


class Redelivery(msgspec.Struct, kw_only=True):
    """What a durable task is told of its delivery, and tells of it. Lives as long as the delivery.

    Attributes:
        key: The idempotency key: the same on every delivery of the job.
        attempts: How many attempts there were before this one.
        elapsed: Seconds since the first one began.
        headers: What travelled beside the arguments.
        delay: Seconds until the next attempt, if this one failed and there is one.
    """

    key: str
    attempts: int
    elapsed: float
    headers: dict[str, str]
    delay: float = 0.0
