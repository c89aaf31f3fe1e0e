"""The page in a real browser: what it shows is what happened, and everybody can use it."""

import re
import shutil
from pathlib import Path

import pytest

from tests.marathon.test_end_to_end import running, wait_for

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
SHOTS = Path(__file__).parents[2] / "build/screenshots"  # what the page looks like, for whoever wants to see
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PATIENCE = 40_000  # milliseconds until a page has shown what it is to show; only a broken one needs them
AS_TEXT = '<img src="x" onerror="document.title = 1">'

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine (Debian: apt-get install chromium)"),
    pytest.mark.xdist_group("browser"),
    pytest.mark.timeout(120),
]


@pytest.fixture(scope="module")
def browser():
    """Give the machine's own browser; none is ever downloaded."""
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    """Give a demo that starts again when it is killed."""
    folder = tmp_path_factory.mktemp("demo")
    with running(folder, MARATHON_DEMO_RESTART="yes", MARATHON_DEMO_DELAYS="insert=60,mail=150") as app:
        yield app


@pytest.fixture
def open_page(browser, app):
    """Give a function that opens the page; afterwards the mail server works, and nothing was complained of."""
    contexts, complaints = [], []

    def open_it(**options):
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.set_default_timeout(PATIENCE)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda said: complaints.append(said.text) if "Security Policy" in said.text else None)
        page.on("request", lambda asked: complaints.append(asked.url) if not asked.url.startswith(app.url) else None)
        page.goto(app.url)
        playwright.expect(page.locator("#runners")).to_have_text(re.compile(r"\d"), timeout=PATIENCE)
        return page

    yield open_it
    for context in contexts:
        context.close()
    app.client.post("/dev/mail-server", json={"mode": "ok"})
    assert [text for text in complaints if not text.startswith("data:")] == []


def press(page, button="#one-click"):
    """Press a button, which is busy at once, and wait until all is over."""
    page.click(button)
    page.wait_for_selector("#all[aria-disabled=false]")


def barriers(page):
    """Return what axe finds fault with."""
    found = axe.Axe().run(page).response["violations"]
    return [(each["id"], [node["html"] for node in each["nodes"]][:3]) for each in found]


def bars(page, route):
    """Return the bars of a card: for each row its name and [left, right, classes], as shares of the track."""
    return page.evaluate(
        """(id) => [...document.querySelectorAll(`#${id} .row`)].map((row) => {
            const track = row.children[1].getBoundingClientRect();
            const share = (x) => (x - track.left) / track.width;
            const of = (name) => [...row.querySelectorAll(name)].map((it) => it.getBoundingClientRect())
                .map((box) => [share(box.left), share(box.right)]);
            return { name: row.children[0].textContent, bars: of(".bar"), sent: of(".mark.sent"),
                looks: [...row.querySelectorAll(".bar")].map((bar) => bar.className) };
        })""",
        route,
    )


def test_the_waterfalls_are_the_recorded_times(open_page):
    """Every execution answers, and its bars lie on the one axis where the server's own times say."""
    page = open_page(viewport={"width": 1240, "height": 1300})
    with page.expect_request(lambda asked: "marathon-waituntil" in asked.url) as asked:
        press(page)
    times = page.evaluate(
        "async (id) => (await (await fetch(`/dev/timeline?ids=${id}`)).json()).runs[0]",
        asked.value.headers["marathon-run"],
    )
    insert, mail = times["rows"]
    request_row, insert_row, mail_row = bars(page, "waituntil")
    end = times["answered"] / request_row["bars"][0][1]  # milliseconds that the whole track shows

    assert [row["name"] for row in (request_row, insert_row, mail_row)] == [
        "request",
        "INSERT runners",
        "↳ send confirmation e-mail",
    ]
    for recorded, row in ((insert, insert_row), (mail, mail_row)):
        (segment,), ((left, right),) = recorded["segments"], row["bars"]
        assert left == pytest.approx(segment["start"] / end, abs=0.01)
        assert right == pytest.approx(segment["end"] / end, abs=0.01)
        assert row["sent"][0][0] == pytest.approx(times["answered"] / end, abs=0.01)
    for card in page.query_selector_all(".run"):
        assert card.query_selector(".status").inner_text() in {"200", "201", "202"}
        assert re.fullmatch(r"response .* · all done .*", card.query_selector(".summary").inner_text())


