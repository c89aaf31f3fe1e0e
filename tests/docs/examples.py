"""Run the examples of a page or a module, in order, with what they may take for granted.

A page is one program: its blocks share their names, ``await`` works at their top level, and its
time is virtual unless the page says ``<!-- time: real -->``. Blocks in HTML comments
(``<!-- invisible-code-block: python``) run like the others; they hold set-up and asserts.
"""

from __future__ import annotations
import __future__

import ast
import asyncio
import contextlib
import importlib
import inspect
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import looptime
from sybil import Document, Example, Sybil
from sybil.parsers.markdown import CodeBlockParser
from sybil.parsers.rest import DocTestParser

from tests.integrations.asgi_client import Lifespan

ROOT = Path(__file__).resolve().parents[2]
REAL_TIME = "<!-- time: real -->"


def pages() -> list[Path]:
    """Return every page that has a Python block."""
    found = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [path for path in found if "python\n" in path.read_text()]


def modules() -> list[Path]:
    """Return every module with an example in a docstring."""
    found = [*ROOT.glob("*.py"), *(ROOT / "deferred").rglob("*.py"), *(ROOT / "marathon_app").rglob("*.py")]
    return [path for path in sorted(found) if ">>> " in path.read_text()]


def name_of(path: Path) -> str:
    """Return what a test calls the file."""
    return str(path.relative_to(ROOT))


class Page:
    """One page as a running program. Lives as long as its test."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.document: Document = Sybil([CodeBlockParser("python", self._evaluate)]).parse(path)
        # A module, because frameworks look up the annotations of a handler in the module it names.
        self._module = ModuleType(f"page_{path.stem}")
        vars(self._module).update(cast_of_a_page(), PAGE=str(path))
        self.document.namespace = vars(self._module)
        self.examples = list(self.document)
        loops = asyncio.new_event_loop if REAL_TIME in self.document.text else looptime.new_event_loop
        self._runner = asyncio.Runner(loop_factory=loops)

    def run(self) -> None:
        """Run every block; the first that fails fails the page."""
        sys.modules[self._module.__name__] = self._module
        try:
            with self._runner:
                for example in self.examples:
                    example.evaluate()
        finally:
            del sys.modules[self._module.__name__]

    def _evaluate(self, example: Example) -> None:
        source = "\n" * (example.line + example.parsed.line_offset) + example.parsed
        code = compile(source, str(self.path), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
        outcome = eval(code, example.namespace)
        if inspect.iscoroutine(outcome):
            self._runner.run(outcome)


def run_docstrings(path: Path) -> None:
    """Run the examples of a module's docstrings, which see the module's own names."""
    document = Sybil([DocTestParser()]).parse(path)
    document.evaluators.clear()  # sybil's own way to import takes the module's __future__ imports along
    module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))
    document.namespace.update(
        (name, value) for name, value in vars(module).items() if not isinstance(value, __future__._Feature)
    )
    for example in document:
        example.evaluate()


# --- what every page may take for granted --------------------------------------------------------


def cast_of_a_page() -> dict[str, Any]:
    """Return the names that pages use without introducing them: a table, a mail server, a client."""
    stored: list[Any] = []
    sent: list[str] = []
    printed: list[str] = []

    def show(*values: object) -> None:
        printed.append(" ".join(map(str, values)))

    async def store(runner: Any) -> None:
        stored.append(runner)

    async def send_mail(address: str) -> None:
        sent.append(address)

    for function in (store, send_mail):
        function.__qualname__ = function.__name__  # logs call them as a page's own functions are called
    return {
        "print": show,
        "printed": printed,
        "store": store,
        "stored": stored,
        "send_mail": send_mail,
        "sent": sent,
        "serving": serving,
    }


@contextlib.asynccontextmanager
async def serving(app: Any) -> AsyncIterator[httpx.AsyncClient]:
    """Start an ASGI app in this process, give a client for it, and shut it down as a server would."""
    lifespan = Lifespan(app)
    await lifespan.startup()
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as client:
            yield client
    finally:
        await lifespan.shutdown()
