"""The promises asked of every framework; each test file brings an `Adapter` and inherits them."""

from tests.integrations.adapter import Adapter
from tests.integrations.promises_app import AppPromises
from tests.integrations.promises_overload import OverloadPromises
from tests.integrations.promises_server import ServerPromises
from tests.integrations.promises_work import WorkPromises

__all__ = ["Adapter", "Promises"]


class Promises(WorkPromises, AppPromises, OverloadPromises, ServerPromises):
    """Inherited by one class a framework; its `adapter` is all that it adds."""
