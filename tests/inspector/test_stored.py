"""Stored work in the waterfall of the request that stored it, in the process that runs it too."""

import asyncio
import logging

import pytest

from deferred import Retry, Supervisor, defer
from deferred.engines.memory import MemoryEngine
from tests.inspector.support import App, ask, opened, the_request

pytestmark = pytest.mark.looptime


class Shop:
    """An app that stores a job, and what it has served. Lives as long as a test."""

    def __init__(self, failures=0, **options):
        self.engine = MemoryEngine()
        self.supervisor = Supervisor(engine=self.engine)
        self.app = App(self.supervisor, **options)
        self.delay = None
        self.gate = asyncio.Event()
        self.gate.set()
        left = [OSError("later") for _ in range(failures)]

        @self.supervisor.task("mail", retry=Retry(on=OSError, attempts=3, wait_initial=2, wait_jitter=0))
        async def mail(to):
            logging.getLogger("shop").warning("sending")
            await self.gate.wait()
            await asyncio.sleep(1)
            if left:
                raise left.pop()
            defer(asyncio.sleep, 0)

        @self.app.route("/r")
        async def register(ctx):
            await asyncio.sleep(1)
            self.job = await ctx.enqueue(mail, "ada@example.org", delay=self.delay)

    async def empty(self):
        """Wait until no job waits or runs, and no task."""
        while (depth := await self.engine.depth()).waiting or depth.running:
            await asyncio.sleep(0.01)
        await self.app.settle()


async def test_it_is_shown_with_its_request():
    """The job waits, pale, and runs in the waterfall of its request, with its log and what it deferred itself."""
    shop = Shop()
    shop.delay = 3
    async with opened(shop.app) as client:
        await client.get("/r")
        (waiting,) = (await ask(client, "requests"))["requests"]
        assert (waiting["rows"][0]["state"], waiting["done"]) == ("enqueued", pytest.approx(1))
        await shop.empty()
        assert (await ask(client, "requests"))["total"] == 1
        request = await the_request(client)
        assert (await ask(client, f"tasks/{shop.job}/arguments"))["arguments"] == [["to", "'ada@example.org'"]]
    mail, more = request["rows"]
    assert (mail["id"], mail["state"], mail["execution"]) == (shop.job, "succeeded", "durable")
    assert (mail["created"], mail["ended"]) == (pytest.approx(1), pytest.approx(5, abs=0.1))
    assert mail["attempts"][0]["started"] == pytest.approx(4, abs=0.1)
    assert request["response"] == pytest.approx(1)
    assert request["done"] == pytest.approx(5, abs=0.1)
    assert more["name"] == "sleep"
    assert [(line["text"], line["task"]) for line in request["lines"]] == [("sending", shop.job)]


async def test_each_delivery_is_an_attempt():
    """A delivery that failed is red, the wait for the next one hatched; all are one row."""
    shop = Shop(failures=2)
    async with opened(shop.app) as client:
        await client.get("/r")
        while not (request := (await ask(client, "requests"))["requests"][0])["rows"][0].get("attempts"):
            await asyncio.sleep(0.1)
        while shop.supervisor._launcher.tasks:
            await asyncio.sleep(0.1)
        (request,) = (await ask(client, "requests"))["requests"]
        assert request["rows"][0]["state"] == "enqueued"
        assert "done" not in request  # it is to be tried again
        await shop.empty()
        assert (await ask(client, "requests"))["total"] == 1
        request = await the_request(client)
        assert "done" in request
        assert shop.app.recorder._failures == {}
    mail = request["rows"][0]
    assert mail["state"] == "succeeded"
    assert [attempt.get("error", "") for attempt in mail["attempts"]] == ["OSError: later"] * 2 + [""]
    assert [attempt.get("backoff") for attempt in mail["attempts"]] == [pytest.approx(2), pytest.approx(4), None]
    assert "error" not in mail


async def test_what_runs_is_seen_in_its_request():
    """A request is open again while its job runs, and those who watch are told."""
    shop = Shop()
    shop.gate.clear()
    async with opened(shop.app) as client:
        await client.get("/r")
        while not shop.supervisor._launcher.tasks:
            await asyncio.sleep(0.01)
        with shop.app.recorder.watched():
            before = shop.app.recorder.change
            shop.app.recorder.touch()
            (trace,) = shop.app.recorder.traces(before)
        (request,) = (await ask(client, "requests"))["requests"]
        assert trace.id == request["id"]
        assert "done" not in request
        (mail,) = request["rows"]
        assert (mail["state"], mail["id"], mail["created"]) == ("running", shop.job, pytest.approx(1))
        shop.gate.set()
        await shop.empty()
        (request,) = (await ask(client, "requests"))["requests"]
        assert request["rows"][0]["state"] == "succeeded"
        assert "done" in request


@pytest.mark.parametrize("failures", [0, 1])
async def test_the_work_of_others_is_a_record_of_its_own(failures):
    """What another process has stored, or a request that is recorded no longer, is shown by itself."""
    shop = Shop(failures, max_requests=1)
    shop.delay = 1
    async with opened(shop.app) as client:
        await client.get("/r")
        shop.app.inspector.forget()
        assert not shop.app.recorder.stored.jobs
        await shop.empty()
        (request,) = (await ask(client, "requests"))["requests"]
    assert request["label"] == "GET /r"
    mail = request["rows"][0]
    assert (mail["id"], mail["state"], mail["created"]) == (shop.job, "succeeded", 0)


async def test_the_jobs_of_a_request_that_made_room_are_forgotten():
    """What the recorder remembers of stored jobs is bounded by the requests that it keeps."""
    shop = Shop(max_requests=2)
    shop.delay = 100
    async with opened(shop.app) as client:
        for _ in range(5):
            await client.get("/r")
        assert len(shop.app.recorder.stored.jobs) == 2


async def test_requests_can_be_left_out():
    """With `ignore` a request is shown only if it leaves work behind, or its handler raised."""
    app = App(ignore=["/health/", "GET /quiet"])

    @app.route("/health/live")
    @app.route("/quiet")
    @app.route("/other")
    async def nothing(_ctx):
        pass

    @app.route("/health/work")
    async def work(ctx):
        ctx.defer(asyncio.sleep, 0)

    async with opened(app) as client:
        for path in ("/health/live", "/quiet", "/other", "/health/work"):
            await client.get(path)
        await app.settle()
        shown = [request["label"] for request in (await ask(client, "requests"))["requests"]]
    assert shown == ["GET /health/work", "GET /other"]
    with pytest.raises(TypeError, match=r"\['/health/'\]"):
        App(ignore="/health/")