def test_running_work_is_striped(open_page):
    """While a mail is on its way its bar is striped and grows; afterwards it is neither."""
    page = open_page()
    page.check("input[value=hang]")
    page.click("#one-click")
    striped = page.wait_for_selector("#waituntil .row:nth-child(3) .bar.running")
    first = striped.bounding_box()
    assert page.locator("#waituntil .summary").inner_text().endswith("all done …")
    page.check("input[value=ok]")
    page.wait_for_selector("#all[aria-disabled=false]")

    assert first["width"] > 0
    assert page.locator(".bar.running").count() == 0


def test_a_refusing_mail_server(open_page):
    """The error stands under every execution, for everybody; only the sequential one has told its runner of it."""
    page = open_page(bypass_csp=True)  # for axe, see below
    page.check("input[value=refuse]")
    press(page)

    statuses = {
        card.get_attribute("id"): card.query_selector(".status").inner_text()
        for card in page.query_selector_all(".run")
    }
    assert statuses["sequential"] == "502"
    assert {status for route, status in statuses.items() if route != "sequential"} == {"201", "202"}
    for card in page.query_selector_all(".run"):
        assert "550 5.1.1 No such user here" in card.query_selector(".fault").inner_text()
        assert card.query_selector(".bar.bad")
    assert barriers(page) == []


def test_a_mail_server_that_says_later(open_page, app):
    """Each attempt is a bar, and the wait before the next one is hatched."""
    page = open_page()
    page.check("input[value=later]")
    with page.expect_request(lambda asked: "marathon-waituntil" in asked.url) as asked:
        page.click("#one-click")
    ids = {"ids": asked.value.headers["marathon-run"]}

    def attempts():
        runs = app.client.get("/dev/timeline", params=ids).json()["runs"]
        return [segment for run in runs for row in run["rows"] for segment in row["segments"] if segment.get("failed")]

    wait_for(attempts)
    app.client.post("/dev/mail-server", json={"mode": "ok"})  # before its last attempt, however slow the browser is
    page.wait_for_selector("#waituntil .bar.backoff")
    page.wait_for_selector("#all[aria-disabled=false]")

    _, _, mail = bars(page, "waituntil")
    assert mail["looks"][:2] == ["bar bad", "bar backoff"]
    assert mail["looks"][-1] == "bar after"
    assert page.locator("#waituntil .time").last.inner_text().endswith("tries")


def test_nobody_waits_for_the_last_attempt(open_page):
    """While a mail is still tried the buttons are free again, and the next press is shown in the place of the last."""
    page = open_page()
    page.clock.install()
    page.check("input[value=hang]")
    page.click("#one-click")
    page.wait_for_selector("#waituntil .row:nth-child(3) .bar.running")
    assert page.locator("#verdict").inner_text().startswith("Under way: Sequential, Fire and forget, ")
    assert page.locator("#all").get_attribute("aria-disabled") == "true"
    page.clock.fast_forward(10_000)
    page.wait_for_selector("#all[aria-disabled=false]")
    assert page.locator("#waituntil .bar.running").count() == 1

    page.check("input[value=ok]")
    press(page)
    assert page.locator("#verdict").inner_text().startswith("First answer: ")
    assert page.locator(".bar.running").count() == 0


