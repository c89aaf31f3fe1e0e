"""What changes, as server-sent events: one short stream after the other.

Rules of this file: a stream ends by itself, and at once when a drain begins, as an open one
would hold up the server's shutdown; so does one whose reader takes nothing; the browser comes
again and names what it has seen.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import MutableMapping
from typing import Any

import msgspec

from deferred.inspector._api import now
from deferred.inspector._http import SECURITY, Receive, Send, as_json
from deferred.inspector._recorder import Recorder
from deferred.inspector._views import RequestView, view_requests

__all__ = ["MAX_STREAMS", "Batch", "Streams"]

logger = logging.getLogger("deferred.inspector")

LENGTH = 3.0
"""Seconds that a stream lasts."""
PATIENCE = 2.0
"""Seconds more, for a reader that takes nothing: its connection is given up then."""
MOST_BYTES = 512 * 1024
"""Bytes that a stream brings before it ends: what a reader takes no longer fills the server's buffers."""
TICK = 0.03
"""Seconds between two looks at what has changed; a frame or two of a screen."""
COUNTS = 1.0
"""Seconds between two tellings of the counts."""
RETRY = 150
"""Milliseconds until the browser comes again."""
MAX_STREAMS = 50
MOST = 100


class Batch(msgspec.Struct, frozen=True):
    """What has changed.

    Attributes:
        change: Up to which change this tells; the next stream begins there.
        source: Who counts: another recorder, of a process that was started anew, counts from the beginning.
        requests: Those that have changed, whole; the latest of them where there are too many.
        removed: The ids of those that are recorded no longer.
        skipped: Whether there were too many.
        now: The counts, now and then.
    """

    change: int
    source: str
    requests: list[RequestView]
    removed: list[str]
    skipped: bool = False
    now: dict[str, Any] | None = None


class Streams:
    """The open streams of one inspector. Lives as long as it."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._open = 0

    @property
    def full(self) -> bool:
        """Whether no further stream is opened."""
        return self._open >= MAX_STREAMS

    async def serve(self, receive: Receive, send: Send, since: int | None) -> None:
        """Send what changes, for a while, until the client goes or a drain begins.

        Args:
            receive: The request's channel, which tells when the client is gone.
            send: Its other channel.
            since: The last change that the client knows; None for "from now on".
        """
        headers = {"Content-Type": "text/event-stream", "X-Accel-Buffering": "no", **SECURITY}
        encoded = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
        self._open += 1
        gone = asyncio.ensure_future(_until_gone(receive))
        until = asyncio.get_running_loop().time() + LENGTH + PATIENCE

        async def hand(message: MutableMapping[str, Any]) -> None:
            async with asyncio.timeout_at(until):  # the reader's fault alone: a loop that was blocked cuts nothing
                await send(message)

        try:
            await hand({"type": "http.response.start", "status": 200, "headers": encoded})
            await hand({"type": "http.response.body", "body": f"retry: {RETRY}\n\n".encode(), "more_body": True})
            with self._recorder.watched():
                await self._tell(hand, since, gone)
            if not gone.done():
                await hand({"type": "http.response.body", "body": b""})
        except TimeoutError:
            logger.info("a page that takes nothing of its stream was given up")
        finally:
            self._open -= 1
            gone.cancel()

    async def _tell(self, send: Send, since: int | None, gone: asyncio.Future[None]) -> None:
        recorder, loop = self._recorder, asyncio.get_running_loop()
        end = loop.time() + LENGTH
        told = recorder.change if since is None or since > recorder.change else since
        first, counts, sent = True, 0.0, 0
        while not gone.done() and not recorder.supervisor.draining:
            at = loop.time()
            if recorder.change > told or first or at >= counts:
                batch = self._batch(told, first=first, counts=at >= counts)
                told, first = batch.change, False
                if at >= counts:
                    counts = at + COUNTS
                text = b"id: %d\ndata: %b\n\n" % (batch.change, as_json(batch).body)
                await send({"type": "http.response.body", "body": text, "more_body": True})
                sent += len(text)
            if at >= end or sent > MOST_BYTES:
                return
            await asyncio.wait((gone,), timeout=TICK)

    def _batch(self, told: int, *, first: bool, counts: bool) -> Batch:
        recorder = self._recorder
        if first:  # while nobody watched, what has not settled changed unseen
            recorder.touch()
        change = recorder.change
        traces = recorder.traces(told)
        removed = [key for number, key in recorder.removed if number > told]
        views = view_requests(recorder, traces[:MOST])
        return Batch(change, recorder.source, views, removed, len(traces) > MOST, now(recorder) if counts else None)


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
