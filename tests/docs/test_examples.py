"""Every example of the documentation and of the docstrings runs."""

import re
from pathlib import Path

import pytest

from tests.docs.examples import ROOT, Page, modules, name_of, pages, run_docstrings

LANGUAGES = {"python", "sh", "console", "text", "toml", "ini", "yaml", "json", "dockerfile", "http"}
WIDTH = 88


@pytest.mark.parametrize("path", pages(), ids=name_of)
def test_each_block_of_the_page_runs(path: Path) -> None:
    """The blocks of the page run, in order, as one program, and without a warning."""
    page = Page(path)
    assert page.examples
    page.run()


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_each_docstring_example_runs(path: Path) -> None:
    """The examples in the module's docstrings print what they say."""
    run_docstrings(path)


@pytest.mark.parametrize("path", [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))], ids=name_of)
def test_no_block_of_the_page_is_left_out(path: Path) -> None:
    """Each fence names a language alone: Python under another name, or with options, would not be run."""
    fences = re.findall(r"^ *(```+|~~~+)(.*)$", path.read_text(), re.MULTILINE)
    opened = [language for mark, language in fences[::2]]
    assert set(opened) <= LANGUAGES
    assert [language for mark, language in fences[1::2] if language] == []


@pytest.mark.parametrize("path", [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))], ids=name_of)
def test_no_line_of_a_block_is_wider_than_the_page(path: Path) -> None:
    """Readers need not scroll to the side: 88 columns fit."""
    blocks = re.findall(r"^```[a-z]+\n(.*?)^```$", path.read_text(), re.MULTILINE | re.DOTALL)
    assert [line for block in blocks for line in block.splitlines() if len(line) > WIDTH] == []
