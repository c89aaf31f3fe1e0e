"""Register many runners each way, and print what was measured.

`python -m marathon_app compare` starts a demo of its own with a fresh database, or measures one
that runs (`--url`). It needs the embedded mailbox: the mails that came are counted there.
"""

import argparse
import asyncio
import math
import os
import re
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Final

import httpx
import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

EXECUTIONS: Final = ("sequential", "fire-and-forget", "concurrent", "waituntil", "durable")
PATIENCE: Final = 10.0  # seconds without a new mail before the rest is given up
LOOK: Final = 0.05  # seconds between two looks into the mailbox
TIMEOUT: Final = 60.0  # seconds for one answer
MOST: Final = 4_000  # registrations each way: five times that is what the mailbox keeps


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured of one execution."""

    execution: str
    answers: tuple[float, ...]  # seconds until each answer, in ascending order
    refused: int  # answers that were errors, or never came
    all_done: float  # seconds from the first request to the last answer and the last mail
    mails: int

    def percentile(self, share: float) -> float:
        """Return the answer time, in seconds, that this share of the answers did not exceed."""
        return self.answers[max(0, math.ceil(share * len(self.answers)) - 1)]


def main(arguments: Sequence[str]) -> int:
    """Measure and print.

    Args:
        arguments: Those of the command line, after `compare`.

    Returns:
        The exit code: 0 when it was measured, 1 when there was nothing to measure.
    """
    options = _options(arguments)
    console = Console()
    try:
        if options.url is not None:
            return asyncio.run(_compare(options.url, options, console))
        with _own_demo() as url:
            return asyncio.run(_compare(url, options, console))
    except CannotCompareError as error:
        Console(stderr=True).print(str(error), markup=False)
        return 1


class CannotCompareError(RuntimeError):
    """There is no demo to measure, or it lacks what is needed."""


async def measure(
    client: httpx.AsyncClient, execution: str, count: int, at_once: int, progress: Progress | None = None
) -> Measured:
    """Register runners one way and wait for their mails.

    Args:
        client: Of a running demo.
        execution: The way: the end of the route's name.
        count: How many runners.
        at_once: How many requests are under way at a time.
        progress: Where to show how far it is.
    """
    tag = f"{execution}-{secrets.token_hex(4)}"
    task = None if progress is None else progress.add_task(execution, total=2 * count)
    slots = asyncio.Semaphore(at_once)
    answers: list[float] = []

    async def register(number: int) -> None:
        body = {
            "firstName": "Ada",
            "lastName": "Lovelace",
            "email": f"{tag}-{number}@example.com",
            "address": "12 St James Square, London",
            "distance": "half",
        }
        async with slots:
            asked = time.perf_counter()
            try:
                response = await client.post(f"/api/marathon-{execution}", json=body)
            except httpx.HTTPError:
                return  # it counts as refused
            if response.is_success:
                answers.append(time.perf_counter() - asked)
            if progress is not None and task is not None:
                progress.advance(task)

    began, clock = time.perf_counter(), await _mailbox_clock(client)
    await asyncio.gather(*(register(number) for number in range(count)))
    answered = time.perf_counter() - began
    last, mails = await _await_mails(client, tag, len(answers), progress, task)
    if progress is not None and task is not None:
        progress.update(task, completed=2 * count)
    return Measured(
        execution=execution,
        answers=tuple(sorted(answers)),
        refused=count - len(answers),
        all_done=max(answered, last - clock if mails else 0.0),
        mails=mails,
    )


async def _mailbox_clock(client: httpx.AsyncClient) -> float:
    """Return the mailbox's time, by which the arrival of mails is told."""
    response = await client.get("/dev/outbox", params={"to": "nobody@example.com"})
    if response.status_code != 200:
        raise CannotCompareError("The demo has no mailbox to count in: run it without MARATHON_SMTP_URL.")
    return _seconds(response.headers["Marathon-Now"])


