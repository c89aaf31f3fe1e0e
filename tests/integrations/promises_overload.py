"""The promises about work that a limit refuses: 503 with Retry-After, from wherever it comes."""

from __future__ import annotations

import asyncio

import pytest

from deferred import DeferredContext, TaskRejectedError
from tests.integrations.adapter import Base
from tests.integrations.asgi_client import idle, turns
from tests.integrations.script import BoomError

one_a_request = pytest.mark.parametrize("supervisor", [{"max_per_context": 1}], indirect=True)
ROUTES = ["/plain", "/sync", "/stream"]


class OverloadPromises(Base):
    """Asked of every framework."""

    @one_a_request
    @pytest.mark.parametrize("path", ROUTES)
    async def test_a_rejection_in_a_task_group_is_answered_with_503(self, client, script, supervisor, path):
        """A rejection that comes out of a task group, inside an exception group, is a 503 as well."""
        self.needs(path)

        def act(ctx: DeferredContext) -> None:
            ctx.defer(script.work, "accepted")
            try:
                ctx.defer(script.work, "rejected")
            except TaskRejectedError as error:
                raise ExceptionGroup("unhandled errors in a TaskGroup", [ExceptionGroup("inner", [error])]) from None

        script.act = act
        exchange = await client.get(path)
        await idle(supervisor)
        assert exchange.status == 503
        assert int(exchange.headers["retry-after"]) >= 1
        assert exchange.error is None
        assert script.noted == ["accepted"]

    @one_a_request
    async def test_a_group_with_another_error_is_no_rejection(self, client, script, supervisor):
        """A group that also holds another error is the failure it would be without us."""

        def act(ctx: DeferredContext) -> None:
            ctx.defer(script.work)
            try:
                ctx.defer(script.work)
            except TaskRejectedError as error:
                raise ExceptionGroup("unhandled errors in a TaskGroup", [error, BoomError()]) from None

        script.act = act
        exchange = await client.get("/plain")
        await idle(supervisor)
        assert exchange.status == 500
        assert script.noted == ["work"]

    @one_a_request
    async def test_a_handler_that_answers_500_itself_keeps_its_answer(self, client, script, supervisor):
        """An error of the app's own that merely follows a rejection is answered as it is without us."""

        def act(ctx: DeferredContext) -> None:
            ctx.defer(script.work)
            try:
                ctx.defer(script.work)
            except TaskRejectedError as error:
                raise BoomError from error

        script.act = act
        exchange = await client.get("/raises")
        await idle(supervisor)
        assert exchange.status == 500
        assert script.noted == ["work"]

    @one_a_request
    async def test_a_rejection_after_the_response_has_begun_is_no_second_answer(self, client, script, supervisor):
        """A stream whose generator is refused ends as one that raised, with no second head."""
        script.midway = lambda ctx: [ctx.defer(script.work) for _ in range(2)]
        exchange = await client.get("/stream")
        await idle(supervisor)
        assert exchange.status == 200
        assert exchange.body == b"one"
        assert [message["type"] for message in exchange.sent].count("http.response.start") == 1
        assert script.noted == ["work"]

    @one_a_request
    async def test_the_next_request_is_served(self, client, script, supervisor):
        """A limit of one request is none of the next one's."""
        script.act = lambda ctx: [ctx.defer(script.work) for _ in range(2)]
        assert (await client.get("/plain")).status == 503
        script.act = lambda ctx: ctx.defer(script.work)
        assert (await client.get("/plain")).status == 200
        await idle(supervisor)
        assert script.noted == ["work", "work"]

    @one_a_request
    async def test_a_rejection_hangs_no_client(self, client, script, supervisor):
        """The 503 goes out to a slow client like any answer, and the accepted work waits for that."""
        script.act = lambda ctx: [ctx.defer(script.work) for _ in range(2)]
        exchange = client.open("GET", "/plain")
        arrived = asyncio.Event()
        exchange.hold = lambda message: message["type"] == "http.response.body" and (arrived.set() or True)
        exchange.start()
        await arrived.wait()
        await turns(10)
        assert script.noted == []
        exchange.gate.set()
        await exchange.done()
        await idle(supervisor)
        assert (exchange.status, script.noted) == (503, ["work"])

    @one_a_request
    async def test_a_rejection_in_a_websocket_is_told_to_its_client(self, client, script, supervisor):
        """Before the handshake it is answered with 503, where the server can; an open one is closed with 1013."""
        self.needs("/socket", "/refused")

        def act(ctx: DeferredContext) -> None:
            ctx.with_options(when="error").defer(script.work)
            ctx.defer(script.work)

        script.act = act
        refused, closed = client.websocket("/refused").start(), client.websocket("/socket").start()
        await refused.done()
        await closed.done()
        await idle(supervisor)
        assert (refused.status, refused.error) == (503, None)
        assert int(refused.headers["retry-after"]) >= 1
        assert closed.sent[-1]["type"] == "websocket.close"
        assert (closed.sent[-1]["code"], closed.error) == (1013, None)
        assert script.noted == ["work", "work"]
