"""The dead letters of the engine: listed, shown, retried, deleted, once for each press of a button."""

import asyncio
import logging

import pytest

from deferred.engines import DeadJob, Depth
from tests.inspector.support import PREFIX, App, act, ask, audited, opened
from tests.inspector.test_access import ADA, GUEST, PASSWORDS


class Shelf:
    """An engine with nothing but dead letters. Lives as long as a test."""

    capabilities = None

    def __init__(self, *letters):
        self.letters = {letter.id: letter for letter in letters}
        self.requeued = []
        self.broken = None
        self.held = None

    async def setup(self):
        """Connect, if it can."""
        if self.broken is not None:
            raise self.broken

    async def enqueue(self, jobs, connection=None):
        """Store nothing."""
        raise NotImplementedError

    async def serve(self, handle, *, queues, concurrency, stop):
        """Deliver nothing."""
        raise NotImplementedError

    async def dead(self, *, limit=100, ids=None):
        """List letters."""
        found = [letter for letter in self.letters.values() if ids is None or letter.id in ids]
        return found[:limit]

    async def requeue(self, ids):
        """Note which would be delivered again."""
        if self.held is not None:
            await self.held.wait()
        gone = await self.delete(ids)
        self.requeued += gone
        return gone

    async def delete(self, ids):
        """Delete letters."""
        return [key for key in ids if self.letters.pop(key, None) is not None]

    async def depth(self, queues=None):
        """Count."""
        return Depth(waiting=3, running=1, dead=len(self.letters))

    async def close(self):
        """Let go of nothing."""


PAYLOAD = b'{"to":"ada@example.com"}'


def letter(key, name="mail", reason="exhausted_attempts", error="OSError: no route", payload=PAYLOAD):
    """Return a dead letter."""
    return DeadJob(
        id=key,
        name=name,
        payload=payload,
        headers={},
        queue="deferred",
        number=5,
        reason=reason,
        error=error,
        stored_at=1.0,
        died_at=2.0,
    )


@pytest.fixture
def shelf(app):
    """Give the app an engine with three dead letters."""
    app.supervisor._durable.engine = Shelf(
        letter("a"), letter("b", name="report"), letter("c", reason="crash_loop", error="killed 3 times")
    )
    return app.supervisor._durable.engine


async def found(client, **query):
    """Return the ids of the letters that are listed."""
    return [each["id"] for each in (await ask(client, "dead", **query))["letters"]]


async def test_letters_are_listed_and_filtered(shelf, client):
    """By name, reason and text; the choices there are come along; what they hold does not."""
    assert await found(client) == ["a", "b", "c"]
    assert await found(client, name="report") == ["b"]
    assert await found(client, reason="crash_loop") == ["c"]
    assert await found(client, text="NO ROUTE") == ["a", "b"]
    assert await found(client, text="%") == []
    answer = await ask(client, "dead", limit=1)
    assert (len(answer["letters"]), answer["total"]) == (1, 3)
    assert (answer["names"], answer["reasons"]) == (["mail", "report"], ["crash_loop", "exhausted_attempts"])
    assert "ada@" not in str(answer)


async def test_what_a_letter_holds_is_shown_when_asked_for(app, shelf, client, caplog):
    """G10, G12: Without secrets, to operators, and logged; undecodable bytes are shown as such."""
    caplog.set_level(logging.INFO, "deferred.inspector")
    shelf.letters["d"] = letter("d", payload=b'{"to":"ada","password":"hunter2"}')
    shelf.letters["e"] = letter("e", payload=b"\xff\x00 no json")
    assert (await ask(client, "dead/d/arguments"))["payload"] == "{'to': 'ada', 'password': •••}"
    assert (await ask(client, "dead/e/arguments"))["payload"] == r"b'\xff\x00 no json'"
    assert (await client.get(f"{PREFIX}/api/dead/x/arguments")).status_code == 404
    assert audited(caplog)[0] == "'local' looked at the arguments of dead letter 'd'"


async def test_one_letter_is_retried_or_deleted(shelf, client, caplog):
    """G20: Each action is logged: who, what, which."""
    caplog.set_level(logging.INFO, "deferred.inspector")
    assert (await act(client, "dead/retry", {"key": "1", "ids": ["a", "gone"]})).json() == {"ids": ["a"]}
    assert (await act(client, "dead/delete", {"key": "2", "ids": ["b"]})).json() == {"ids": ["b"]}
    assert (shelf.requeued, list(shelf.letters)) == (["a"], ["c"])
    assert audited(caplog) == [
        "'local' asked to retry dead letters; 1 of them: 'a'",
        "'local' asked to delete dead letters; 1 of them: 'b'",
    ]


async def test_all_of_a_filter(shelf, client):
    """An action on a filter takes all that match, shown or not."""
    assert (await act(client, "dead/retry", {"key": "1", "filter": {"name": "mail"}})).json() == {"ids": ["a", "c"]}
    assert (await act(client, "dead/delete", {"key": "2", "filter": {}})).json() == {"ids": ["b"]}
    assert (await act(client, "dead/delete", {"key": "3", "filter": {}})).json() == {"ids": []}


