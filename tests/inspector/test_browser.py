"""The page in a real browser: what is seen is what was recorded."""

import json
import re

import pytest
from playwright.sync_api import expect

from tests.inspector.browser import card, done, in_browser
from tests.inspector.support import NASTY

pytestmark = in_browser


def test_a_request_appears_and_grows(served, browse, shot):
    """A live row: striped while it runs, then as long as it took, without loading anything anew."""
    app = served()
    page = browse(app.url)
    expect(page.locator(".empty")).to_contain_text("Nothing has happened yet")
    app.visit("/long")
    found = card(page, "/long")
    running = found.locator(".bar.running")
    expect(running).to_have_count(1)
    expect(found.locator(".summary")).to_contain_text("all done …")
    before = running.evaluate("bar => bar.ends[0] / bar.parentElement.offsetWidth")
    expect(page.locator("#counts")).to_contain_text("1 running")
    app.visit("/waituntil")
    finished = done(page, "/waituntil")
    expect(finished.locator(".bar.running")).to_have_count(0)
    expect(page.locator(".card").first.locator(".route")).to_have_text("/waituntil")
    assert running.evaluate("bar => bar.offsetWidth / bar.parentElement.offsetWidth") > 0.9
    assert before >= 0
    shot(page, "live")


@pytest.mark.parametrize("route", ["/sequential", "/waituntil", "/retried", "/fails"])
def test_the_geometry_is_that_of_the_recorded_times(served, browse, route):
    """Each bar stands where its recorded time is on the axis; the line of the response goes through all rows."""
    app = served()
    page = browse(app.url)
    app.visit(route)
    found = done(page, route)
    view = page.evaluate("fetch('api/requests').then(answer => answer.json())")["requests"][0]
    whole = view["done"]
    drawn = found.locator(".row").evaluate_all(
        """rows => rows.map(row => {
            const track = row.querySelector(".track").getBoundingClientRect();
            const at = (x) => (x - track.left) / track.width;
            return [...row.querySelectorAll(".bar")].map((bar) => {
                const box = bar.getBoundingClientRect();
                return [bar.className, at(box.left), at(box.right)];
            });
        })"""
    )
    assert len(drawn) == 1 + len(view["rows"])
    place, top, bottom = found.evaluate(
        """card => {
            const tracks = [...card.querySelectorAll(".track")].map(track => track.getBoundingClientRect());
            const line = card.querySelector(".sent").getBoundingClientRect();
            const [first, last] = [tracks[0], tracks.at(-1)];
            const middle = (line.left + line.right) / 2;
            return [(middle - first.left) / first.width, line.top - first.top, line.bottom - last.bottom];
        }"""
    )
    assert place == pytest.approx(view["response"] / whole, abs=0.005)
    assert top <= 0 <= bottom
    assert drawn[0][0][1:] == pytest.approx([0, view["response"] / whole], abs=0.005)
    for row, bars in zip(view["rows"], drawn[1:], strict=True):
        attempts = [bar for bar in bars if re.search(r"inside|done|failed", bar[0])]
        for attempt, (_, left, right) in zip(row["attempts"], attempts, strict=True):
            assert left == pytest.approx(attempt["started"] / whole, abs=0.005)
            assert right == pytest.approx(attempt["ended"] / whole, abs=0.005)


def test_a_retried_task(served, browse, shot):
    """Failed attempts are red, the waits between them hatched, the last attempt as any other."""
    app = served()
    page = browse(app.url)
    app.visit("/retried")
    row = done(page, "/retried").locator(".row").last
    kinds = row.locator(".bar").evaluate_all("bars => bars.map(bar => bar.className.split(' ')[1])")
    assert [kind for kind in kinds if kind != "wait"] == ["failed", "backoff", "failed", "backoff", "done"]
    expect(row.locator(".tries")).to_contain_text("3")
    row.locator("a").click()
    attempts = page.locator("#detail .attempts li")
    expect(attempts).to_have_count(3)
    expect(attempts.first).to_contain_text("ConnectionError: 421 try again later")
    shot(page, "retried")


def test_a_failed_task(served, browse, shot):
    """Its bar is red, its error is read without a click, its traceback with one."""
    app = served()
    page = browse(app.url)
    app.visit("/fails")
    found = done(page, "/fails")
    expect(found.locator(".error")).to_have_text("RuntimeError: 550 no such user")
    expect(found.locator(".bar.failed")).to_have_count(1)
    found.locator("a.go").click()
    expect(page.locator("#detail pre")).to_contain_text("raise RuntimeError")
    expect(page.locator("#detail .site")).to_contain_text("support.py:")
    expect(page.locator("#counts")).to_contain_text("1 failed")
    shot(page, "failed")


def test_text_stays_text(served, browse, shot):
    """G05, G16: A name and an error that look like markup are shown, in every view, and do nothing."""
    app = served()
    page = browse(app.url)
    app.visit("/nasty")
    found = done(page, "/nasty")
    expect(found.locator(".row .name").last).to_contain_text(NASTY)
    expect(found.locator(".error")).to_contain_text(NASTY)
    found.locator("a.go").click()
    expect(page.locator("#detail h3").first).to_contain_text(NASTY)
    page.get_by_role("button", name="Show arguments").click()
    expect(page.locator("#detail .args")).to_contain_text("<img src=x")
    shot(page, "text")
    page.goto(f"{app.url}#/tasks")
    expect(page.locator("tbody th")).to_contain_text(NASTY)
    assert page.title() == "deferred · inspector"
    assert page.locator("main img, main script, aside img, aside script").count() == 0


def test_arguments_and_logs(served, browse):
    """G10: Arguments are shown when asked for, secrets not at all; the lines of a task stand with it."""
    app = served()
    page = browse(app.url)
    app.visit("/waituntil")
    done(page, "/waituntil").locator(".row a").click()
    detail = page.locator("#detail")
    expect(detail.locator(".log")).to_contain_text("sending to ada@example.com")
    expect(detail.locator(".args")).to_have_count(0)
    detail.get_by_role("button", name="Show arguments").click()
    expect(detail.locator(".args")).to_contain_text("'ada@example.com'")
    expect(detail.locator(".args")).to_contain_text("•••")
    expect(detail.locator(".args")).not_to_contain_text("hunter2")


def test_a_request_is_copied(served, browse):
    """Copied as JSON, it is what the inspector has recorded."""
    app = served()
    page = browse(app.url, permissions=["clipboard-read", "clipboard-write"])
    app.visit("/fails")
    done(page, "/fails").locator("a.go").click()
    page.get_by_role("button", name="Copy as JSON").click()
    expect(page.locator("#notice")).to_have_text("Copied")
    copied = json.loads(page.evaluate("navigator.clipboard.readText()"))
    assert (copied["route"], copied["rows"][1]["error"]) == ("/fails", "RuntimeError: 550 no such user")
