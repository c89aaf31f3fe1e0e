"""Requests that break in every way: section B, by a raw ASGI app behind the middleware."""

import asyncio

import pytest

from deferred import Supervisor, defer, wait_until
from deferred.integrations.asgi import DeferredMiddleware, deferred_from
from tests.faults.requests import BODY, PART, START, call
from tests.faults.support import BareError, BoomError, fine, idle, nothing_left, outcome_of, turns


class TestHandlers:
    @pytest.mark.parametrize("error", [BoomError, SystemExit, KeyboardInterrupt, BareError, asyncio.CancelledError])
    @pytest.mark.parametrize("sent", [0, 1, 2])
    async def test_it_raises(self, journal, error, sent):
        """B01, C13: work deferred before the handler raised runs, whatever it raised and whatever was sent."""

        async def app(scope, receive, send):
            defer(journal.note, "deferred")
            wait_until(journal.note("waited"))
            for message in (START, BODY)[:sent]:
                await send(message)
            raise error

        async with Supervisor() as supervisor:
            with pytest.raises(error):
                await call(DeferredMiddleware(app, supervisor))
            await idle(supervisor)
        assert sorted(journal) == ["deferred", "waited"]

    @pytest.mark.parametrize("status", [200, 204, 304, 302, 404, 409, 500, 503])
    async def test_when(self, journal, status):
        """B01, B02, B18: ``when`` is decided by the final status; work that does not match is discarded."""

        async def app(scope, receive, send):
            ctx = deferred_from(scope)
            for when in ("always", "success", "error"):
                ctx.with_options(when=when).defer(journal.note, when)
            await send({**START, "status": status})
            await send(BODY)

        async with Supervisor() as supervisor:
            await call(DeferredMiddleware(app, supervisor))
            await idle(supervisor)
        assert journal == ["always", "success" if status < 400 else "error"]
        assert supervisor.stats().discarded == 1

    async def test_when_it_raises_after_the_answer(self, journal):
        """B01: an answer of 200 followed by an error was a success when it was out."""

        async def app(scope, receive, send):
            deferred_from(scope).with_options(when="success").defer(journal.note, "success")
            await send(START)
            await send(BODY)
            raise BoomError

        async with Supervisor() as supervisor:
            with pytest.raises(BoomError):
                await call(DeferredMiddleware(app, supervisor))
            await idle(supervisor)
        assert journal == ["success"]

    async def test_never_finished(self, journal):
        """B04: a response that is started and never finished closes with the app call."""

        async def app(scope, receive, send):
            defer(journal.note)
            await send(START)
            await send(PART)
            await turns(5)
            journal.append("return")

        async with Supervisor() as supervisor:
            await call(DeferredMiddleware(app, supervisor))
            await idle(supervisor)
        assert journal == ["return", "task"]

    async def test_sending_nothing(self, journal):
        """B04: an app that sends nothing is a 500 to every server, so to ``when`` as well."""

        async def app(scope, receive, send):
            deferred_from(scope).with_options(when="error").defer(journal.note)

        async with Supervisor() as supervisor:
            await call(DeferredMiddleware(app, supervisor))
            await idle(supervisor)
        assert journal == ["task"]

    @pytest.mark.parametrize("at", [0, 1, 2])
    @pytest.mark.parametrize("swallowed", [True, False])
    async def test_send_fails(self, journal, at, swallowed):
        """B05: when ``send`` fails, at any message, work runs once, whether or not the app notices."""
        count = 0

        async def send(message):
            nonlocal count
            count += 1
            if count > at:
                raise OSError("gone")

        async def app(scope, receive, send):
            defer(journal.note)
            try:
                await send(START)
                await send(PART)
                await send(BODY)
            except OSError:
                if not swallowed:
                    raise

        async with Supervisor() as supervisor:
            answer = await outcome_of(call(DeferredMiddleware(app, supervisor), send))
            assert isinstance(answer, OSError) is not swallowed
            await idle(supervisor)
        assert journal == ["task"]

    async def test_stream(self, journal):
        """B10, B12: in an endless stream what was waited for runs at once, what was deferred waits for the end."""
        release = asyncio.Event()

        async def app(scope, receive, send):
            defer(journal.note, "deferred")
            wait_until(journal.note("waited"))
            await send(START)
            while not release.is_set():
                await send(PART)
                await asyncio.sleep(0)
            await send({"type": "http.response.body"})

        async with Supervisor() as supervisor:
            streaming = asyncio.ensure_future(call(DeferredMiddleware(app, supervisor)))
            await turns(20)
            assert journal == ["waited"]
            release.set()
            await streaming
            await idle(supervisor)
        assert journal == ["waited", "deferred"]

    async def test_the_cap_of_a_stream(self):
        """B12: an endless stream that defers at every part is stopped by its cap, and other requests are not."""
        refused = []

        async def endless(scope, receive, send):
            await send(START)
            while True:
                try:
                    defer(fine)
                except Exception as error:  # noqa: BLE001  # a refusal is what is expected
                    refused.append(error)
                    return
                await send(PART)

        async with Supervisor(max_per_context=10) as supervisor:
            await call(DeferredMiddleware(endless, supervisor))
            assert len(refused) == 1
            await idle(supervisor)
            assert supervisor.stats().succeeded == 10

    async def test_trailers(self, journal):
        """B10: a response with trailers is out when these are; headers are optional in its first message."""

        async def app(scope, receive, send):
            defer(journal.note)
            await send({"type": "http.response.start", "status": 200, "trailers": True})
            await send({"type": "http.response.body", "body": b""})
            await turns(5)
            journal.append("trailers")
            await send({"type": "http.response.trailers", "headers": []})

        async with Supervisor() as supervisor:
            await call(DeferredMiddleware(app, supervisor))
            await idle(supervisor)
        assert journal == ["trailers", "task"]

    @pytest.mark.parametrize(
        "message",
        [{"type": "http.response.start"}, {"type": "unknown"}, {"type": "http.response.start", "status": "200"}],
    )
    async def test_malformed_messages(self, message):
        """S12: a message that no server understands is the server's to refuse: it gets the very object."""

        async def app(scope, receive, send):
            await send(message)

        async with Supervisor() as supervisor:
            sent = await call(DeferredMiddleware(app, supervisor))
        assert len(sent) == 1
        assert sent[0] is message

    async def test_the_status_is_no_number(self, journal):
        """S12, S4: an app that sends its status as a text breaks no task of this or any other request."""

        async def app(scope, receive, send):
            deferred_from(scope).with_options(when="success").defer(journal.note, "when")
            defer(journal.note, "always")
            await send({**START, "status": "200"})
            await send(BODY)

        async with Supervisor() as supervisor:
            await outcome_of(call(DeferredMiddleware(app, supervisor)))
            with supervisor.context() as ctx:
                ctx.defer(journal.note, "other")
            await idle(supervisor)
        assert {"always", "other"} <= set(journal)
        assert nothing_left(supervisor)


class TestLifetime:
    @pytest.mark.parametrize("error", [None, BoomError, SystemExit])
    async def test_the_call_stays(self, journal, error):
        """S11: with ``lifetime="request"`` the app call stays open until the work is done, also when it raises."""

        async def slowly():
            await turns(10)
            journal.append("task")

        async def app(scope, receive, send):
            defer(slowly)
            if error is not None:
                raise error
            await send(START)
            await send(BODY)

        async with Supervisor() as supervisor:
            answer = await outcome_of(call(DeferredMiddleware(app, supervisor, lifetime="request")))
            assert journal == ["task"]
            assert type(answer) is (list if error is None else error)
