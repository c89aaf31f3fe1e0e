"""The command line: dead letters, the doctor, and what it answers to a target that is none."""

import asyncio
import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys

import pytest

from deferred import Supervisor
from deferred.__main__ import main
from deferred.engines import Dead, Delivery, Job
from deferred.engines._bench import Server, until_settled
from deferred.engines.memory import MemoryEngine
from deferred.engines.sqlite import SQLiteEngine
from deferred.integrations.asgi import DeferredMiddleware

empty = Supervisor()
untasked = Supervisor(engine=MemoryEngine())
tasked = Supervisor(engine=MemoryEngine())
number = 3


@tasked.task("send_mail")
async def send_mail(to: str): ...  # noqa: D103  # a signature


def factory():
    """Return a supervisor."""
    return tasked


async def later():
    """Return a supervisor, later."""
    return tasked


app = DeferredMiddleware(later, tasked)


@contextlib.asynccontextmanager
async def opened():
    """Give a supervisor."""
    yield tasked


@pytest.fixture
def store(tmp_path):
    """Return the URL of a store with three dead letters."""
    path = tmp_path / "jobs.db"

    async def fill():
        engine = SQLiteEngine(path, poll=0.01)
        jobs = [Job(id=f"id{index}", name="send\x1b[31m", payload=b'{"to":"\xc3\xbc"}') for index in range(3)]
        await engine.enqueue(jobs)

        def bury(_: Delivery):
            return Dead("failed", "OSError: mailbox \x1b[2Jfull\n\nTraceback\n  line")

        async with Server(engine, bury) as server:
            await server.all(3)
            await until_settled(engine)
        await engine.close()

    asyncio.run(fill())
    return f"sqlite:///{path}"


def test_dead_letters_are_listed(store, capsys):
    """`dead list` has a line for each, in characters that a terminal may be shown. G16."""
    assert main(["dead", "list", store]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert "failed  1x  OSError: mailbox \\x1b[2Jfull" in lines[0]
    assert lines[-1] == "3 of 3 dead letter(s)"
    assert main(["dead", "list", store, "--limit", "1"]) == 0
    assert capsys.readouterr().out.endswith("1 of 3 dead letter(s)\n")
    assert main(["dead", "list", store, "--json"]) == 0
    letters = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {letter["id"] for letter in letters} == {"id0", "id1", "id2"}
    assert letters[0]["payload"] == '{"to":"ü"}'


def test_a_dead_letter_is_shown(store, capsys):
    """`dead show` has its arguments and its whole error; an unknown id is a failure."""
    assert main(["dead", "show", store, "id1"]) == 0
    shown = capsys.readouterr().out
    assert 'payload:     {"to":"ü"}' in shown
    assert "\x1b" not in shown
    assert shown.endswith("error:\nOSError: mailbox \\x1b[2Jfull\n\nTraceback\n  line\n")
    assert main(["dead", "show", store, "unheard-of"]) == 1
    assert "no dead letter has the id unheard-of" in capsys.readouterr().err


def test_dead_letters_are_retried_and_deleted(store, capsys):
    """`dead retry` has them delivered again, once; `dead delete` deletes them. D37."""
    assert main(["dead", "retry", store, "id0"]) == 0
    assert capsys.readouterr().out == "1 dead letter(s) will be delivered again\n"
    assert main(["dead", "retry", store, "id0"]) == 1
    assert "no dead letter has the id id0" in capsys.readouterr().err
    assert main(["dead", "delete", store, "--all"]) == 0
    assert capsys.readouterr().out == "2 dead letter(s) deleted\n"
    assert main(["dead", "list", store]) == 0
    assert capsys.readouterr().out == "no dead letters\n"


@pytest.mark.parametrize("words", [["retry"], ["delete"], ["delete", "id", "--all"]])
def test_all_or_some_must_be_said(store, capsys, words):
    """Without an id nothing is changed, unless --all is said."""
    action, *rest = words
    assert main(["dead", action, store, *rest]) == 2
    assert "either ids or --all" in capsys.readouterr().err


def test_the_doctor_says_what_is_well(store, capsys):
    """`doctor` looks at the tasks and the store, and points at dead letters."""
    assert main(["doctor", store]) == 0
    assert "note  3 dead letter(s)" in capsys.readouterr().out
    assert main(["doctor", f"{__name__}:tasked"]) == 0
    said = capsys.readouterr().out
    assert "tasks: send_mail; queues: deferred" in said
    assert "keeps jobs in memory" in said


def test_the_doctor_says_what_is_not(tmp_path, capsys):
    """Without tasks, or without a store that can be reached, it fails and says so."""
    assert main(["doctor", f"{__name__}:empty"]) == 1
    assert "fail  no task" in capsys.readouterr().out
    assert main(["doctor", f"sqlite:///{tmp_path}"]) == 1
    assert "fail  the engine's store: UnreachableError" in capsys.readouterr().out


@pytest.mark.parametrize(
    "action", [["list"], ["show", "id0"], ["retry", "--all"], ["delete", "id0"]], ids=lambda a: a[0]
)
def test_a_file_that_is_not_there_is_not_made(action, tmp_path, capsys):
    """A mistyped path is no store without dead letters: it is said, and no file is left behind. G16."""
    path = tmp_path / "jbos.db"
    assert main(["dead", action[0], f"sqlite:///{path}", *action[1:]]) == 2
    assert capsys.readouterr().err == f"deferred: there is no file {path}, so no dead letters are in it\n"
    assert not path.exists()


@pytest.mark.parametrize("name", ["tasked", "factory", "later", "opened", "app.supervisor"])
def test_a_target_may_be_made(name, capsys):
    """A target is a supervisor, a function that returns one, async or not, or a context manager that gives one."""
    assert main(["dead", "list", f"{__name__}:{name}"]) == 0
    assert capsys.readouterr().out == "no dead letters\n"


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("nowhere", "a target is MODULE:NAME"),
        (":x", "a target is MODULE:NAME"),
        ("nowhere_at_all:x", "no module 'nowhere_at_all'"),
        (f"{__name__}.inside:x", "no module"),
        (f"{__name__}:nothing", "has no 'nothing'"),
        (f"{__name__}:number", "is a int, not a Supervisor"),
        (f"{__name__}:app", "the one that it has is {target}.supervisor"),
        (f"{__name__}:send_mail", "a function that returns one takes no arguments"),
        (f"{__name__}:empty", "has no engine"),
        ("mysql://host", "no engine is known"),
    ],
)
def test_a_target_that_is_none_is_named(target, says, capsys):
    """What is wrong with a target is said in a line, with exit code 2."""
    assert main(["dead", "list", target]) == 2
    assert says.format(target=target) in capsys.readouterr().err


