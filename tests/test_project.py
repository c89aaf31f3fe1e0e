"""The repository itself: its commands, its files, and what its code never does."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAKE = shutil.which("make") or "make"
FILES = (
    ".ci/run",
    ".editorconfig",
    ".gitignore",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "Makefile",
    "README.md",
    "pyproject.toml",
    "zensical.toml",
)
TARGETS = (
    "run",
    "run-postgres",
    "test",
    "setup",
    "lint",
    "format",
    "types",
    "bench",
    "servers",
    "docs",
    "downstream",
    "docs-serve",
    "test-all",
    "test-oldest",
    "compare",
    "compat",
    "coverage",
    "mutation",
    "chaos",
    "random",
    "print-python",
    "clean",
    "help",
)


# --- the files -----------------------------------------------------------------------------------


def test_the_readme_opens_with_the_two_commands() -> None:
    """The first thing in the README is a block with `make run` and `make test`, and nothing else."""
    fence, first, second, end, *_ = (ROOT / "README.md").read_text().splitlines()
    commands = [line.partition("#")[0].strip() for line in (first, second)]
    assert (fence, commands, end) == ("```sh", ["make run", "make test"], "```")


@pytest.mark.parametrize("name", FILES)
def test_the_file_is_there(name: str) -> None:
    """Each file that a contributor looks for exists and says something."""
    assert (ROOT / name).read_text().strip()


def test_ci_can_be_started() -> None:
    """The script of the CI is executable."""
    assert os.access(ROOT / ".ci/run", os.X_OK)


def test_the_changelog_has_the_place_where_releases_go() -> None:
    """A release finds the marker that it writes below."""
    assert "<!-- towncrier release notes start -->\n" in (ROOT / "CHANGELOG.md").read_text()


# --- what the code never does --------------------------------------------------------------------

UNSAFE_MODULES = {"cloudpickle", "dill", "jsonpickle", "marshal", "pickle", "shelve"}
UNSAFE_CALLS = {"__import__", "eval", "exec"}
UNSAFE_ATTRIBUTES = {("builtins", "eval"), ("builtins", "exec"), ("yaml", "load"), ("yaml", "unsafe_load")}


def unsafe(source: str) -> list[tuple[int, str]]:
    """Return line and name of all that turns data into code in `source`."""
    found: list[tuple[int, str]] = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                modules = [alias.name for alias in names]
                found += [(node.lineno, name) for name in modules if name.split(".")[0] in UNSAFE_MODULES]
            case ast.ImportFrom(module=str(module), level=0, names=names):
                if module.split(".")[0] in UNSAFE_MODULES:
                    found.append((node.lineno, module))
                pairs = [(module, alias.name) for alias in names]
                found += [(node.lineno, ".".join(pair)) for pair in pairs if pair in UNSAFE_ATTRIBUTES]
            case ast.Call(func=ast.Name(id=name)) if name in UNSAFE_CALLS:
                found.append((node.lineno, name))
            case ast.Call(func=ast.Attribute(value=ast.Name(id=owner), attr=attribute)):
                if (owner, attribute) in UNSAFE_ATTRIBUTES:
                    found.append((node.lineno, f"{owner}.{attribute}"))
                if attribute == "import_module" and any(
                    isinstance(argument, ast.Constant) and argument.value in UNSAFE_MODULES for argument in node.args
                ):
                    found.append((node.lineno, "import_module"))
            case _:
                pass
    return found


@pytest.mark.parametrize("package", ["deferred", "marathon_app"])
def test_data_never_becomes_code(package: str) -> None:
    """G13: nothing unpickles, evaluates or executes data; arguments travel as msgspec-encoded values."""
    files = sorted((ROOT / package).rglob("*.py"))
    offences = [
        f"{file.relative_to(ROOT)}:{line}: {name}"
        for file in files
        for line, name in unsafe(file.read_text(encoding="utf-8"))
    ]
    assert files
    assert offences == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import os, dill",
        "from marshal import loads",
        "from pickle import loads as harmless",
        "from yaml import load",
        "eval('1')",
        "exec('1')",
        "__import__('pickle')",
        "builtins.eval('1')",
        "yaml.load(text)",
        "importlib.import_module('pickle')",
        "def late():\n    import shelve",
    ],
)
def test_the_search_for_unsafe_code_finds_it(source: str) -> None:
    """G13: the search above sees each way in, wherever it stands."""
    assert unsafe(source)


@pytest.mark.parametrize("source", ["re.compile('x')", "connection.exec('x')", "json.load(file)", "evaluate()"])
def test_the_search_for_unsafe_code_leaves_the_rest_alone(source: str) -> None:
    """G13: a harmless namesake is no offence."""
    assert unsafe(source) == []


# --- the commands --------------------------------------------------------------------------------


def make(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run make in the checkout, with nothing of a make above it in the environment."""
    inherited = {name: value for name, value in os.environ.items() if name in {"HOME", "LANG", "PATH", "TMPDIR"}}
    return subprocess.run(
        [MAKE, "--no-print-directory", *arguments],
        cwd=ROOT,
        env=inherited | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def test_help_lists_each_command() -> None:
    """`make help` names each target of the Makefile with a few words."""
    listed = re.findall(r"^make ([a-z-]+) +\S", make("help").stdout, re.MULTILINE)
    declared = set(re.findall(r"^\.PHONY: ([a-z-]+)$", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert sorted(listed) == sorted(TARGETS)
    assert set(listed) == declared


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "insert=180,mail=350|yes"),
        ({"MARATHON_DEMO_DELAYS": "", "MARATHON_DEMO_RESTART": ""}, "|"),
        ({"MARATHON_DEMO_DELAYS": "mail=5", "MARATHON_DEMO_RESTART": "no"}, "mail=5|no"),
    ],
)
def test_run_has_demo_delays_unless_they_are_set(tmp_path: Path, given: dict[str, str], expected: str) -> None:
    """`make run` sets the delays of the demonstration and starts again; an empty setting counts as set."""
    (tmp_path / "bin").mkdir()
    executable(tmp_path / "bin/python", 'echo "$MARATHON_DEMO_DELAYS|$MARATHON_DEMO_RESTART|$MARATHON_PORT|$*"')
    # An environment that counts as made and installed: the stamp is newer than all it depends on.
    (tmp_path / ".made-by").touch()
    (tmp_path / ".run-stamp").touch()
    ran = make("run", f"VENV={tmp_path}", "STALE=", MARATHON_PORT="8123", **given)
    assert ran.stdout == f"{expected}|8123|-m marathon_app\n"


