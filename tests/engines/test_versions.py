"""Two versions of the code side by side, each in worker processes of its own: a rolling deployment."""

import asyncio
import contextlib
import os
import sys
from pathlib import Path

import pytest

from tests.engines.processes import ended
from tests.engines.shop import make_engine

COMMON = """
import os
from deferred import Supervisor, _durable
from tests.engines.shop import make_engine, write
_durable.UNKNOWN_DELAY = 0.2  # seconds
supervisor = Supervisor(engine=make_engine(os.environ["SHOP_URL"]), serve=False, drain_timeout=5)
"""
OLD = """
@supervisor.task("same")
async def same(number: int):
    write("same", "old", number)

@supervisor.task("grown")
async def grown(number: int):
    write("grown", "old", number)

@supervisor.task("shrunk")
async def shrunk(number: int, label: str):
    write("shrunk", "old", number, label)

CALLS = [("same", {"number": 1}), ("grown", {"number": 2}), ("shrunk", {"number": 3, "label": "x"})]
"""
NEW = """
@supervisor.task("same")
async def same(number: int):
    write("same", "new", number)

@supervisor.task("grown")
async def grown(number: int, label: str = "default"):
    write("grown", "new", number, label)

def drop(version, arguments):
    return {"number": arguments["number"]}

@supervisor.task("shrunk", version=2, upgrade=drop)
async def shrunk(number: int):
    write("shrunk", "new", number)

@supervisor.task("born")
async def born(number: int):
    write("born", "new", number)

CALLS = [("same", {"number": 4}), ("grown", {"number": 5}), ("shrunk", {"number": 6}), ("born", {"number": 7})]
"""
STORING = """
import asyncio

async def store():
    async with supervisor:
        with supervisor.context() as ctx:
            for name, arguments in CALLS:
                await ctx.enqueue(name, **arguments)

if __name__ == "__main__":
    asyncio.run(store())
"""


class Deployment:
    """Both versions of an app, on one store. Lives as long as the test."""

    def __init__(self, url, folder):
        self.url = url
        self.folder = folder
        self.engine = make_engine(url)
        self._workers = []
        for name, text in (("old_shop", OLD), ("new_shop", NEW)):
            (folder / f"{name}.py").write_text(COMMON + text + STORING)

    async def start(self, *arguments):
        """Start `python -m` where the two versions are."""
        environment = {
            "SHOP_URL": self.url,
            "SHOP_JOURNAL": str(self.folder / "journal"),
            "PYTHONPATH": os.pathsep.join([str(self.folder), str(Path.cwd())]),
        }
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", *arguments), env=os.environ | environment, stderr=asyncio.subprocess.DEVNULL
        )

    async def store(self, version):
        """Have a process of this version store its jobs."""
        assert await ended(await self.start(version)) == 0

    async def worker(self, version):
        """Start a worker of this version."""
        worker = await self.start("deferred", "worker", f"{version}:supervisor")
        self._workers.append(worker)

    def journal(self):
        """Return the lines that the tasks have left, sorted."""
        path = self.folder / "journal"
        return sorted(path.read_text().splitlines()) if path.exists() else []

    async def until(self, lines):
        """Wait until the journal has so many lines."""
        async with asyncio.timeout(40):
            while len(self.journal()) < lines:
                await asyncio.sleep(0.02)

    async def close(self):
        """Kill the workers."""
        for worker in self._workers:
            with contextlib.suppress(ProcessLookupError):
                worker.kill()
            await worker.wait()
        await self.engine.close()


@pytest.fixture(params=["sqlite", "postgres"])
async def deployment(request, tmp_path):
    """Give both versions on an empty store of each kind."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'shop.db'}"
    else:
        url = await request.getfixturevalue("postgres_server").new_database()
    deployment = Deployment(url, tmp_path)
    await deployment.engine.setup()
    yield deployment
    await deployment.close()


async def test_old_and_new_code_side_by_side(deployment):
    """Each job is run by code that knows it, once: new names and versions wait for new workers. C17 D28."""
    await asyncio.gather(deployment.store("old_shop"), deployment.store("new_shop"))
    await deployment.worker("old_shop")
    # The old worker runs what it knows; what is new it leaves alone, again and again.
    await deployment.until(5)
    assert deployment.journal() == ["grown old 2", "grown old 5", "same old 1", "same old 4", "shrunk old 3 x"]
    await deployment.worker("new_shop")
    await deployment.until(7)
    assert deployment.journal()[:1] == ["born new 7"]
    assert "shrunk new 6" in deployment.journal()
    async with asyncio.timeout(30):
        while (depth := await deployment.engine.depth()).waiting or depth.running:
            await asyncio.sleep(0.02)
    assert len(deployment.journal()) == 7
    assert depth.dead == 0


async def test_what_old_code_stored_is_run_by_new_code(deployment):
    """A parameter that is new has its default, and one that is gone was dropped by `upgrade`. D28."""
    await deployment.store("old_shop")
    await deployment.worker("new_shop")
    await deployment.until(3)
    assert deployment.journal() == ["grown new 2 default", "same new 1", "shrunk new 3"]
    assert (await deployment.engine.depth()).dead == 0