async def test_a_button_works_once_for_each_press(shelf, client):
    """D37: The same press again does nothing, also when a letter has died again meanwhile."""
    order = {"key": "press", "ids": ["a"]}
    shelf.held = asyncio.Event()
    both = [asyncio.create_task(act(client, "dead/retry", order)) for _ in range(2)]
    await asyncio.sleep(0.02)
    shelf.held.set()
    assert [answer.json() for answer in await asyncio.gather(*both)] == [{"ids": ["a"]}] * 2
    shelf.letters["a"] = letter("a")
    assert (await act(client, "dead/retry", order)).json() == {"ids": ["a"]}
    assert (shelf.requeued, "a" in shelf.letters) == (["a"], True)


async def test_a_press_that_failed_may_be_tried_again(shelf, client):
    """A store that was away for a moment is asked anew."""
    order = {"key": "press", "ids": ["a"]}
    shelf.broken = ConnectionError("postgresql://app:hunter2@db is away")
    answer = await act(client, "dead/retry", order)
    assert (answer.status_code, "hunter2" in answer.text) == (503, False)
    shelf.broken = None
    assert (await act(client, "dead/retry", order)).json() == {"ids": ["a"]}


async def test_all_are_more_than_are_shown(shelf, client):
    """An action on a filter goes on behind those that are looked at, and is not caught by those that die again."""
    shelf.letters = {str(number): letter(str(number), name=("mail", "report")[number % 2]) for number in range(2500)}
    assert len((await act(client, "dead/delete", {"key": "1", "filter": {"name": "mail"}})).json()["ids"]) == 1250
    delete = shelf.delete

    async def die_again(ids):
        gone = await delete(ids)
        shelf.letters = {**{key: letter(key, name="report") for key in gone}, **shelf.letters}
        return gone

    shelf.requeue = die_again
    assert len((await act(client, "dead/retry", {"key": "2", "filter": {}})).json()["ids"]) == 1250
    assert len(shelf.letters) == 1250


async def test_a_second_press_hears_that_the_first_has_failed(shelf, client):
    """D37: Who has pressed while the same press was under way is told, and may press again."""
    order = {"key": "press", "ids": ["a"]}
    shelf.held = asyncio.Event()
    both = [asyncio.create_task(act(client, "dead/retry", order)) for _ in range(2)]
    await asyncio.sleep(0.02)

    async def fail(_ids):
        message = "away"
        raise ConnectionError(message)

    shelf.delete = fail
    shelf.held.set()
    assert [answer.status_code for answer in await asyncio.gather(*both)] == [503, 503]
    del shelf.delete
    assert (await act(client, "dead/retry", order)).json() == {"ids": ["a"]}


async def test_a_key_has_a_bound(shelf, client):
    """G18: Keys are remembered, so a long one is refused."""
    assert (await act(client, "dead/retry", {"key": "k" * 5000, "ids": ["a"]})).status_code == 422
    assert shelf.requeued == []


async def test_an_order_says_which(shelf, client):
    """An action on nothing in particular is refused."""
    assert (await act(client, "dead/delete", {"key": "1"})).status_code == 422
    assert len(shelf.letters) == 3


async def test_many_presses_are_not_remembered_for_ever(shelf, client, monkeypatch):
    """The memory of presses has a bound."""
    from deferred.inspector import _dead

    monkeypatch.setattr(_dead, "_REMEMBERED", 3)
    for number in range(6):
        await act(client, "dead/retry", {"key": str(number), "ids": []})
    assert len(await ask(client, "now")) > 0


async def test_a_store_that_is_away_is_an_answer(shelf, client, caplog):
    """G12: The page says so; the counts go without it; the log holds no password."""
    shelf.broken = ConnectionError("postgresql://app:hunter2@db is away")
    assert (await client.get(f"{PREFIX}/api/dead")).status_code == 503
    assert (await ask(client, "now"))["depth"] is None
    assert "hunter2" not in caplog.text


@pytest.mark.looptime
async def test_a_store_that_hangs_is_not_waited_for(app, shelf, client):
    """The inspector waits for an engine some seconds, no longer."""

    async def hang():
        await asyncio.Event().wait()

    shelf.setup = hang
    assert (await client.get(f"{PREFIX}/api/dead")).status_code == 503


async def test_its_depth_is_in_the_state_of_now(shelf, client):
    """How many jobs wait, run and are dead."""
    assert (await ask(client, "now"))["depth"] == {"waiting": 3, "running": 1, "dead": 3}
    assert (await ask(client, "session"))["engine"] is True


async def test_without_an_engine(client):
    """A supervisor without an engine has no dead letters, and the page does not offer any."""
    assert (await ask(client, "session"))["engine"] is False
    assert (await client.get(f"{PREFIX}/api/dead")).status_code == 404
    assert (await act(client, "dead/retry", {"key": "1", "ids": ["a"]})).status_code == 404


async def test_readers_look_and_do_not_touch():
    """G20: A reader sees the list, not what is in a letter, and can do nothing."""
    app = App(auth=PASSWORDS)
    app.supervisor._durable.engine = Shelf(letter("a"))
    async with opened(app) as client:
        client.headers.update(GUEST)
        assert await found(client) == ["a"]
        assert (await client.get(f"{PREFIX}/api/dead/a/arguments")).status_code == 403
        assert (await act(client, "dead/delete", {"key": "1", "ids": ["a"]})).status_code == 403
        client.headers.update(ADA)
        assert (await act(client, "dead/delete", {"key": "1", "ids": ["a"]})).json() == {"ids": ["a"]}
