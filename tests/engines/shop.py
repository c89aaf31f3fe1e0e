"""An app with durable tasks, for tests in processes of their own, which are killed at a point."""

import asyncio
import contextlib
import os
import signal
import sys

from databases import Database

from deferred import Retry, Supervisor, TaskSucceeded, _suspects, current_task
from deferred.engines import Engine
from deferred.engines.postgres import PostgresEngine
from deferred.engines.sqlite import SQLiteEngine

LEASE = 1.0
if "SHOP_URL" in os.environ:  # a process of the tests' own
    _suspects.HUSH = 0.3  # seconds, as short as the lease
KILL = os.environ.get("SHOP_KILL", "")  # the point at which this process is killed
URL = os.environ.get("SHOP_URL", "sqlite:///shop.db")
JOURNAL = os.environ.get("SHOP_JOURNAL", "journal")


def make_engine(url: str) -> Engine:
    """Return an engine with a short lease."""
    if url.startswith("sqlite"):
        return SQLiteEngine(url.removeprefix("sqlite:///"), lease=LEASE, poll=0.02)
    return PostgresEngine(url, lease=LEASE, poll=0.5)


def die(point: str) -> None:
    """End this process without a word, if this is the point."""
    if point == KILL:
        os.kill(os.getpid(), signal.SIGKILL)


def write(*words: object) -> None:
    """Append a line to the journal: the effect of a task, which is there though the process dies."""
    descriptor = os.open(JOURNAL, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{' '.join(map(str, words))}\n".encode())
    os.close(descriptor)


async def middleware(_task, call_next):
    """Be killed between the claim and the work."""
    die("claimed")
    return await call_next()


def succeeded(event: TaskSucceeded) -> None:
    """Be killed between the work and its acknowledgement."""
    die("before the ack")


succeeded.events = (TaskSucceeded,)
supervisor = Supervisor(
    engine=make_engine(URL),
    serve=False,
    max_serving=10,
    drain_timeout=5,
    retry=Retry(on=OSError, wait_initial=0.01, timeout=None),
    middleware=[middleware],
    hooks=[succeeded],
)


@supervisor.task("effect")
async def effect(number: int) -> None:
    """Leave a line in the journal, once a delivery."""
    task = current_task()
    write("begin", number, task.attempts, task.idempotency_key)
    die("during")
    await asyncio.sleep(0)
    write("effect", number, task.attempts, task.idempotency_key)
    die("after the effect")


@supervisor.task("poison")
async def poison() -> None:
    """Take the process down."""
    write("poison", current_task().attempts)
    os.kill(os.getpid(), signal.SIGKILL)


@supervisor.task("slow")
async def slow(number: int, seconds: float) -> None:
    """Take a while."""
    write("begin", number, current_task().attempts)
    try:
        await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        write("cancelled", number, current_task().attempts)
        raise
    write("effect", number, current_task().attempts)


TASKS = {"effect": effect, "poison": poison, "slow": slow}


@contextlib.asynccontextmanager
async def opened():
    """Give the supervisor, and say when its surroundings are closed."""
    yield supervisor
    write("closed")


async def register(number: int) -> None:
    """Store a row and its job in one transaction, and be killed around its commit."""
    async with (
        Database(URL) as database,
        supervisor,
        database.connection() as connection,
    ):
        await connection.execute("create table if not exists runners (number integer)")
        transaction = await connection.transaction()
        await connection.execute("insert into runners values (:number)", {"number": number})
        die("before the enqueue")
        with supervisor.context() as ctx:
            await ctx.enqueue(effect, number, connection=connection)
        die("before the commit")
        await transaction.commit()
        die("after the commit")


if __name__ == "__main__":
    asyncio.run(register(int(sys.argv[1])))
