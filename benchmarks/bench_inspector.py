"""What the inspector costs: a recorder beside none, and a page with a thousand requests."""

from __future__ import annotations

import asyncio
import shutil
import statistics
import threading
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn
from playwright.sync_api import sync_playwright

from benchmarks import measure
from benchmarks.apps import answer_and_defer, drive, work
from benchmarks.measure import fastest, record
from deferred import Supervisor
from deferred.inspector import Inspector
from deferred.integrations.asgi import DeferredMiddleware

TASKS = 500
LIMIT = 1.5
PAINT = 300.0  # milliseconds
VISIBLE = 100.0
CHROMIUM = shutil.which("chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]


async def defer_many(supervisor: Supervisor) -> None:
    """Open a context for every ten tasks, as a busy handler does."""
    for _ in range(TASKS // 10):
        with supervisor.context() as ctx:
            for _ in range(10):
                ctx.defer(work)
        await asyncio.sleep(0)
    while supervisor._launcher.tasks:
        await asyncio.sleep(0)


async def send_many(supervisor: Supervisor) -> None:
    """Send requests that defer one function each."""
    app = DeferredMiddleware(answer_and_defer, supervisor)
    await drive(app, TASKS, lambda: supervisor._launcher.tasks)


@pytest.fixture
def recorded(runner: asyncio.Runner) -> Iterator[Supervisor]:
    """A supervisor with a recorder that is full, as it is after a minute."""
    supervisor = Supervisor(max_running=10**8, max_pending=10**8, max_per_context=10**8)
    inspector = Inspector(supervisor)
    runner.run(supervisor.__aenter__())
    for _ in range(3):
        runner.run(send_many(supervisor))
    yield supervisor
    runner.run(supervisor.close())
    inspector.close()


@pytest.mark.parametrize("run", [defer_many, send_many], ids=["task", "request"])
def bench_recorder(
    benchmark: Any, loop: str, runner: asyncio.Runner, supervisor: Supervisor, recorded: Supervisor, run: Any
) -> None:
    """A task costs at most half as much again while it is recorded."""
    best = fastest(
        benchmark,
        {
            "recorder on": lambda: runner.run(run(recorded)),
            "recorder off": lambda: runner.run(run(supervisor)),
        },
        rounds=150,
        per=TASKS,
    )
    # What is promised is the task. A request of its own is three events more: aimed at, not reached.
    name = "a task, recorded" if run is defer_many else "a request with a task, recorded"
    record(benchmark, name, loop, best, limit=LIMIT, aim=run is send_many)


# --- the page -------------------------------------------------------------------------------------


async def handler(scope: Any, receive: Any, send: Any) -> None:
    """Serve a request with two tasks."""
    if scope["type"] == "lifespan":
        for kind in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{kind}.complete"})
        return
    await answer_and_defer(scope, receive, send)


class Served:
    """An app with an inspector that has recorded a thousand requests, in a thread."""

    def __init__(self) -> None:
        supervisor = Supervisor()
        self.inspector = Inspector(supervisor, debug=True)
        app = self.inspector.mount(DeferredMiddleware(handler, supervisor))
        self.server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", ws="none"))
        self.ready = threading.Event()
        startup = self.server.startup

        async def started(sockets: Any = None) -> None:
            await startup(sockets)
            asgi = DeferredMiddleware(handler, supervisor)
            await drive(asgi, 1000, lambda: supervisor._launcher.tasks)
            self.ready.set()

        self.server.startup = started  # type: ignore[method-assign]  # told when it is ready
        self.thread = threading.Thread(target=self.server.run)
        self.thread.start()
        assert self.ready.wait(60)
        self.home = f"http://127.0.0.1:{self.server.servers[0].sockets[0].getsockname()[1]}"

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(20)
        self.inspector.close()


WATCH = """() => {
    window.seen = [];
    const list = document.querySelector(".list");
    new MutationObserver((changes) => {
        for (const change of changes) for (const card of change.addedNodes) {
            requestAnimationFrame(() => seen.push(performance.timeOrigin + performance.now()));
        }
    }).observe(list, {childList: true});
}"""


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def bench_page(benchmark: Any) -> None:
    """With a thousand requests recorded the page paints, and shows a new request, before anybody notices."""
    if benchmark.disabled:
        pytest.skip("benchmarks are run by `make bench`")
    served = Served()
    paints, views = [], []
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS, headless=True)
            for _ in range(7):
                page = browser.new_page()
                page.goto(f"{served.home}/_deferred/")
                page.wait_for_selector(".card")
                paints.append(page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime"))
                assert page.locator(".card").count() == 100
                page.close()
            page = browser.new_page()
            page.goto(f"{served.home}/_deferred/")
            page.wait_for_selector("#live[data-state=live]")
            page.evaluate(WATCH)

            def visit() -> None:
                before = page.evaluate("seen.length")
                began = time.time() * 1000
                urllib.request.urlopen(f"{served.home}/register", timeout=10).read()
                page.wait_for_function("count => seen.length > count", arg=before)
                views.append(page.evaluate("seen.at(-1)") - began)

            benchmark.pedantic(visit, rounds=30)
            browser.close()
    finally:
        served.stop()
    for name, times, limit in (("first paint", paints, PAINT), ("a new request is visible", views, VISIBLE)):
        middle = statistics.median(times)
        benchmark.extra_info[name] = round(middle, 1)
        figures = f"{middle:.0f} ms (fastest {min(times):.0f}), limit {limit:.0f}"
        measure.notes.append(f"{name}, 1,000 requests recorded: {figures}")
        assert middle <= limit, f"{name} takes {middle:.0f} ms; {limit:.0f} are promised"
