"""Processes of the shop: run, watched, told to end."""

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path

from databases import Database

from deferred import Supervisor
from tests.engines import shop
from tests.engines.shop import TASKS, make_engine

PATIENCE = 40.0


class Shop:
    """The shop on one store, as processes. Lives as long as the test."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self.journal = folder / "journal"
        self.engine = make_engine(url)
        self.supervisor = Supervisor(engine=self.engine, serve=False)
        for name, task in TASKS.items():
            self.supervisor.task(name)(task)
        self._processes: list[asyncio.subprocess.Process] = []

    async def enqueue(self, name: str, *arguments: object, **options: object) -> str:
        """Store a job."""
        with self.supervisor.context() as ctx:
            return await ctx.enqueue(name, *arguments, **options)

    async def start(self, *arguments: str, kill: str = "") -> asyncio.subprocess.Process:
        """Start `python -m` with these arguments."""
        environment = {"SHOP_URL": self.url, "SHOP_JOURNAL": str(self.journal), "SHOP_KILL": kill}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", *arguments, env=os.environ | environment, stderr=asyncio.subprocess.DEVNULL
        )
        self._processes.append(process)
        return process

    async def worker(self, *, kill: str = "") -> asyncio.subprocess.Process:
        """Start a worker."""
        return await self.start("deferred", "worker", "tests.engines.shop:opened", kill=kill)

    async def register(self, number: int, *, kill: str = "") -> int:
        """Store a row and its job in a process of their own; return its exit code."""
        return await ended(await self.start("tests.engines.shop", str(number), kill=kill))

    @contextlib.asynccontextmanager
    async def serving(self):
        """Serve in this process for a while."""
        supervisor = Supervisor(engine=make_engine(self.url))
        for name, task in TASKS.items():
            supervisor.task(name)(task)
        shop.JOURNAL = str(self.journal)
        async with supervisor:
            yield

    async def empty(self) -> None:
        """Wait until no job waits or runs."""
        async with asyncio.timeout(PATIENCE):
            while (depth := await self.engine.depth()).waiting or depth.running:
                await asyncio.sleep(0.05)

    def lines(self, kind: str) -> list[list[str]]:
        """Return the journal's lines of a kind, without that word."""
        text = self.journal.read_text() if self.journal.exists() else ""
        return [words[1:] for words in map(str.split, text.splitlines()) if words[0] == kind]

    def numbers(self, kind: str) -> list[int]:
        """Return the numbers in the journal's lines of a kind, sorted."""
        return sorted(int(words[0]) for words in self.lines(kind))

    async def until(self, kind: str, count: int) -> None:
        """Wait until the journal has so many lines of a kind."""
        async with asyncio.timeout(PATIENCE):
            while len(self.lines(kind)) < count:
                await asyncio.sleep(0.02)

    async def rows(self) -> list[int]:
        """Return the numbers of the business rows, sorted."""
        async with Database(self.url) as database:
            return sorted(row[0] for row in await database.fetch_all("select number from runners"))

    async def close(self) -> None:
        """Kill what still runs."""
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        await self.engine.close()


async def ended(process: asyncio.subprocess.Process) -> int:
    """Wait for the end of a process; return its exit code."""
    async with asyncio.timeout(PATIENCE):
        return await process.wait()


async def terminate(process: asyncio.subprocess.Process) -> int:
    """Tell a process to end, and wait for that."""
    process.send_signal(signal.SIGTERM)
    return await ended(process)
