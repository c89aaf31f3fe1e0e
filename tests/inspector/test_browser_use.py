"""The page in a real browser: what is done in it, by mouse and by keyboard."""

import re

from playwright.sync_api import expect

from deferred.inspector import Password
from tests.inspector.browser import done, in_browser
from tests.inspector.test_dead import Shelf, letter

pytestmark = in_browser


def test_dead_letters_are_retried_and_deleted(served, browse, shot):
    """One letter is retried, one deleted after a question, and all of a filter."""
    app = served()
    shelf = Shelf(*(letter(each) for each in "abc"), letter("d", name="report"))
    app.app.supervisor._durable.engine = shelf
    page = browse(app.url)
    page.get_by_role("link", name="Dead letters").click()
    expect(page.locator(".letter")).to_have_count(4)
    shot(page, "dead")
    page.locator("[data-id=a]").get_by_role("button", name="Retry").click()
    expect(page.locator("#notice")).to_have_text("1 dead letter will be delivered again")
    expect(page.locator(".letter")).to_have_count(3)
    page.locator("[data-id=b]").get_by_role("button", name="Delete").click()
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator(".letter")).to_have_count(3)
    page.locator("[data-id=b]").get_by_role("button", name="Delete").click()
    page.locator("dialog").get_by_role("button", name="Delete").click()
    expect(page.locator(".letter")).to_have_count(2)
    page.get_by_label("any task").select_option("mail")
    expect(page.locator(".letter")).to_have_count(1)
    page.locator("[data-id=c] summary").click()
    page.locator("[data-id=c]").get_by_role("button", name="Show arguments").click()
    expect(page.locator("[data-id=c] pre")).to_contain_text("'ada@example.com'")
    page.get_by_role("button", name="Retry all 1").click()
    page.locator("dialog").get_by_role("button", name="Retry").click()
    expect(page.locator(".letter")).to_have_count(0)
    assert (shelf.requeued, list(shelf.letters)) == (["a", "c"], ["d"])


def test_the_keyboard_is_enough(served, browse):
    """J and k go through the list, Enter opens, Esc closes, / searches, digits change the view."""
    app = served()
    app.visit("/quiet", "/sequential", "/fails")
    page = browse(app.url)
    expect(page.locator(".card")).to_have_count(3)

    def focused():
        return page.evaluate("document.activeElement.closest('.card')?.querySelector('.route').textContent")

    routes = []
    for key in "jjjjk":
        page.keyboard.press(key)
        routes.append(focused())
    assert routes == ["/fails", "/sequential", "/quiet", "/quiet", "/sequential"]
    page.keyboard.press("Enter")
    expect(page.locator("#detail h2")).to_contain_text("/sequential")
    page.keyboard.press("Escape")
    expect(page.locator("#detail")).to_be_hidden()
    assert focused() == "/sequential"
    page.keyboard.press("/")
    page.keyboard.type("fails")
    expect(page.locator(".card")).to_have_count(1)
    page.keyboard.press("Escape")
    expect(page.locator(".card")).to_have_count(3)
    page.locator("main").focus()
    page.keyboard.press("2")
    expect(page.locator("tbody tr")).to_have_count(2)
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    expect(page.locator("#detail h2")).to_contain_text("/fails")
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    expect(page.locator("dialog")).to_contain_text("search")
    page.keyboard.press("Escape")
    expect(page.locator("dialog")).to_have_count(0)


def test_an_address_leads_back(served, browse):
    """What is open is in the address: loading it anew, or giving it to somebody, shows the same."""
    app = served()
    app.visit("/fails", "/waituntil")
    page = browse(app.url)
    done(page, "/fails").locator(".row a").click()
    expect(page.locator("#detail .work.chosen h3")).to_contain_text("send confirmation e-mail")
    again = browse(page.url)
    expect(again.locator("#detail .work.chosen h3")).to_contain_text("send confirmation e-mail")
    page.goto(f"{app.url}#/tasks")
    page.get_by_label("any state").select_option("failed")
    expect(page.locator("tbody tr")).to_have_count(1)
    expect(page).to_have_url(re.compile("state=failed"))
    again = browse(page.url)
    expect(again.locator("tbody tr")).to_have_count(1)
    gone = browse(f"{app.url}#/requests/unheard-of", may_complain=True)
    expect(gone.locator("#detail")).to_contain_text("recorded no longer")


def test_requests_are_filtered(served, browse):
    """With work, failed, by a text; also what comes later."""
    app = served()
    app.visit("/quiet", "/sequential", "/fails")
    page = browse(app.url)
    expect(page.locator(".card")).to_have_count(3)
    page.get_by_label("with work").check()
    expect(page.locator(".card")).to_have_count(2)
    page.locator(".check", has_text="failed").get_by_role("checkbox").check()
    expect(page.locator(".card")).to_have_count(1)
    app.visit("/quiet", "/fails")
    expect(page.locator(".card")).to_have_count(2)
    page.get_by_label("Search requests").fill("nothing like that")
    expect(page.locator(".empty")).to_contain_text("Nothing matches")


