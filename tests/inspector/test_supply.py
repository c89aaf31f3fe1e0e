"""What comes into a build and an installation: as far as the repository can say."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
ASSETS = sorted(
    path for folder in ("deferred/inspector/static", "marathon_app/pages") for path in (ROOT / folder).iterdir()
)


def test_nothing_of_ours_runs_at_installation():
    """G25: No build hook, no setup.py: a wheel is made of the files as they are, by a build back end with a bound."""
    assert PROJECT["build-system"] == {"requires": ["hatchling>=1.27"], "build-backend": "hatchling.build"}
    assert not list(ROOT.glob("setup.*"))
    build = PROJECT["tool"]["hatch"]["build"]
    assert "hooks" not in build
    assert all("hooks" not in target for target in build["targets"].values())


def test_one_package_is_needed():
    """G25: Who installs `deferred-middleware` gets msgspec and nothing else; everything else is asked for."""
    assert [re.match(r"[\w-]+", need)[0] for need in PROJECT["project"]["dependencies"]] == ["msgspec"]


def test_every_need_has_a_bound():
    """G25: Each requirement of an extra says which version it was tried with, and none comes from an address."""
    extras = PROJECT["project"]["optional-dependencies"]
    needs = [need for extra in extras.values() for need in extra if not need.startswith("deferred-middleware[")]
    assert [need for need in needs if not re.search(r"[<>=]=?", need)] == []
    assert [need for need in needs if "@" in need or "://" in need] == []


@pytest.mark.parametrize("path", ASSETS, ids=lambda path: path.name)
def test_a_page_loads_nothing_from_elsewhere(path):
    """G25: Scripts, styles and pages name no other origin; modules are ours, by a path below the page."""
    text = path.read_text()
    addresses = set(re.findall(r"https?://[^\s\"'`)]+", text))
    assert {address for address in addresses if not address.startswith(("http://www.w3.org/", "http://localhost"))} - {
        "http://${address.slice(at"
    } == set()
    imported = re.findall(r"^import .* from \"([^\"]+)\"", text, re.MULTILINE)
    assert all(name.startswith("./") for name in imported)
    assert not re.search(r"\beval\(|new Function\(|innerHTML|document\.write|insertAdjacentHTML", text)


def test_files_are_as_short_as_they_are_to_be():
    """Scripts and styles keep the bound of every other file: 400 lines."""
    assert [path.name for path in ASSETS if len(path.read_text().splitlines()) > 400] == []
