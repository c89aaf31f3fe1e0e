"""What is said of the versions that integrations work with is the same everywhere."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROWS = tomllib.loads((ROOT / "tests" / "compat" / "versions.toml").read_text())
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


PAGES = ROOT / "docs" / "integrations"


def lowest_of(name):
    """Return the lowest version that is tried: in full, and as texts name it."""
    lowest = ROWS[name]["lowest"][0].partition("==")[2]
    return lowest, ".".join(lowest.split(".")[:2])


@pytest.mark.parametrize("name", ROWS)
def test_the_lowest_version_is_the_one_that_is_tried(name):
    """The bound of the extra and the module's docstring name the version that `make compat` tries."""
    lowest, short = lowest_of(name)
    bound = re.search(r">=([\d.]+)", EXTRAS[name][0])[1]
    assert f"{lowest}.0".startswith(f"{bound}.")
    # Without importing it: Django's wants settings, and none of this is about what runs.
    assert f" {short}" in (ROOT / "deferred" / "integrations" / f"{name}.py").read_text().partition('"""\n\nfrom')[0]


@pytest.mark.parametrize("name", [name for name in ROWS if (PAGES / f"{name}.md").exists()])
def test_the_pages_name_it_too(name):
    """A framework's page says which versions are supported, the lowest first."""
    _, short = lowest_of(name)
    page = (PAGES / f"{name}.md").read_text()
    assert re.search(rf"^Supported: \w+ {re.escape(short)}\b", page, re.MULTILINE)
