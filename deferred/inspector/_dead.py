"""The dead letters of the engine: listed, shown, retried, deleted.

Rules of this file: the engine may be missing, or its store away, and that is an answer too;
what a letter holds is shown to operators alone, secrets left out; each action runs once,
however often its button was pressed, and is logged: who, what, which.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

import msgspec

from deferred._supervisor import Supervisor
from deferred.engines._protocol import DeadJob, Depth, Engine
from deferred.inspector._access import Person, Refused, Role
from deferred.inspector._redact import describe, redact, shorten

__all__ = ["DeadLetters", "Filter", "LetterView", "Order"]

T = TypeVar("T")

logger = logging.getLogger("deferred.inspector")

MOST = 1000
"""How many dead letters are looked at in a list."""
_DEEPEST = 20 * MOST
_PATIENCE = 5.0
_REMEMBERED = 500
_PAYLOAD = 4000
_KEY = 200


class Filter(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which letters: all of these hold. Texts are looked for as they are, in any case."""

    name: str = ""
    reason: str = ""
    text: str = ""

    def matches(self, letter: DeadJob) -> bool:
        """Say whether it is one of them."""
        return (
            (not self.name or self.name == letter.name)
            and (not self.reason or self.reason == letter.reason)
            and (not self.text or self.text.casefold() in f"{letter.name}\n{letter.id}\n{letter.error}".casefold())
        )


class Order(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What somebody wants done: to these letters, or to all of a filter.

    Attributes:
        key: Different for each press of a button; the same again does nothing and is answered the same.
    """

    key: str
    ids: list[str] | None = None
    filter: Filter | None = None


class LetterView(msgspec.Struct, frozen=True, kw_only=True):
    """A dead letter, as it is shown."""

    id: str
    name: str
    queue: str
    number: int
    reason: str
    error: str
    stored_at: float
    died_at: float
    size: int


class DeadLetters:
    """The dead letters of one supervisor's engine. Lives as long as its inspector."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._answers: OrderedDict[str, asyncio.Future[list[str]]] = OrderedDict()

    @property
    def engine(self) -> Engine | None:
        """The supervisor's engine, if it has one."""
        return self._supervisor.engine

    async def depth(self) -> Depth | None:
        """Count the jobs; None without an engine, or when it does not answer."""
        engine = self.engine
        if engine is None:
            return None
        with contextlib.suppress(Refused):
            return await self._ask(engine.depth)
        return None

    async def page(self, wanted: Filter, limit: int) -> tuple[list[LetterView], int, list[str], list[str]]:
        """Return letters, how many match, and the names and reasons there are."""
        letters = await self._all()
        found = [letter for letter in letters if wanted.matches(letter)]
        names = sorted({letter.name for letter in letters})
        reasons = sorted({letter.reason for letter in letters})
        return [_view(letter) for letter in found[:limit]], len(found), names, reasons

    async def payload(self, key: str, person: Person) -> str:
        """Return the arguments in a letter, secrets left out.

        Raises:
            Refused: This person may not see them, or there is no such letter.
        """
        if person.role is not Role.OPERATOR:
            raise Refused(403, "Arguments are shown to operators only.")
        engine = self._needed()
        letters = await self._ask(lambda: engine.dead(ids=[key]))
        if not letters:
            raise Refused(404, "There is no such dead letter: it was retried or deleted.")
        logger.info("%r looked at the arguments of dead letter %r", person.name, key)
        return _payload(letters[0].payload)

    async def act(self, what: str, order: Order, person: Person) -> list[str]:
        """Retry or delete letters, once for each key; return the ids of those that were dead."""
        if len(order.key) > _KEY:
            raise Refused(422, f"A key of an order has at most {_KEY} characters.")
        key = f"{person.name}:{what}:{order.key}"
        known = self._answers.get(key)
        if known is not None:
            await asyncio.wait({known})
            if known.cancelled():
                raise Refused(503, "The same order has failed; give it again.")
            return known.result()
        answer: asyncio.Future[list[str]] = asyncio.get_running_loop().create_future()
        self._answers[key] = answer
        while len(self._answers) > _REMEMBERED:
            self._answers.popitem(last=False)
        try:
            ids = await self._act(what, order)
        except BaseException:
            del self._answers[key]  # it may be tried again
            answer.cancel()
            raise
        answer.set_result(ids)
        shown = ", ".join(map(repr, ids[:20])) + (", …" if len(ids) > 20 else "")
        logger.info("%r asked to %s dead letters; %d of them: %s", person.name, what, len(ids), shown)
        return ids

    async def _act(self, what: str, order: Order) -> list[str]:
        engine = self._needed()
        ids = order.ids
        doing: Callable[[Any], Awaitable[list[str]]] = engine.requeue if what == "retry" else engine.delete
        if ids is None:
            if order.filter is None:
                raise Refused(422, "Say which letters: `ids`, or a `filter`.")
            return await self._act_on_all(doing, order.filter)
        chosen = ids[:MOST]
        return await self._ask(lambda: doing(chosen)) if chosen else []

    async def _act_on_all(self, doing: Callable[[Any], Awaitable[list[str]]], wanted: Filter) -> list[str]:
        """Act on the letters of a filter, also on those behind the ones that are looked at in a list."""
        done: dict[str, None] = {}
        limit = MOST
        while True:
            letters = await self._all(limit)
            # What has been retried, and is dead again by now, is not retried again.
            found = [each.id for each in letters if wanted.matches(each) and each.id not in done]
            if found and (ids := await self._ask(partial(doing, found))):
                done.update(dict.fromkeys(ids))
            elif len(letters) < limit or limit >= _DEEPEST:
                return list(done)
            else:
                limit += MOST

    async def _all(self, limit: int = MOST) -> list[DeadJob]:
        engine = self._needed()
        return await self._ask(lambda: engine.dead(limit=limit))

    def _needed(self) -> Engine:
        engine = self.engine
        if engine is None:
            raise Refused(404, "This supervisor has no engine, so it has no dead letters.")
        return engine

    async def _ask(self, question: Callable[[], Awaitable[T]]) -> T:
        """Ask the engine, within a time."""
        engine = self._needed()
        try:
            async with asyncio.timeout(_PATIENCE):
                await engine.setup()
                return await question()
        except Exception as error:
            logger.warning("the engine did not answer the inspector: %r", redact(str(error), 500))
            raise Refused(503, f"The engine does not answer ({type(error).__name__}); is its store there?") from error


def _view(letter: DeadJob) -> LetterView:
    return LetterView(
        id=letter.id,
        name=shorten(redact(letter.name), 300),
        queue=letter.queue,
        number=letter.number,
        reason=letter.reason,
        error=redact(letter.error, _PAYLOAD),
        stored_at=letter.stored_at,
        died_at=letter.died_at,
        size=len(letter.payload),
    )


def _payload(payload: bytes) -> str:
    """Return a payload as text; one that is no JSON is shown as bytes."""
    try:
        data = msgspec.json.decode(payload)
    except (msgspec.DecodeError, RecursionError):
        return describe(payload, _PAYLOAD)
    return describe(data, _PAYLOAD)