# --- finding a Python ----------------------------------------------------------------------------


def executable(path: Path, script: str) -> Path:
    """Write a shell script that can be run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def python_of(path: Path, version: str, level: str = "final") -> Path:
    """Write a Python that works and says it is `version`."""
    info = (*map(int, version.split(".")), level, 0)
    return executable(path, f'code="import sys; sys.version_info = {info!r}\n$2"\nexec "{sys.executable}" "$1" "$code"')


def broken(path: Path) -> Path:
    """Write what pyenv leaves on PATH for a version that is not active: a name that fails."""
    return executable(path, 'echo "pyenv: command not found" >&2; exit 127')


def find(*folders: Path, pyenv: Path | None = None, python: Path | str = "") -> subprocess.CompletedProcess[str]:
    """Let the Makefile find a Python in `folders` alone."""
    path = os.pathsep.join(map(str, folders))
    return make("print-python", f"PYTHON={python}", PATH=path, PYENV_ROOT=str(pyenv or "/nonexistent"))


def test_the_newest_working_python_is_found(tmp_path: Path) -> None:
    """The newest of all that work is taken, by its version and not by its place or its name."""
    python_of(tmp_path / "a/python3", "3.12.9")
    newest = python_of(tmp_path / "b/python3", "3.13.10")
    python_of(tmp_path / "b/python3.11", "3.11.99")
    python_of(tmp_path / "c/python3.13", "3.13.9")
    assert find(tmp_path / "a", tmp_path / "b", tmp_path / "c").stdout == f"{newest}\n"


def test_a_broken_shim_hides_no_python_behind_it(tmp_path: Path) -> None:
    """A shim that exists and fails is passed over, and the same name later on PATH is found."""
    broken(tmp_path / "shims/python3")
    broken(tmp_path / "shims/python3.13")
    working = python_of(tmp_path / "bin/python3.13", "3.13.0")
    assert find(tmp_path / "shims", tmp_path / "bin").stdout == f"{working}\n"


def test_versions_of_pyenv_are_found(tmp_path: Path) -> None:
    """A Python that only pyenv's versions folder has is found, also in a folder with a space."""
    python_of(tmp_path / "bin/python3", "3.11.2")
    newest = python_of(tmp_path / "py env/versions/3.12.1/bin/python3.12", "3.12.1")
    assert find(tmp_path / "bin", pyenv=tmp_path / "py env").stdout == f"{newest}\n"


def test_a_pre_release_is_not_taken_by_itself(tmp_path: Path) -> None:
    """A pre-release is used only when PYTHON= names it."""
    early = python_of(tmp_path / "bin/python3.14", "3.14.0", level="beta")
    stable = python_of(tmp_path / "bin/python3", "3.13.0")
    assert find(tmp_path / "bin").stdout == f"{stable}\n"
    assert find(tmp_path / "bin", python=early).stdout == f"{early}\n"


def test_python_can_be_chosen(tmp_path: Path) -> None:
    """PYTHON= wins over a newer one."""
    python_of(tmp_path / "bin/python3", "3.13.0")
    chosen = python_of(tmp_path / "mine/python", "3.11.0")
    assert find(tmp_path / "bin", python=chosen).stdout == f"{chosen}\n"


def test_only_old_pythons_are_an_error(tmp_path: Path) -> None:
    """Without a Python >= 3.11 the error says what is needed and how to name one."""
    python_of(tmp_path / "bin/python3", "3.10.14")
    outcome = find(tmp_path / "bin")
    assert outcome.returncode
    assert "No working Python >= 3.11" in outcome.stderr
    assert "PYTHON=" in outcome.stderr


def test_a_chosen_python_that_is_too_old_is_an_error(tmp_path: Path) -> None:
    """A PYTHON= below 3.11 is refused by name, and no other is taken instead."""
    python_of(tmp_path / "bin/python3", "3.13.0")
    old = python_of(tmp_path / "old/python3", "3.10.14")
    outcome = find(tmp_path / "bin", python=old)
    assert outcome.returncode
    assert f"PYTHON={old} is too old" in outcome.stderr
    assert outcome.stdout == ""


def test_a_chosen_python_that_fails_is_an_error(tmp_path: Path) -> None:
    """A PYTHON= that does not run is refused by name."""
    outcome = find(tmp_path / "bin", python=broken(tmp_path / "shims/python3"))
    assert outcome.returncode
    assert "cannot be used" in outcome.stderr
