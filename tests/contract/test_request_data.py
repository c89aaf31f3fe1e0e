"""AP, DP and PG: what deferred work sees of its request, and where it may be registered."""

import pytest

from deferred import NoCurrentContextError, current_context, defer, wait_until
from deferred.integrations.asgi import DeferredMiddleware
from tests.integrations.asgi_client import Client, idle, turns
from tests.integrations.raw_app import answer

HEADERS = ((b"x-name", b"Ada"), (b"cookie", b"session=abc"))


async def post(supervisor, app, **options):
    """Send a POST request to the app and wait until its work is done."""
    exchange = await Client(DeferredMiddleware(app, supervisor)).request("POST", "/", headers=HEADERS, **options)
    await idle(supervisor)
    return exchange


@pytest.mark.parametrize(("name", "value"), HEADERS)
async def test_headers_and_cookies_are_readable_in_work(supervisor, name, value):
    """AP-01, AP-02, AP-03, AP-05: in the callable and in a nested one, of a POST handler as of any other."""
    seen = []

    async def read(scope, *, nested):
        seen.append(dict(scope["headers"])[name])
        if nested:
            defer(read, scope, nested=False)

    async def app(scope, receive, send):
        defer(read, scope, nested=True)
        await answer(send, 200, b"")

    await post(supervisor, app)
    assert seen == [value, value]


async def test_the_body_read_by_the_handler_can_be_handed_on(supervisor):
    """AP-05: what a POST handler has read arrives in its work as it was handed over."""
    seen = []

    async def work(body):
        seen.append(body)

    async def app(scope, receive, send):
        defer(work, (await receive())["body"])
        await answer(send, 200, b"")

    await post(supervisor, app, body=b"name=Ada")
    assert seen == [b"name=Ada"]


async def test_an_awaitable_made_before_registration_works_inside(supervisor, script):
    """AP-14: work may await what was created before it was registered, in the request."""
    import asyncio

    async def app(scope, receive, send):
        made = asyncio.get_running_loop().create_task(turns(5))
        defer(work, made)
        await answer(send, 200, b"")

    async def work(made):
        await made
        script.note("work")

    await post(supervisor, app)
    assert script.noted == ["work"]


@pytest.mark.looptime
@pytest.mark.parametrize("where", ["page", "action", "route", "middleware"])
async def test_a_slow_side_effect_is_seen_after_the_response(supervisor, script, where):
    """DP-01, DP-02, DP-03, DP-04: an effect a second later happens, from a GET, a POST, a helper and a middleware."""
    import asyncio

    async def effect():
        await asyncio.sleep(1)
        script.note("effect")

    def helper():
        defer(effect)

    async def app(scope, receive, send):
        if where in {"page", "action"}:
            defer(effect)
        elif where == "route":
            helper()
        await answer(send, 200, b"")
        script.note("answered")

    async def middleware(scope, receive, send):
        if where == "middleware":
            defer(effect)
        await app(scope, receive, send)

    client = Client(DeferredMiddleware(middleware, supervisor))
    await client.request("GET" if where == "page" else "POST", "/")
    report = await supervisor.drain()
    assert script.noted == ["answered", "effect"]
    assert report.finished == 1


async def test_middleware_defers_for_handlers_that_know_nothing_of_it(supervisor, script):
    """PG-01: work of a middleware runs whatever kind of handler stands behind it."""

    def handler_factory():
        class Handler:
            async def __call__(self, scope, receive, send):
                await answer(send, 200, b"")

        return Handler()

    async def middleware(scope, receive, send):
        deferred_to.append(current_context())
        defer(script.work)
        await handler_factory()(scope, receive, send)

    deferred_to = []
    await post(supervisor, middleware)
    assert script.noted == ["work"]


@pytest.mark.parametrize("place", ["startup", "module", "other task"])
async def test_use_in_an_unsupported_place_is_refused_at_the_call(supervisor, script, place):
    """PG-02: in the app's start-up, beside any app, and in a task from before the request, the call itself raises."""
    import asyncio

    refused = []

    def attempt():
        for register, work in ((defer, script.work), (wait_until, script.work())):
            try:
                register(work)
            except NoCurrentContextError as error:
                refused.append(error)

    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            await receive()
            if place == "startup":
                attempt()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
            return
        go_on.set()
        await answer(send, 200, b"")

    async def outsider():
        await go_on.wait()
        attempt()

    go_on = asyncio.Event()
    task = asyncio.get_running_loop().create_task(outsider()) if place == "other task" else None
    if place == "module":
        attempt()
    async with Client(DeferredMiddleware(app, supervisor)) as client:
        await client.get("/")
        if task is not None:
            await task
    assert len(refused) == 2
    assert script.noted == []
