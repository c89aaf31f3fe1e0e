"""What is said of the versions that integrations work with is the same everywhere."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROWS = tomllib.loads((ROOT / "tests" / "compat" / "versions.toml").read_text())
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


@pytest.mark.parametrize("name", ROWS)
def test_the_lowest_version_is_the_one_that_is_tried(name):
    """The bound of the extra, the module's docstring and the page name the version that `make compat` tries."""
    lowest = ROWS[name]["lowest"][0].partition("==")[2]
    bound = re.search(r">=([\d.]+)", EXTRAS[name][0])[1]
    short = ".".join(lowest.split(".")[:2])
    assert f"{lowest}.0".startswith(f"{bound}.")
    # Without importing it: Django's wants settings, and none of this is about what runs.
    assert f" {short}" in (ROOT / "deferred" / "integrations" / f"{name}.py").read_text().partition('"""\n\nfrom')[0]
    page = (ROOT / "docs" / "integrations" / f"{name}.md").read_text()
    assert re.search(rf"^Supported: .* {re.escape(short)}", page, re.MULTILINE)