def test_what_a_kill_leaves(open_page, app):
    """Killed after the answers, the process has lost the mails that were in memory; it is back by itself."""
    page = open_page()
    page.check("input[value=hang]")
    press(page, "#kill")

    verdict = page.locator("#verdict").inner_text()
    assert re.match(r"Killed after \d", verdict)
    assert re.search(r"Mail lost with the process: .*Fire and forget, Concurrent, Deferred", verdict)
    assert page.locator("#sequential .summary").inner_text() == "no answer: the process died first"
    assert page.locator("#waituntil .mark.kill").count() == 3
    assert app.client.get("/api/stats").json()["runners"] > 0
    press(page)
    assert page.locator("#sequential .status").inner_text() == "200"


def test_a_field_at_fault(open_page):
    """What is wrong with a field is said at the field, which has the focus."""
    page = open_page()
    page.fill("#email", "nobody")
    page.fill("#firstName", AS_TEXT * 3)
    press(page, "#all")

    assert page.locator("#email-error").inner_text() != ""
    assert page.locator("#email").get_attribute("aria-invalid") == "true"
    assert page.evaluate("document.activeElement.getAttribute('aria-invalid')") == "true"


def test_what_others_wrote_is_text(open_page):
    """Markup in a mail or in an error is shown, not obeyed."""
    page = open_page()
    mail = {"to": AS_TEXT, "subject": AS_TEXT, "message_id": "<1@x>", "received_at": "2999-01-01T00:00:00.000000Z"}
    headers = {"Marathon-Now": "2026-01-01T00:00:00.000000Z"}
    page.route("**/dev/outbox*", lambda route: route.fulfill(json=[mail], headers=headers))
    row = {"kind": "task", "created": 1, "segments": []}
    rows = [
        {**row, "name": AS_TEXT, "state": "failed", "error": AS_TEXT},
        {**row, "name": "send confirmation", "state": "succeeded", "error": None},  # else stored work is waited for
    ]

    def tell(route):
        names = re.search(r"ids=([^&]*)", route.request.url)[1].split(",")
        runs = [{"id": name, "now": 9, "answered": 2, "rows": rows} for name in names]
        route.fulfill(json={"process": "p", "runs": runs})

    page.route("**/dev/timeline*", tell)
    press(page)

    assert AS_TEXT in page.locator("#mails .to").all_inner_texts()
    assert AS_TEXT in page.locator("#mails .subject").all_inner_texts()
    assert page.locator("#waituntil .fault").inner_text() == AS_TEXT
    assert page.locator("main img").count() == 0
    assert page.title() != "1"


def test_by_keyboard(open_page):
    """Everything is reached with Tab, pressed with Enter, switched with the arrow keys; focus is seen."""
    page = open_page()
    reached = []
    for _ in range(16):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.value || ''"))
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
        if reached[-1] == "kill":
            break
    assert reached[:2] == ["", "one-click"]  # the link to the inspector is the first
    assert {"firstName", "email", "fresh", "all", "ok", "kill"} <= set(reached)

    page.focus("input[value=ok]")
    with page.expect_response("**/dev/mail-server"):
        page.keyboard.press("ArrowDown")
    assert page.evaluate("async () => (await (await fetch('/dev/mail-server')).json()).mode") == "refuse"
    page.focus("#one-click")
    page.keyboard.press("Enter")
    page.wait_for_selector("#verdict:not([hidden])")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [380, 800, 1240])
def test_it_fits(open_page, scheme, width):
    """Axe finds no barrier; nothing is wider than the window, nor taller than it needs be, in both colour schemes."""
    # Its own policy forbids what axe does: measuring by styles in elements.
    page = open_page(viewport={"width": width, "height": 900}, color_scheme=scheme, bypass_csp=True)
    press(page)
    page.wait_for_selector("#mails li")
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SHOTS / f"marathon-{scheme}-{width}.png", full_page=True)
    assert barriers(page) == []

    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("Math.max(...[...document.querySelectorAll('#mails li')].map((it) => it.offsetHeight))") < 80
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background)[:3])) < 384) == (scheme == "dark")
