"""How a rejected task is answered: 503, and when to try again; an open websocket by its close."""

from __future__ import annotations

from deferred.exceptions import TaskRejectedError

__all__ = ["OVERLOADED", "TRY_AGAIN_LATER", "rejection_in", "retry_after"]

OVERLOADED = "the service is overloaded, try again later"
TRY_AGAIN_LATER = 1013
"""The registered code that closes a websocket of a server which is overloaded."""


def rejection_in(error: BaseException | None) -> TaskRejectedError | None:
    """Return the rejection that ended a handler: `error` itself, or all there is in a group of errors.

    Args:
        error: What the handler raised, if it did; a task group raises an ``ExceptionGroup``. With any
            other error in it, the group is no rejection.
    """
    if isinstance(error, BaseExceptionGroup):
        members: tuple[BaseException, ...] = error.exceptions  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]  # of anything
        rejections = [rejection_in(member) for member in members]
        return None if None in rejections else rejections[0]
    return error if isinstance(error, TaskRejectedError) else None


def retry_after(rejection: TaskRejectedError) -> str:
    """Return the value of ``Retry-After``: whole seconds, at least one."""
    return str(max(1, round(rejection.retry_after)))
