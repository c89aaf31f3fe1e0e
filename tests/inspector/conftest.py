"""What the inspector's tests share."""

from pathlib import Path

import pytest
from playwright.sync_api import expect, sync_playwright

from tests.inspector.browser import CHROMIUM
from tests.inspector.support import App, Served, marathon, opened

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]
PATIENCE = 30_000  # milliseconds until a page shows what it is to show; only a broken one needs them
SHOTS = Path(__file__).parents[2] / "build/screenshots"


@pytest.fixture
def app():
    """Give an app with an inspector; closed again at the end."""
    app = App()
    yield app
    app.inspector.close()


@pytest.fixture
async def client(app):
    """Give a client of the app, which is open as long as the test."""
    async with opened(app) as client:
        yield client


@pytest.fixture
def served():
    """Serve apps with the routes of the marathon, each in a thread; give what starts one."""
    started = []

    def serve(**options):
        app = marathon(App(**options))
        server = Served(app)
        started.append(server)
        server.start()
        return server

    yield serve
    for server in started:
        server.stop()
        server.app.inspector.close()


@pytest.fixture(scope="module")
def browser():
    """Start the machine's own browser, which holds the event loop of this thread; nothing is downloaded."""
    with sync_playwright() as playwright:
        expect.set_options(timeout=PATIENCE)
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS, headless=True)
        yield browser
        browser.close()


@pytest.fixture
def browse(browser):
    """Open pages; at the end none may have complained, of a policy or of anything else."""
    contexts, complaints = [], []

    def open_page(url, *, width=1180, height=860, may_complain=False, **options):
        context = browser.new_context(viewport={"width": width, "height": height}, reduced_motion="reduce", **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        if not may_complain:
            page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(url)
        expect(page.locator("#live-text")).to_have_text("live")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.fixture
def shot():
    """Keep what a page looks like, for whoever wants to look at it."""
    SHOTS.mkdir(parents=True, exist_ok=True)

    def keep(page, name):
        page.screenshot(path=SHOTS / f"{name}.png")

    return keep
