"""The site: it builds strictly, asks nothing of other hosts, and names everything there is."""

import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from types import FunctionType, ModuleType
from typing import Any

import pytest

import deferred
from deferred import integrations
from tests.docs.examples import ROOT

DOCS = ROOT / "docs"
FOLDERS = ("docs", "tools", "deferred")
FILES = ("zensical.toml", "CHANGELOG.md", "CONTRIBUTING.md")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site in a folder of its own, as `make docs` does."""
    folder = tmp_path_factory.mktemp("site")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, folder / name)
    (folder / "build").mkdir()
    (folder / "build/unreleased.md").write_text("## Unreleased\n")
    built = subprocess.run(
        [Path(sys.executable).with_name("zensical"), "build", "--strict"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return folder / "build/site"


class Asked(HTMLParser):
    """What a browser asks for when it shows a page."""

    def __init__(self) -> None:
        super().__init__()
        self.urls: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what is loaded without a click."""
        given = dict(attrs)
        loaded = [given.get("src"), given.get("srcset"), given.get("data"), given.get("poster")]
        if tag == "link":
            loaded.append(given.get("href"))
        self.urls += [url for url in loaded if url]


def test_no_page_asks_anything_of_another_host(site: Path) -> None:
    """Fonts, scripts, styles and images are all files of the site."""
    pages = sorted(site.rglob("*.html"))
    assert pages
    for page in pages:
        asked = Asked()
        asked.feed(page.read_text())
        assert asked.urls
        # A canonical link would be allowed; there is no address of the site yet.
        assert [url for url in asked.urls if re.match(r"(https?:)?//", url)] == [], page.name


def test_no_style_asks_anything_of_another_host(site: Path) -> None:
    """No style sheet imports or loads what is not in the site."""
    styles = sorted(site.rglob("*.css"))
    assert styles
    for style in styles:
        loaded = re.findall(r"(?:@import|url\()\s*['\"]?((?:https?:)?//[^'\")]*)", style.read_text())
        assert loaded == [], style.name


# --- what the pages name -------------------------------------------------------------------------


def in_navigation(entries: list[dict[str, Any]]) -> Iterator[str]:
    """Give the page of each entry, at any depth."""
    for entry in entries:
        for target in entry.values():
            if isinstance(target, str):
                yield target
            else:
                yield from in_navigation(target)


def test_each_page_is_in_the_navigation_once() -> None:
    """A page that no menu leads to would be found by nobody, and a menu leads to no page that is missing."""
    config = tomllib.loads((ROOT / "zensical.toml").read_text())
    listed = list(in_navigation(config["project"]["nav"]))
    assert sorted(listed) == sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))


def test_each_public_name_is_in_the_reference_once() -> None:
    """The API reference has each name of `deferred`, and none that is not there."""
    pages = "".join(path.read_text() for path in sorted((DOCS / "api").glob("*.md")))
    described = re.findall(r"^::: deferred\.(\w+)$", pages, re.MULTILINE)
    assert sorted(described) == sorted(deferred.__all__)


def own_names(module: ModuleType) -> Iterator[str]:
    """Give the classes and functions that a module has made itself: what it passes on is described at its origin."""
    for name in module.__all__:
        thing = getattr(module, name)
        if isinstance(thing, type | FunctionType) and thing.__module__ == module.__name__:
            yield f"{module.__name__}.{name}"


def test_each_integration_is_in_the_reference() -> None:
    """The API reference has each class and function of each integration."""
    described = re.findall(r"^::: (.+)$", (DOCS / "api/integrations.md").read_text(), re.MULTILINE)
    found = [module.name for module in iter_modules(integrations.__path__, "deferred.integrations.")]
    modules = [import_module(name) for name in found if not name.rpartition(".")[2].startswith("_")]
    assert modules
    assert {name for module in modules for name in own_names(module)} <= set(described)
    assert len(described) == len(set(described))


@pytest.mark.parametrize("name", deferred.__all__)
def test_each_public_name_says_what_it_is(name: str) -> None:
    """Each name that the reference lists has a docstring of its own."""
    assert getattr(deferred, name).__doc__


def links(page: Path) -> list[str]:
    """Return the targets of a page's links that lead to a file."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    return [target for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target]


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_between_files_lead_somewhere(name: str) -> None:
    """A relative link of a file at the top names a file that is there."""
    missing = [target for target in links(ROOT / name) if not (ROOT / target.partition("#")[0]).is_file()]
    assert missing == []
