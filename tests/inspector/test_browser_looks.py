"""The page in a real browser: everybody can use it, on any screen, in both themes."""

import asyncio

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from tests.inspector.browser import in_browser
from tests.inspector.support import App, Served, marathon
from tests.inspector.test_dead import Shelf, letter

pytestmark = in_browser

PLACES = {"requests": "#/requests", "tasks": "#/tasks", "dead": "#/dead", "now": "#/now", "detail": "#/requests/{id}"}


@pytest.fixture(scope="module")
def busy():
    """Serve an app in which everything has happened once, for all looks at it."""
    app = marathon(App())
    broken = letter("b", name="report", error="ValueError: no\nTraceback\n  line")
    app.supervisor._durable.engine = Shelf(letter("a"), broken)
    server = Served(app)
    server.start()
    server.visit("/sequential", "/waituntil", "/retried", "/nasty", "/quiet", "/long", "/fails")
    loop = app.supervisor._launcher.loop
    long = next(task for task in app.supervisor._launcher.tasks if task.name == "nightly report")
    others = [task for task in app.supervisor._launcher.tasks if task is not long]

    async def over():
        await asyncio.gather(*others, return_exceptions=True)

    asyncio.run_coroutine_threadsafe(over(), loop).result(20)
    yield server
    server.stop()
    app.inspector.close()


@pytest.mark.parametrize(("scheme", "width"), [("light", 1180), ("dark", 380)])
@pytest.mark.parametrize("place", PLACES)
def test_everybody_can_use_it(busy, browse, shot, place, scheme, width):
    """Axe finds no barrier in any view, in either theme, on a phone or on a screen; nothing is cut off."""
    # Its own policy forbids what axe does: measuring by styles in elements.
    page = browse(busy.url, width=width, color_scheme=scheme, bypass_csp=True)
    request = page.locator(".card.bad").first.get_attribute("data-id")
    page.goto(busy.url + PLACES[place].format(id=request))
    settled = {"requests": ".card", "tasks": "tbody tr", "dead": ".letter", "now": ".tile", "detail": "#detail pre"}
    expect(page.locator(settled[place]).first).to_be_visible()
    shot(page, f"{place}-{scheme}-{width}")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    found = Axe().run(page).response["violations"]
    assert [(each["id"], [node["html"] for node in each["nodes"]][:3]) for each in found] == []


def test_the_theme_is_chosen(busy, browse):
    """The theme is the system's until one is chosen, which is remembered."""
    page = browse(busy.url, color_scheme="light")
    paper = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(paper)
    button = page.locator("#theme")
    button.click()
    button.click()
    expect(button).to_have_text("Theme: dark")
    dark = page.evaluate(paper)
    assert light != dark
    page.reload()
    expect(button).to_have_text("Theme: dark")
    assert page.evaluate(paper) == dark
    page.keyboard.press("t")
    assert page.evaluate(paper) == light
