"""Test what is deferred: contexts, modes, assertions, faults, clients.

Under pytest the fixture ``deferred`` is a `Kit` that watches every supervisor and fails the test
for errors and leftovers; nothing has to be installed for it. Without pytest a `Kit` is a context
manager, and `create_context` and `client` make their own.
"""

from deferred.testing._captured import Captured
from deferred.testing._context import TestContext
from deferred.testing._faults import Fault
from deferred.testing._findings import UnfinishedWorkWarning
from deferred.testing._functions import aiohttp_client, client, create_context, wait_on_context
from deferred.testing._kit import Kit
from deferred.testing._recorder import Recorder

__all__ = [
    "Captured",
    "Fault",
    "Kit",
    "Recorder",
    "TestContext",
    "UnfinishedWorkWarning",
    "aiohttp_client",
    "client",
    "create_context",
    "wait_on_context",
]
