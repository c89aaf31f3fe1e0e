"""The documentation's waterfalls are what the code draws today."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def drawn():
    """Run every picture's handler on a clock that jumps."""
    spec = importlib.util.spec_from_file_location("waterfalls", ROOT / "tools/waterfalls.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.draw_all()


def test_the_pictures_are_those_of_the_documentation(drawn):
    """Each file of docs/waterfalls is drawn anew, byte for byte: `python tools/waterfalls.py` writes them."""
    kept = {path.name: path.read_text() for path in (ROOT / "docs/waterfalls").iterdir()}
    assert sorted(kept) == sorted(drawn)
    for name, picture in drawn.items():
        assert kept[name] == picture, name


def test_each_picture_is_shown(drawn):
    """No picture is drawn for nobody."""
    pages = "".join(path.read_text() for path in (ROOT / "docs").rglob("*.md"))
    for name in drawn:
        assert f"waterfalls/{name})" in pages