@pytest.mark.parametrize(("name", "says"), [("empty", "has no engine"), ("untasked", "has no task")])
def test_a_worker_needs_an_engine_and_tasks(name, says, capsys):
    """A worker that could never do anything does not start."""
    assert main(["worker", f"{__name__}:{name}"]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["worker"], ["worker", "a:b", "--concurrency", "0"], ["dead"], ["sing"]])
def test_other_words_are_not_understood(words, capsys):
    """What is no command is answered by how to use it, with exit code 2."""
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_a_store_that_fails_is_said(tmp_path, capsys):
    """An error of the store is a line, not a traceback, with exit code 1."""
    path = tmp_path / "notes.txt"
    path.write_text("no database at all, but long enough to be taken for something else" * 20)
    assert main(["dead", "list", f"sqlite:///{path}"]) == 1
    assert f"{path} cannot be used: file is not a database" in capsys.readouterr().err


def test_what_the_driver_says_is_a_line(store, capsys):
    """A database that is damaged, as its driver tells it, is a line with exit code 1, for the doctor a finding."""
    path = store.removeprefix("sqlite:///")
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("update cairnq_tasks set created_at_ms = 'yesterday'")
        connection.execute("alter table cairnq_tasks rename column status to state")
        connection.commit()
    assert main(["dead", "list", store]) == 1
    assert capsys.readouterr().err.startswith("deferred: OperationalError: no such column: status")
    assert main(["doctor", store]) == 1
    assert "fail  the engine's store: OperationalError: no such column: status" in capsys.readouterr().out


def test_output_that_cannot_be_written(store):
    """A terminal that has not the letters is shown their numbers; a reader that has seen enough is left in peace."""
    command = [sys.executable, "-m", "deferred", "dead", "show", store, "id1"]
    plain = {**os.environ, "PYTHONIOENCODING": "ascii"}
    shown = subprocess.run(command, env=plain, capture_output=True, text=True, timeout=60, check=True)
    assert r'{"to":"\xfc"}' in shown.stdout
    reading, writing = os.pipe()
    os.close(reading)
    unread = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, timeout=60, check=False)
    os.close(writing)
    assert (unread.returncode, unread.stderr) == (1, b"")


def test_ctrl_c_is_no_traceback(monkeypatch):
    """A command that Ctrl-C has ended, a worker that was still starting among them, ends as a shell expects it."""

    async def interrupted(_):
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(60)

    monkeypatch.setattr(MemoryEngine, "setup", interrupted)
    assert main(["doctor", "memory://"]) == 130


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["dead", "list", "--limit", "9" * 30, "x:y"], "from 1 to 1000000"),
        (["worker", "--queue", "", "x:y"], "a name of printable characters"),
        (["doctor", "./shop.py:supervisor"], "a target is MODULE:NAME"),
    ],
)
def test_odd_input_is_answered_in_a_line(arguments, said, capsys):
    """Numbers without end, empty names and paths are refused with exit code 2."""
    with contextlib.suppress(SystemExit):
        assert main(arguments) == 2
    assert said in capsys.readouterr().err


def test_a_module_that_misses_another_shows_it(tmp_path, monkeypatch):
    """A target whose own import fails is told with its traceback: the mend is in there."""
    (tmp_path / "lame_target.py").write_text("import not_installed_anywhere\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="not_installed_anywhere"):
        main(["dead", "list", "lame_target:x"])


def test_the_face_loads_no_engine():
    """`import deferred` loads no engine and no metadata of packages."""
    names = ["cairnq", "pgqueuer", "asyncpg", "aiosqlite", "importlib.metadata"]
    code = f"import sys, deferred; print([name for name in {names} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"
