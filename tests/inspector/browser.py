"""What is looked for in the page."""

import re
import shutil

import pytest
from playwright.sync_api import expect

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

in_browser = [
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine (Debian: apt-get install chromium)"),
    pytest.mark.timeout(120),
]


def card(page, route):
    """Return the latest card of a route."""
    return page.locator(".card", has=page.locator(".route", has_text=re.compile(f"^{re.escape(route)}$"))).first


def done(page, route):
    """Wait until all of a request is over; return its card."""
    found = card(page, route)
    expect(found.locator(".summary")).to_contain_text(re.compile(r"all done \d"))
    return found
