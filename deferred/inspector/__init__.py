"""See it: the waterfall of each request and of everything that outlived it."""

from deferred.inspector._access import Password, Person, Role
from deferred.inspector._app import Inspector
from deferred.inspector._views import AttemptView, LineView, RequestView, RowView

__all__ = ["AttemptView", "Inspector", "LineView", "Password", "Person", "RequestView", "Role", "RowView"]
