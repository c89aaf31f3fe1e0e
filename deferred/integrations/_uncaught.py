"""Frameworks that answer what nobody has caught, and tell of it by a signal.

Quart and Django send their page for an error after they have left the ``except`` that caught it,
so the error is no longer in sight when the answer passes. Both say before by a signal what it
was: that is the one way to tell a rejection from an answer of the app's own. Neither is imported
here: an app that is one of theirs has loaded it.
"""

from __future__ import annotations

import sys

from deferred._task import current_unit
from deferred.integrations._exchange import Exchange
from deferred.integrations._rejection import rejection_in

__all__ = ["listen"]


def listen() -> None:
    """Note rejections that leave a handler of Quart or a middleware of Django; once, however often it is called."""
    quart = sys.modules.get("quart.signals")
    if quart is not None:
        quart.got_request_exception.connect(_note_quart, weak=False)
    django = sys.modules.get("django.core.signals")
    if django is not None:
        django.got_request_exception.connect(_note_django, weak=False, dispatch_uid="deferred")


async def _note_quart(_app: object, *, exception: BaseException, **_details: object) -> None:
    _note(exception)


def _note_django(**_details: object) -> None:
    _note(sys.exception())


def _note(error: BaseException | None) -> None:
    unit: object = current_unit.get(None)
    if error is not None and isinstance(unit, Exchange):
        unit.rejection = rejection_in(error)
