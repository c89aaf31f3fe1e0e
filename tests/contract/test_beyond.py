"""DF: what no platform promises."""

import asyncio
import contextvars
import threading

import pytest
import trio

from deferred import Outcome, Retry, Supervisor, defer
from deferred.exceptions import EventLoopError
from deferred.integrations.asgi import DeferredMiddleware
from tests.integrations.asgi_client import Client, idle, turns
from tests.integrations.raw_app import start

variable = contextvars.ContextVar("variable", default="unset")


@pytest.mark.parametrize("count", [1, 200])
async def test_deferred_work_delays_no_byte(supervisor, count):
    """DF-01: bytes, and the turns of the loop they come on, are the same with work and without."""

    async def busy():
        await turns(50)

    def app(work):
        async def app(scope, receive, send):
            for _ in range(work):
                defer(busy)
            await start(send, 200)
            for number in range(5):
                await turns(number)
                await send({"type": "http.response.body", "body": bytes([number]), "more_body": number < 4})

        return DeferredMiddleware(app, supervisor)

    async def timing(work):
        exchange = await Client(app(work)).get("/")
        await idle(supervisor)
        return exchange.body, [at - exchange.at[0] for at in exchange.at], exchange.returned - exchange.at[0]

    assert await timing(count) == await timing(0)


@pytest.mark.parametrize("where", ["supervisor", "context", "options"])
async def test_an_error_hook_gets_everything_there_is_to_know(where):
    """DF-05: task, name, attempt, registration site, request and outcome, whichever hook it is."""
    told = []

    async def send_mail():
        raise ConnectionError("refused")

    async with Supervisor(on_error=told.append if where == "supervisor" else None) as supervisor:
        with supervisor.context("POST /register") as ctx:
            view = ctx.with_options(name="mail", retry=Retry(on=ConnectionError, attempts=2, wait_initial=0))
            if where == "context":
                ctx.on_error(told.append)
            elif where == "options":
                view = view.with_options(on_error=told.append)
            handle = view.defer(send_mail)
        await ctx.drained()
    (event,) = told
    assert event.task is handle
    assert event.task.name == "mail"
    assert event.error is handle.error
    assert (event.attempt, event.outcome) == (2, Outcome.EXHAUSTED_ATTEMPTS)
    assert (event.label, event.context_id) == ("POST /register", ctx.id)
    assert event.site.rpartition(":")[0] == __file__


def test_under_trio_registering_says_that_asyncio_is_needed():
    """DF-09: everything else works; the call that would need a loop says so."""

    async def main():
        with Supervisor().context() as ctx:
            for register in (lambda: ctx.defer(turns, 1), lambda: ctx.wait_until(turns(1))):
                with pytest.raises(EventLoopError, match="asyncio"):
                    register()

    trio.run(main)


async def test_a_synchronous_callable_runs_in_a_thread_with_its_variables(supervisor):
    """DF-10: in another thread, with a copy of the context variables, pending until it is done."""
    entered, leave, seen = threading.Event(), threading.Event(), []

    def work():
        entered.set()
        leave.wait(60)
        seen.append((threading.current_thread() is threading.main_thread(), variable.get()))
        variable.set("changed")

    with supervisor.context() as ctx:
        variable.set("request")
        handle = ctx.defer(work)
    await asyncio.to_thread(entered.wait, 10)
    assert ctx.tasks == (handle,)
    assert not handle.done()
    leave.set()
    report = await ctx.drained()
    assert report.finished == 1
    assert seen == [(False, "request")]
    assert variable.get() == "request"