async def _await_mails(
    client: httpx.AsyncClient, tag: str, expected: int, progress: Progress | None, task: object
) -> tuple[float, int]:
    """Return when the last mail came, and how many did."""
    seen, changed = 0, time.perf_counter()
    while True:
        mails = (await client.get("/dev/outbox")).json()
        ours = [mail for mail in mails if mail["to"].startswith(f"{tag}-")]
        if len(ours) > seen:
            if progress is not None and task is not None:
                progress.advance(task, len(ours) - seen)  # type: ignore[arg-type]  # rich's own id
            seen, changed = len(ours), time.perf_counter()
        if seen >= expected or time.perf_counter() - changed > PATIENCE:
            return max((_seconds(mail["received_at"]) for mail in ours), default=0.0), seen
        await asyncio.sleep(LOOK)


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


async def _compare(url: str, options: argparse.Namespace, console: Console) -> int:
    limits = httpx.Limits(max_connections=options.at_once + 1)
    async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT, limits=limits) as client:
        try:
            await _mailbox_clock(client)
            found = [name for name in EXECUTIONS if await _exists(client, name)]
        except httpx.HTTPError as error:
            raise CannotCompareError(f"No demo answers at {url} ({error}); start one with `make run`.") from error
        columns = (TextColumn("{task.description:>16}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=console, transient=True) as progress:
            measured = [await measure(client, name, options.number, options.at_once, progress) for name in found]
    console.print(table(measured, options.number, options.at_once))
    return 0


async def _exists(client: httpx.AsyncClient, execution: str) -> bool:
    # GET does nothing on these routes: 405 where there is one.
    return (await client.get(f"/api/marathon-{execution}")).status_code == 405


def table(measured: Sequence[Measured], count: int, at_once: int) -> Table:
    """Return what was measured as a table, a row for each execution.

    Args:
        measured: What to show.
        count: How many runners each had.
        at_once: How many requests were under way at a time.
    """
    result = Table(title=f"{count} registrations each, {at_once} at a time", title_justify="left")
    result.add_column("execution")
    for title in ("answer p50", "answer p99", "all done", "mails", "refused"):
        result.add_column(title, justify="right")
    for one in measured:
        times = [f"{1000 * one.percentile(share):,.1f} ms" if one.answers else "-" for share in (0.5, 0.99)]
        result.add_row(one.execution, *times, f"{one.all_done:,.2f} s", f"{one.mails} of {count}", str(one.refused))
    return result


@contextmanager
def _own_demo() -> Iterator[str]:
    """Start a demo in a folder of its own, and stop it at the end."""
    with tempfile.TemporaryDirectory(prefix="marathon-") as folder:
        environ = {name: value for name, value in os.environ.items() if not name.startswith("MARATHON_")}
        given = {name: os.environ[name] for name in ("MARATHON_DEMO_DELAYS",) if name in os.environ}
        environ |= {"MARATHON_PORT": "0", "MARATHON_DATABASE_URL": f"sqlite:///{folder}/marathon.db", **given}
        with open(f"{folder}/log", "w+b") as log:  # noqa: PTH123 - a name, not a path to work with
            process = subprocess.Popen(
                [sys.executable, "-m", "marathon_app"], env=environ, stdout=subprocess.PIPE, stderr=log
            )
            try:
                yield _address(process)
            finally:
                process.terminate()
                process.wait()
                if process.stdout is not None:
                    process.stdout.close()


def _address(process: subprocess.Popen[bytes]) -> str:
    for line in process.stdout or ():
        if found := re.search(rb"is open: (http://\S+)/", line):
            return found[1].decode()
    raise CannotCompareError("The demo did not start; `make run` says why.")


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m marathon_app compare", description=__doc__)
    parser.add_argument("-n", "--number", type=_from_one_to(MOST), default=200, help="registrations each way (200)")
    parser.add_argument("-c", "--at-once", type=_from_one_to(500), default=10, help="requests at a time (10)")
    parser.add_argument("--url", help="a running demo, such as http://127.0.0.1:8000; by default one is started")
    return parser.parse_args(arguments)


def _from_one_to(most: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isdecimal() or not 1 <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"give a number from 1 to {most}, not {text!r}")
        return int(text)

    return number
