"""Run Starlette's own suite as it is and with every app wrapped: the difference has to be none.

``make downstream`` runs it. The suite is that of the source distribution of the Starlette that is
installed here; it runs in an environment of its own, under ``build/downstream``, against the
installed package and not against the sources beside it. (For the superuser its tests of file
permissions fail, wrapped or not.)
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
BUILD = ROOT / "build" / "downstream"
WAYS = ("plain", "around", "inside", "used")
"""As it is; around what clients are given; around every app's own stack; around, and work deferred by each request."""

TOOLS = ("coverage", "mypy", "pytest-codspeed", "ruff", "starlette", "twine", "types-")
"""What the suite's requirements hold and a run of it does not need."""


def sources(name: str) -> Path:
    """Return the unpacked source distribution of Starlette, without the package itself."""
    folder = BUILD / name
    if not (folder / "tests").is_dir():
        BUILD.mkdir(parents=True, exist_ok=True)
        requirement = name.replace("-", "==")
        pip(sys.executable, "download", "--no-deps", "--no-binary", ":all:", "--dest", str(BUILD), requirement)
        with tarfile.open(next(BUILD.glob(f"{name}.tar.*"))) as archive:
            archive.extractall(BUILD, filter="data")
        shutil.rmtree(folder / "starlette")  # the installed one is the one that people use
    return folder


def environment(folder: Path) -> str:
    """Return the Python of an environment with what the suite needs, and this checkout."""
    home = BUILD / f"venv-{sys.version_info.major}.{sys.version_info.minor}-{folder.name}"
    python = str(home / "bin" / "python")
    stamp = home / "made"
    if not stamp.exists():
        shutil.rmtree(home, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
        groups = tomllib.loads((folder / "pyproject.toml").read_text())["dependency-groups"]
        needed = [item for item in groups["dev"] if isinstance(item, str) and not item.startswith(TOOLS)]
        pinned = folder.name.replace("-", "[full]==")
        pip(python, "install", "--editable", str(ROOT), pinned, *needed)
        stamp.touch()
    return python


def pip(python: str, *args: str) -> None:
    """Run pip, quietly."""
    subprocess.run([python, "-m", "pip", "--quiet", "--disable-pip-version-check", *args], check=True)


def run(python: str, folder: Path, way: str) -> dict[str, Any]:
    """Run the suite with apps wrapped this way; return what its tests came to."""
    report = BUILD / f"{way}.json"
    report.unlink(missing_ok=True)
    settings = {"DOWNSTREAM_WRAP": way, "DOWNSTREAM_REPORT": str(report), "PYTHONPATH": str(HERE)}
    command = [python, "-m", "pytest", "-q", "-p", "wrapping", "-p", "no:cacheprovider", "--no-header", "tests"]
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **settings}, capture_output=True, text=True, check=False
    )
    if not report.exists():
        raise SystemExit(f"the suite did not run:\n{done.stdout}\n{done.stderr}")
    result: dict[str, Any] = json.loads(report.read_text())
    return result


def described(result: dict[str, Any]) -> str:
    """Return the counts of a run in words."""
    counts = Counter(entry["outcome"] for entry in result["outcomes"].values())
    texts = [f"{count} {outcome}" for outcome, count in counts.most_common()]
    scopes = [f"{count} {kind}" for kind, count in result["seen"].items()]
    return ", ".join(texts) + (f"; through the middleware: {', '.join(scopes)}" if scopes else "")


def differences(plain: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Return the tests that came to something else, with what they said."""
    found = []
    for test in sorted(plain["outcomes"].keys() | other["outcomes"].keys()):
        before, after = (result["outcomes"].get(test, {"outcome": "missing", "text": ""}) for result in (plain, other))
        if before["outcome"] != after["outcome"]:
            found.append(f"{test}: {before['outcome']}, now {after['outcome']}\n{after['text'][-2000:]}")
    return found


def main() -> int:
    """Run all ways, print the difference, and return 1 where there is one."""
    folder = sources(f"starlette-{version('starlette')}")
    python = environment(folder)
    results = {way: run(python, folder, way) for way in WAYS}
    print(f"The suite of {folder.name}")
    for way, result in results.items():
        print(f"  {way:7} {described(result)}")
    failed = 0
    for way in WAYS[1:]:
        if not results[way]["seen"].get("http"):
            print(f"{way}: nothing came through the middleware")
            failed = 1
        for difference in differences(results["plain"], results[way]):
            print(f"{way}: {difference}")
            failed = 1
    if not failed:
        print("The difference is none.")
    return failed


if __name__ == "__main__":
    sys.exit(main())
