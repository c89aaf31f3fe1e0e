"""The command line: run workers, see to dead letters, look whether all is well.

A target is ``MODULE:NAME``, where NAME is a supervisor, or a function that returns one, or an
asynchronous context manager function that yields one (to open a database around it, say).
Where no task is run, the URL of an engine does too.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime as dt
import importlib
import inspect
import io
import json
import logging
import os
import platform
import signal
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from importlib import metadata
from typing import Any

import msgspec

from deferred._supervisor import Supervisor
from deferred.engines import DeadJob, Engine, find_engine
from deferred.exceptions import DeferredError
from deferred.inspector.cli import add_arguments
from deferred.inspector.cli import run as run_trace

__all__ = ["main"]

EVERYTHING = 1_000_000
SHOWN = 60


class TargetError(Exception):
    """What was named on the command line is not there, or is not what it has to be."""


class StoreError(Exception):
    """What the store, or its driver, says of what it was asked."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return the exit code: 0, 1 if it failed, 2 if it was not understood, 130 after Ctrl-C."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    command: Callable[[argparse.Namespace], Awaitable[int]] = options.command
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name may be in letters that the terminal has not
    try:
        code = asyncio.run(_run(command, options))
        print(end="", flush=True)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT  # as a shell says it
    except TargetError as error:
        print(f"deferred: {error}", file=sys.stderr)
        return 2
    except StoreError as error:
        print(f"deferred: {error}", file=sys.stderr)
        return 1
    except (DeferredError, OSError) as error:
        if isinstance(error, BrokenPipeError) and command is not _worker:
            # Whoever reads has seen enough; what is left is not to be written at the exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            return 1
        print(f"deferred: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return code


async def _run(command: Callable[[argparse.Namespace], Awaitable[int]], options: argparse.Namespace) -> int:
    return await command(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m deferred", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    worker = commands.add_parser("worker", help="run durable work until SIGTERM")
    worker.add_argument("target", metavar="MODULE:NAME")
    worker.add_argument("--queue", action="append", type=_name, metavar="NAME", help="only this queue; may be repeated")
    worker.add_argument("--concurrency", type=_count, metavar="N", help="how many tasks at a time")
    worker.set_defaults(command=_worker)

    dead = commands.add_parser("dead", help="see to dead letters").add_subparsers(required=True, metavar="ACTION")
    listing = dead.add_parser("list", help="list them, the latest first")
    listing.add_argument("target", metavar="MODULE:NAME|URL")
    listing.add_argument("--limit", type=_count, default=100, metavar="N")
    listing.add_argument("--json", action="store_true", help="one JSON object a line")
    listing.set_defaults(command=_dead_list)
    show = dead.add_parser("show", help="show one with its arguments and its error")
    show.add_argument("target", metavar="MODULE:NAME|URL")
    show.add_argument("id", metavar="ID")
    show.set_defaults(command=_dead_show)
    for name, text in (("retry", "have them delivered again"), ("delete", "delete them")):
        action = dead.add_parser(name, help=text)
        action.add_argument("target", metavar="MODULE:NAME|URL")
        action.add_argument("ids", nargs="*", metavar="ID")
        action.add_argument("--all", action="store_true", help="every dead letter")
        action.set_defaults(command=_dead_change, action=name)

    doctor = commands.add_parser("doctor", help="look whether durable work can be stored and run")
    doctor.add_argument("target", metavar="MODULE:NAME|URL")
    doctor.set_defaults(command=_doctor)

    trace = commands.add_parser("trace", help="draw what an inspector has recorded")
    add_arguments(trace)
    trace.set_defaults(command=_trace)
    return parser


async def _trace(options: argparse.Namespace) -> int:
    return await asyncio.to_thread(run_trace, options)


def _count(text: str) -> int:
    if not text.isdecimal() or len(text) > len(str(EVERYTHING)) or not 1 <= int(text) <= EVERYTHING:
        message = f"must be a whole number from 1 to {EVERYTHING}, not {text[:SHOWN]!r}"
        raise argparse.ArgumentTypeError(message)
    return int(text)


def _name(text: str) -> str:
    if not text or not text.isprintable():
        message = f"must be a name of printable characters, not {text!r}"
        raise argparse.ArgumentTypeError(message)
    return text


# -- targets ----------------------------------------------------------------------------------


def _named(target: str) -> Any:
    """Return what `target` names."""
    module, separator, name = target.partition(":")
    if not separator or not module or not name or module.startswith(".") or "/" in module:
        message = f"a target is MODULE:NAME, such as shop.tasks:supervisor, not {target!r}"
        raise TargetError(message)
    if "" not in sys.path:
        sys.path.insert(0, os.getcwd())  # noqa: PTH109  # what `python -m` does for its own modules
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not (module == error.name or module.startswith(f"{error.name}.")):
            raise  # the module is there, and misses another one
        message = f"there is no module {error.name!r} to be found from here"
        raise TargetError(message) from None
    for part in name.split("."):
        if not hasattr(found, part):
            message = f"{module} has no {name!r}"
            raise TargetError(message)
        found = getattr(found, part)
    return found


@contextlib.asynccontextmanager
async def _supervisor(target: str) -> AsyncGenerator[Supervisor]:
    """Find the supervisor that `target` names, and keep open what it comes in."""
    found = _named(target)
    async with contextlib.AsyncExitStack() as stack:
        if callable(found) and _takes_nothing(found):
            found = found()
        if inspect.isawaitable(found):
            found = await found
        if not isinstance(found, Supervisor) and isinstance(found, contextlib.AbstractAsyncContextManager):
            found = await stack.enter_async_context(found)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]  # checked below
        if not isinstance(found, Supervisor):
            message = f"{target} is a {type(found).__name__}, not a Supervisor{_mend(target, found)}"  # pyright: ignore[reportUnknownArgumentType]  # of anything
            raise TargetError(message)
        yield found


def _mend(target: str, found: Any) -> str:
    if isinstance(getattr(found, "supervisor", None), Supervisor):
        return f": the one that it has is {target}.supervisor"
    return ": a function that returns one takes no arguments" if inspect.isroutine(found) else ""


def _takes_nothing(func: Callable[..., Any]) -> bool:
    """Say whether a function can be called without arguments."""
    try:
        inspect.signature(func).bind()
    except (TypeError, ValueError):  # ValueError: of some of Python's own nothing is known
        return False
    return True


@contextlib.asynccontextmanager
async def _engine(target: str, *, filled: bool = False) -> AsyncGenerator[Engine]:
    """Find the engine that `target` names, connected; one that is to be `filled` makes no file of a mistyped path."""
    async with contextlib.AsyncExitStack() as stack:
        if "://" in target:
            try:
                engine = find_engine(target)
            except (ValueError, ImportError) as error:
                raise TargetError(str(error)) from error
            path = getattr(engine, "path", None)
            if filled and isinstance(path, str) and not await asyncio.to_thread(os.path.exists, path):
                message = f"there is no file {path}, so no dead letters are in it"
                raise TargetError(message)
        else:
            supervisor = await stack.enter_async_context(_supervisor(target))
            if supervisor.engine is None:
                message = f"{target} has no engine: Supervisor(engine=...)"
                raise TargetError(message)
            engine = supervisor.engine
        try:
            await engine.setup()
            yield engine
        except Exception as error:  # a driver raises what it likes
            message = f"{type(error).__name__}: {error}"
            raise StoreError(message) from error
        finally:
            await engine.close()


# -- worker -----------------------------------------------------------------------------------


async def _worker(options: argparse.Namespace) -> int:
    async with _supervisor(options.target) as supervisor:
        durable = supervisor._durable
        if durable.engine is None or not len(durable.registry):
            what = "no engine: Supervisor(engine=...)" if durable.engine is None else "no task: @supervisor.task(name)"
            message = f"{options.target} has {what}"
            raise TargetError(message)
        durable.serve = True
        for queue in set(options.queue or ()) - set(durable.registry.queues):
            logging.getLogger("deferred").warning("no task of %s is stored in the queue %r", options.target, queue)
        durable.queues = tuple(options.queue) if options.queue else None
        durable.concurrency = options.concurrency or durable.concurrency
        stop = asyncio.Event()

        def note(signum: int) -> None:
            if stop.is_set():
                supervisor._cut()  # whoever asks twice does not wait
            stop.set()
            logging.getLogger("deferred").info("%s: the worker ends", signal.Signals(signum).name)

        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, note, signum)
        async with supervisor:
            serving: Any = durable._serving
            logging.getLogger("deferred").info(
                "worker %d serves %s: %s, %d at a time",
                os.getpid(),
                ", ".join(map(repr, durable.queues or durable.registry.queues)),
                ", ".join(durable.registry.names),
                durable.concurrency,
            )
            waiting = asyncio.ensure_future(stop.wait())
            await asyncio.wait({waiting, serving}, return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
        return 0 if stop.is_set() else 1


# -- dead letters -----------------------------------------------------------------------------


async def _dead_list(options: argparse.Namespace) -> int:
    async with _engine(options.target, filled=True) as engine:
        letters = await engine.dead(limit=options.limit)
        total = (await engine.depth()).dead
    if options.json:
        for letter in letters:
            print(json.dumps(_as_data(letter)))
        return 0
    for letter in letters:
        texts = (_one_line(letter.name), letter.reason, f"{letter.number}x", _one_line(letter.error))
        print("  ".join((letter.id, _when(letter.died_at), *texts)))
    print(f"{len(letters)} of {total} dead letter(s)" if total else "no dead letters")
    return 0


async def _dead_show(options: argparse.Namespace) -> int:
    async with _engine(options.target, filled=True) as engine:
        letters = await engine.dead(ids=[options.id])
    if not letters:
        print(f"deferred: no dead letter has the id {_one_line(options.id)}", file=sys.stderr)
        return 1
    data = _as_data(letters[0])
    error = data.pop("error")
    for name, value in data.items():
        print(f"{name + ':':<12} {_printable(str(value))}")
    print(f"error:\n{_printable(error)}")
    return 0


async def _dead_change(options: argparse.Namespace) -> int:
    if bool(options.ids) == options.all:
        message = f"dead {options.action} takes either ids or --all"
        raise TargetError(message)
    async with _engine(options.target, filled=True) as engine:
        ids = options.ids or [letter.id for letter in await engine.dead(limit=EVERYTHING)]
        found = await (engine.requeue(ids) if options.action == "retry" else engine.delete(ids))
    missing = sorted(set(ids) - set(found))
    print(f"{len(found)} dead letter(s) {'will be delivered again' if options.action == 'retry' else 'deleted'}")
    for job_id in missing:
        print(f"deferred: no dead letter has the id {_one_line(job_id)}", file=sys.stderr)
    return 1 if missing else 0


def _as_data(letter: DeadJob) -> dict[str, Any]:
    data = msgspec.to_builtins(letter)
    data["payload"] = _printable(letter.payload.decode(errors="replace"))
    data["stored_at"], data["died_at"] = _when(letter.stored_at), _when(letter.died_at)
    found: dict[str, Any] = data
    return found


def _when(seconds: float) -> str:
    return dt.datetime.fromtimestamp(seconds, dt.UTC).isoformat(timespec="seconds")


def _one_line(text: str) -> str:
    """Return the first line of `text` as a terminal may be shown it."""
    line = _printable(text.partition("\n")[0])
    return line if len(line) <= SHOWN else line[: SHOWN - 1] + "…"


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() or char == "\n" else repr(char)[1:-1] for char in text)


# -- doctor -----------------------------------------------------------------------------------


async def _doctor(options: argparse.Namespace) -> int:
    print(f"ok    Python {platform.python_version()}, deferred {metadata.version('deferred-middleware')}")
    if "://" not in options.target:
        async with _supervisor(options.target) as supervisor:
            registry = supervisor._durable.registry
            names, queues = ", ".join(registry.names), ", ".join(registry.queues)
            mark = "ok  " if names else "fail"
            print(f"{mark}  {f'tasks: {names}; queues: {queues}' if names else 'no task: @supervisor.task(name)'}")
            if not names:
                return 1
    try:
        async with _engine(options.target) as engine:
            depth = await engine.depth()
            name = type(engine).__name__
            durable = engine.capabilities.durable
    except StoreError as error:
        print(f"fail  the engine's store: {error}")
        return 1
    print(f"ok    {name} is reached" if durable else f"note  {name} keeps jobs in memory: a restart loses them")
    print(f"ok    {depth.waiting} job(s) wait, {depth.running} run")
    if depth.dead:
        print(f"note  {depth.dead} dead letter(s): python -m deferred dead list {options.target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
