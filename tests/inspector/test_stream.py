"""The stream of what changes: short, resumable, never in the way of a shutdown."""

import asyncio
import json

import pytest

from deferred.inspector import _stream
from deferred.inspector._stream import LENGTH, MAX_STREAMS
from tests.inspector.support import PREFIX, marathon


class Stream:
    """One stream, read as it comes. Lives until it ends."""

    def __init__(self, app, since="", last_seen=""):
        self.batches = asyncio.Queue()
        self.gone = asyncio.Event()
        self.ended = False
        self.status = None
        headers = [(b"host", b"127.0.0.1")]
        if last_seen:
            headers.append((b"last-event-id", str(last_seen).encode()))
        self.scope = {
            "type": "http",
            "method": "GET",
            "path": "/api/stream",
            "query_string": f"since={since}".encode(),
            "headers": headers,
            "client": ("127.0.0.1", 1),
        }
        self.task = asyncio.create_task(app.inspector(self.scope, self._receive, self._send))

    async def _receive(self):
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message):
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = dict(message["headers"])
            return
        self.ended = not message.get("more_body", False)
        for event in message["body"].decode().split("\n\n"):
            lines = dict(line.partition(": ")[::2] for line in event.splitlines())
            if "data" in lines:
                batch = json.loads(lines["data"])
                assert int(lines["id"]) == batch["change"]
                self.batches.put_nowait(batch)

    async def next(self):
        """Return the next batch."""
        return await self.batches.get()

    async def routes(self):
        """Return what the next batch with requests tells of them."""
        while not (batch := await self.next())["requests"]:
            pass
        return [(each["route"], each.get("done")) for each in batch["requests"]]


@pytest.mark.looptime
async def test_a_request_is_told_as_it_goes_on(app, client):
    """A request appears when it begins, and again with each thing that happens to it."""
    marathon(app)
    stream = Stream(app)
    await stream.next()
    assert stream.headers[b"content-type"] == b"text/event-stream"
    answer = asyncio.create_task(client.get("/waituntil"))
    told = []
    while not told or told[-1]["route"] != "/waituntil" or "done" not in told[-1]:
        told += (await stream.next())["requests"]
    await answer
    states = [[row["state"] for row in each.get("rows", ())] for each in told]
    assert states[0] == []
    assert ["succeeded", "running"] in states
    assert states[-1] == ["succeeded", "succeeded"]


@pytest.mark.looptime
async def test_a_stream_ends_by_itself(app, client):
    """It lasts some seconds; nothing of it stays behind."""
    loop = asyncio.get_running_loop()
    started = loop.time()
    stream = Stream(app)
    await stream.task
    assert stream.ended
    assert LENGTH <= loop.time() - started <= LENGTH + 0.1
    assert not app.supervisor._launcher.hooks.deferred


@pytest.mark.looptime
async def test_a_drain_ends_it_at_once(app, client):
    """An open stream would hold up the server's shutdown: it ends when the drain begins."""
    marathon(app)
    await client.get("/long")
    stream = Stream(app)
    await stream.next()
    drain = asyncio.create_task(app.supervisor.drain(10))
    await asyncio.wait_for(stream.task, 0.1)
    assert stream.ended
    assert not drain.done()
    drain.cancel()
    with pytest.raises(asyncio.CancelledError):
        await drain
    await app.supervisor.drain(0)


@pytest.mark.looptime
async def test_a_signal_ends_it_at_once(app, client):
    """So it does when the process is told to end, which comes before any drain."""
    stream = Stream(app)
    await stream.next()
    app.supervisor._stopping = True
    await asyncio.wait_for(stream.task, 0.1)
    assert stream.ended


@pytest.mark.looptime
async def test_a_client_that_leaves_ends_it(app, client):
    """Nothing is sent to who is gone."""
    stream = Stream(app)
    await stream.next()
    stream.gone.set()
    await asyncio.wait_for(stream.task, 0.1)
    assert not stream.ended


@pytest.mark.looptime
@pytest.mark.parametrize("how", ["since", "last_seen"])
async def test_the_next_stream_goes_on_where_the_last_one_ended(app, client, how):
    """What happened between two streams is told by the second, and what was told is not told again."""
    marathon(app)
    first = Stream(app)
    await first.next()
    await client.get("/quiet")
    assert (await first.routes())[0][0] == "/quiet"
    await first.task
    seen = app.recorder.change
    await client.get("/fails")
    second = Stream(app, **{how: seen})
    assert {route for route, _ in await second.routes()} == {"/fails"}
    await app.drained()
    await second.task


@pytest.mark.looptime
async def test_work_of_long_ago_is_told_to_a_new_stream(app, client):
    """What has not settled is told anew, as nobody watched when it changed."""
    marathon(app)
    await client.get("/long")
    stream = Stream(app, since=app.recorder.change)
    assert await stream.routes() == [("/long", None)]
    await app.supervisor.drain(0)
    await stream.task


@pytest.mark.looptime
async def test_too_many_changes_are_told_as_that(app, client, monkeypatch):
    """A flood is told by its latest, and that there was more."""
    marathon(app)
    monkeypatch.setattr(_stream, "MOST", 5)
    stream = Stream(app)
    await stream.next()
    for _ in range(10):
        await client.get("/quiet")
    skipped = []
    while len(skipped) < 2:
        batch = await stream.next()
        if batch["requests"]:
            skipped.append(batch["skipped"])
            if batch["skipped"]:
                assert [each["number"] for each in batch["requests"]] == [10, 9, 8, 7, 6]
                break
    assert skipped[-1]
    await stream.task


@pytest.mark.looptime
async def test_the_counts_come_along(app, client):
    """The counts of now are told at once and every second."""
    stream = Stream(app)
    counts = []
    while not stream.task.done() or not stream.batches.empty():
        if stream.batches.empty():
            await asyncio.sleep(0.1)
        else:
            counts.append((await stream.next())["now"])
    assert len([each for each in counts if each]) in {3, 4}  # the last one may be due at the very end
    assert counts[0]["stats"]["running"] == 0


@pytest.mark.looptime
async def test_the_number_of_streams_is_bounded(app, client):
    """Further pages are asked to come again."""
    streams = [Stream(app) for _ in range(MAX_STREAMS + 1)]
    await asyncio.gather(*(stream.task for stream in streams))
    assert [stream.status for stream in streams] == [200] * MAX_STREAMS + [503]


@pytest.mark.looptime
async def test_a_restarted_process_begins_anew(app, client):
    """A change that was never counted here is of another process: only what comes is told."""
    stream = Stream(app, since=10**9)
    assert (await stream.next())["change"] < 10**9
    await stream.task


@pytest.mark.looptime
async def test_what_is_forgotten_is_told(app, client):
    """A page lets go of what is recorded no longer."""
    marathon(app)
    await client.get("/quiet")
    stream = Stream(app)
    await stream.next()
    app.inspector.forget()
    while not (batch := await stream.next())["removed"]:
        pass
    assert len(batch["removed"]) == 1
    await stream.task


async def test_head_opens_no_stream(client):
    """A HEAD of the stream is no stream."""
    assert (await client.head(f"{PREFIX}/api/stream")).status_code == 404
