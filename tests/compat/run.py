"""Try each integration on the lowest and the newest version of its framework (`make compat`)."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tomllib
import venv
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
ENVIRONMENTS = ROOT / "build" / "compat"
TOOLS = [
    "pytest>=8.4",
    "pytest-asyncio>=1.2",
    "pytest-benchmark>=5.1",
    "pytest-randomly>=3.16",
    "pytest-timeout>=2.4",
    "hypothesis>=6.120",
    "blockbuster>=1.5.24",
    "looptime>=0.4",
    "uvicorn>=0.34",
]
ENDS = ("lowest", "newest")
VERSION = "import sys; from importlib.metadata import version; print(version(sys.argv[1]))"


def environment(name: str, end: str, row: dict[str, Any]) -> Path:
    """Make a fresh environment with these requirements; return its Python."""
    folder = ENVIRONMENTS / f"{name}-{end}"
    venv.create(folder, clear=True, with_pip=True)
    python = folder / "bin" / "python"
    pip = [python, "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
    subprocess.run([*pip, *TOOLS, *row.get("also", ()), *row[end], "--editable", ROOT], check=True)
    return python


def passes(name: str, end: str, row: dict[str, Any], arguments: list[str]) -> bool:
    """Run the tests of one framework at one end; say which version it was."""
    python = environment(name, end, row)
    package = row[end][0].partition("=")[0].partition("<")[0]
    found = subprocess.run([python, "-c", VERSION, package], check=True, capture_output=True, text=True).stdout.strip()
    print(f"== {package} {found} ({end})", flush=True)
    # Old versions warn on new Pythons of what newer ones have mended.
    warnings = ["-o", "filterwarnings=ignore"] if end == "lowest" else []
    tests = sorted((ROOT / "tests" / "integrations").glob(f"test_{name}*.py"))
    ran = subprocess.run([python, "-m", "pytest", "-q", *warnings, *arguments, *tests], check=False, cwd=ROOT)
    return ran.returncode == 0


def main() -> None:
    """Run what the command line asks for; exit with what failed."""
    rows = tomllib.loads((HERE / "versions.toml").read_text())
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", choices=rows, default=list(rows), help="frameworks")
    parser.add_argument("--end", choices=ENDS, help="one end of the range")
    known, arguments = parser.parse_known_args()
    ends = [known.end] if known.end else ENDS
    failed = [f"{name} ({end})" for name in known.only for end in ends if not passes(name, end, rows[name], arguments)]
    if failed:
        sys.exit(f"Failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