def test_older_requests_are_loaded(served, browse):
    """G18: The list begins with a page; more is asked for."""
    app = served()
    app.visit(*["/quiet"] * 130)
    page = browse(app.url)
    expect(page.locator(".card")).to_have_count(100)
    page.get_by_role("button", name="Show older ones").click()
    expect(page.locator(".card")).to_have_count(130)


def test_it_pauses_while_nobody_looks(served, browse):
    """A hidden page holds no stream; seen again, it shows what it has missed."""
    app = served()
    page = browse(app.url)
    hide = """hidden => {
        Object.defineProperty(document, "hidden", {configurable: true, get: () => hidden});
        document.dispatchEvent(new Event("visibilitychange"));
    }"""
    page.evaluate(hide, True)
    expect(page.locator("#live-text")).to_have_text("paused")
    expect(page.locator("#live")).to_have_attribute("aria-pressed", "false")
    app.visit("/waituntil")
    page.evaluate(hide, False)
    expect(page.locator("#live-text")).to_have_text("live")
    done(page, "/waituntil")
    page.locator("#live").click()
    expect(page.locator("#live-text")).to_have_text("paused")
    app.visit("/fails")
    page.locator("#live").click()
    done(page, "/fails")


def test_a_shutdown_is_not_held_up(served, browse):
    """An open page ends its stream when the server stops, and says that it is away."""
    app = served()
    page = browse(app.url, may_complain=True)
    app.stop()
    assert not app._thread.is_alive()
    expect(page.locator("#live-text")).to_have_text("reconnecting")


def test_a_password_is_asked_once(served, browse):
    """G02: The browser brings the password along with everything the page asks for."""
    app = served(auth=Password({"ada": "difference engine"}, readers={"guest": "only looking"}))
    who = {"username": "guest", "password": "only looking"}
    page = browse(app.url, http_credentials=who, may_complain=True)
    app.visit("/waituntil")
    done(page, "/waituntil").locator(".row a").click()
    expect(page.locator("#detail")).to_contain_text("Arguments are shown to operators only")
    page.goto(f"{app.url}#/now")
    expect(page.locator(".panel").first).to_be_visible()
    expect(page.get_by_role("button", name="Forget all")).to_have_count(0)


def test_what_is_recorded_can_be_forgotten(served, browse):
    """G24: After a question, all of it."""
    app = served()
    app.visit("/quiet", "/fails")
    page = browse(f"{app.url}#/now")
    page.get_by_role("button", name="Forget all").click()
    page.locator("dialog").get_by_role("button", name="Forget").click()
    expect(page.locator("#notice")).to_have_text(re.compile("requests? forgotten"))


def test_an_action_after_the_process_was_started_anew(served, browse):
    """A token of the process before is replaced by itself: the button works without loading the page again."""
    app = served()
    shelf = Shelf(letter("a"))
    app.app.supervisor._durable.engine = shelf
    page = browse(f"{app.url}#/dead", may_complain=True)  # the browser tells of the first answer, a 403
    expect(page.locator(".letter")).to_have_count(1)
    app.app.inspector._access._secret = b"of another process"
    page.locator("[data-id=a]").get_by_role("button", name="Retry").click()
    expect(page.locator("#notice")).to_have_text("1 dead letter will be delivered again")
    assert shelf.requeued == ["a"]


def test_a_page_sees_that_the_process_is_another(served, browse):
    """Also one that has seen as much already: what the one before has recorded is shown no longer."""
    app = served()
    app.visit("/quiet")
    page = browse(app.url)
    expect(page.locator(".card")).to_have_count(1)
    recorder = app.app.recorder
    recorder.forget(lambda _trace: True)
    recorder.removed.clear()
    recorder.change += 1000
    recorder.source = "another"
    app.visit("/sequential")
    expect(page.locator(".card .route")).to_have_text(["/sequential"])


def test_details_of_what_never_rests(served, browse):
    """The details follow a request to which something happens all the time."""
    app = served()
    app.visit("/busy")
    page = browse(app.url)
    page.locator(".card a.go").click()
    expect(page.locator("#detail .work")).not_to_have_count(0)
    changed = "(last) => [...document.querySelectorAll('#detail .work')].at(-1).innerHTML !== last"
    for _ in range(8):  # the last one, and not their number: there is a most that is shown
        page.wait_for_function(changed, arg=page.locator("#detail .work").last.inner_html())


def test_what_is_opened_stays_in_sight(served, browse):
    """Beside the details the cards are narrower and taller: the one that was opened is scrolled to."""
    app = served()
    path = "/api/a-name-that-leaves-no-room-for-the-times"
    app.app.route(path)(app.app.handlers["/waituntil"])
    app.visit(*([path] * 24))
    page = browse(app.url, width=1200)
    done(page, path)
    card = page.locator(".card").nth(20)
    card.evaluate("(element) => element.scrollIntoView({ block: 'end' })")
    card.locator("a.go").click()
    expect(page.locator("#detail h2")).to_be_visible()
    expect(page.locator(".card.chosen")).to_be_in_viewport(ratio=0.95)
