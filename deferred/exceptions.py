"""Every error that this package raises, in one tree.

::

    DeferredError
    ├── NoCurrentContextError(LookupError)     defer()/wait_until() called outside any unit of work
    ├── ContextClosedError(RuntimeError)       the unit of work has ended and nothing of it is pending
    ├── SupervisorClosedError(RuntimeError)    the supervisor was drained, or belongs to another process
    ├── TaskRejectedError(RuntimeError)        a limit is reached and the policy is "reject"
    ├── EventLoopError(RuntimeError)           no asyncio loop, or another one than the supervisor's
    ├── TaskUnfinishedError(RuntimeError)      a result was asked of work that never produced one
    ├── UnknownTaskError(LookupError)          durable work must be a function registered by name
    ├── PayloadError(ValueError)               its arguments cannot be stored, or not be read back
    ├── EngineError(RuntimeError)              the engine cannot do that, or its store is not ready
    └── NonRetryableError                      raised by the user's code: give up at once

An exception of the user's is never wrapped in one of these.
"""

__all__ = [
    "ContextClosedError",
    "DeferredError",
    "EngineError",
    "EventLoopError",
    "NoCurrentContextError",
    "NonRetryableError",
    "PayloadError",
    "SupervisorClosedError",
    "TaskRejectedError",
    "TaskUnfinishedError",
    "UnknownTaskError",
]


class DeferredError(Exception):
    """Base of every error this package raises."""


class NoCurrentContextError(DeferredError, LookupError):
    """There is no unit of work here to defer to."""


class ContextClosedError(DeferredError, RuntimeError):
    """The unit of work has ended and its context takes no more work."""


class SupervisorClosedError(DeferredError, RuntimeError):
    """The supervisor takes no more work: it was drained, or this is a forked process."""


class EventLoopError(DeferredError, RuntimeError):
    """Work was registered without an asyncio event loop, or from a foreign one."""


class TaskRejectedError(DeferredError, RuntimeError):
    """A limit is reached, so the work was not accepted.

    Attributes:
        retry_after: Seconds after which another try makes sense; the integrations
            send it as the ``Retry-After`` header of their 503.
    """

    def __init__(self, message: str, *, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class TaskUnfinishedError(DeferredError, RuntimeError):
    """The task was discarded or abandoned, so there is no result to give."""


class UnknownTaskError(DeferredError, LookupError):
    """Durable work was asked of a function, or a name, that is not registered."""


class PayloadError(DeferredError, ValueError):
    """The arguments of durable work cannot be stored, or do not fit the function that is to get them."""


class EngineError(DeferredError, RuntimeError):
    """The engine cannot do what was asked of it, or its store is not ready."""


class NonRetryableError(DeferredError):
    """Raise it inside a task to give up at once, whatever the retry policy says; in a group of errors too.

    Example:
        >>> try:
        ...     raise ValueError("no such mailbox")
        ... except ValueError as error:
        ...     final = NonRetryableError("the address is refused for good")
        ...     final.__cause__ = error
        >>> str(final)
        'the address is refused for good'
    """
