"""The page at `/`: what its policy forbids is not in it, and everybody can use it."""

from html.parser import HTMLParser
from pathlib import Path

import pytest

import marathon_app
from marathon_app.settings import DemoDelays, MailServer, Settings
from tests.marathon.support import serving

PAGES = Path(marathon_app.__file__).parent / "pages"
VOID = {"meta", "link", "input"}


class Page(HTMLParser):
    """The elements of a page: tag, attributes, and the text inside."""

    def __init__(self, html):
        super().__init__()
        self.elements = []
        self.open = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        """Note an element."""
        element = {"tag": tag, "text": "", **dict(attrs)}
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag):
        """Close the element that was opened last, which must be this one."""
        assert self.open.pop()["tag"] == tag

    def handle_data(self, data):
        """Add text to every element around it."""
        for element in self.open:
            element["text"] += data

    def find(self, tag, **attributes):
        """Return the elements with these attributes."""
        return [
            element
            for element in self.elements
            if element["tag"] == tag and all(element.get(name) == value for name, value in attributes.items())
        ]


@pytest.fixture
async def client(tmp_path):
    """Give a client of an app with an outbox and demo delays."""
    settings = Settings(database=tmp_path / "marathon.db", demo_delays=DemoDelays(insert=180.0, mail=350.0))
    async with serving(settings) as client:
        yield client


@pytest.fixture
async def page(client):
    """Give the page, parsed."""
    response = await client.get("/")
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    return Page(response.text)


async def test_every_tag_is_closed(page):
    """The page is well-formed: what is opened is closed in order."""
    assert page.open == []


async def test_nothing_inline(page):
    """G04: No script, style or handler stands in the page itself, so the policy needs no exception."""
    assert all("src" in script for script in page.find("script"))
    assert page.find("style") == []
    assert not [name for element in page.elements for name in element if name == "style" or name.startswith("on")]
    for script in PAGES.glob("*.js"):
        assert "style=" not in script.read_text()
        assert "innerHTML" not in script.read_text()


async def test_what_it_loads_is_there(client, page):
    """The page loads its style and its module from the app, each with its type, and nothing else."""
    (script,), (icon, style) = page.find("script"), page.find("link")

    assert script["type"] == "module"
    assert (await client.get(script["src"])).headers["content-type"] == "text/javascript; charset=utf-8"
    assert (await client.get(style["href"])).headers["content-type"] == "text/css; charset=utf-8"
    assert icon["href"].startswith("data:image/svg+xml,")


async def test_a_card_for_each_execution(client, page):
    """Each registration route that the app has is shown with its path, what it knows and what it risks; no other."""
    cards = page.find("article")
    offered = {route.path for route in client.app.routes if route.path.startswith("/api/marathon-")}

    assert {card["data-path"] for card in cards} == offered
    assert all(" knows" in card["text"] and "and risks" in card["text"] for card in cards)


async def test_every_module_is_served(client):
    """What the page's modules import is served too, each as what it is, and files beside them are not."""
    for script in PAGES.glob("*.js"):
        response = await client.get(f"/{script.name}")
        assert response.headers["content-type"] == "text/javascript; charset=utf-8"
    assert (await client.get("/index.html")).status_code == 404


async def test_switches_only_where_they_work(tmp_path, page):
    """The page offers to make trouble with the embedded mailbox on a loopback address, and nowhere else."""
    open_to_all = Settings(database=tmp_path / "open.db", host="0.0.0.0")
    async with serving(open_to_all) as client:
        elsewhere = Page((await client.get("/")).text)

    assert page.find("button", id="kill")
    assert page.find("body", **{"data-controls": "yes"})
    assert not elsewhere.find("button", id="kill")
    assert elsewhere.find("body", **{"data-controls": "no"})


async def test_every_field_has_a_label_and_a_place_for_its_error(page):
    """Each input is labelled, and what is wrong with it is announced with it."""
    labelled = {label.get("for") for label in page.find("label")}
    ids = {element.get("id") for element in page.elements}

    for field in ("firstName", "lastName", "email", "address"):
        (control,) = page.find("input", name=field)
        assert control["id"] in labelled
        assert control["aria-describedby"] in ids
    assert {control["value"] for control in page.find("input", name="distance")} == {"10", "half", "full"}
    assert page.find("html", lang="en")
    assert all(element["aria-labelledby"] in ids for element in page.elements if "aria-labelledby" in element)


async def test_what_must_be_said_is_said(page):
    """The demo delays are shown, and the concurrent route says what it cannot know."""
    (chip,) = page.find("span", **{"class": "chip"})
    (concurrent,) = page.find("article", id="concurrent")

    assert chip["text"] == "demo delays: insert +180 ms, mail +350 ms"
    assert "second mail, with the same Message-ID" in concurrent["text"]
    assert page.find("body", **{"data-outbox": "yes"})


async def test_without_outbox_and_delays_it_says_so(tmp_path):
    """With a mail server of one's own the page watches no outbox, and without delays it says that there are none."""
    settings = Settings(database=tmp_path / "marathon.db", mail_server=MailServer(host="localhost", port=25))
    async with serving(settings) as client:
        page = Page((await client.get("/")).text)

    (chip,) = page.find("span", **{"class": "chip"})
    assert chip["text"] == "no demo delays"
    assert page.find("body", **{"data-outbox": "no"})


async def test_light_dark_and_narrow():
    """The style knows both colour schemes, narrow screens, and who wants no motion."""
    style = (PAGES / "style.css").read_text()

    for query in ("prefers-color-scheme: dark", "max-width: 620px"):
        assert query in style
    assert "animation" not in style


async def test_the_inspector_is_beside_it(client, page):
    """The page links to the inspector, which shows this machine what the routes have done."""
    assert page.find("a", href="/_deferred/")
    assert (await client.get("/_deferred/")).status_code == 200
    answer = await client.get("/_deferred/api/requests", params={"text": "/nowhere"})
    assert answer.json()["requests"] == []


async def test_the_inspector_of_real_runners_is_closed(tmp_path):
    """G01: With a real mail server the names are real ones: nobody sees them unless debugging is on."""
    settings = Settings(database=tmp_path / "marathon.db", mail_server=MailServer(host="localhost", port=25))
    async with serving(settings) as client:
        assert (await client.get("/_deferred/")).status_code == 403


async def test_there_is_no_inspector_for_others(tmp_path):
    """G01: Where the app can be reached from elsewhere there is none."""
    async with serving(Settings(database=tmp_path / "marathon.db", host="0.0.0.0")) as client:
        page = await client.get("/")
        assert (await client.get("/_deferred/")).status_code == 404
    assert "/_deferred" not in page.text
