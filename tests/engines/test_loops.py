"""An engine from one event loop to the next, left open or not."""

import asyncio
import subprocess
import sys
import threading

import pytest

from deferred import EngineError, Supervisor
from deferred.engines import Job, find_engine
from deferred.engines._bench import until_settled
from deferred.engines.postgres import PostgresEngine
from deferred.engines.sqlite import SQLiteEngine


def run_and_close(main):
    """Run it on a loop that is closed without a word to whatever is left on it."""
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(main)
    finally:
        loop.close()


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def url(request, tmp_path):
    """Return where an empty store of each kind is."""
    if request.param == "postgres":
        return request.getfixturevalue("postgres_url")
    return "memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/jobs.db"


def hasty(url):
    """Make an engine whose jobs are not long those of a worker that is gone."""
    scheme, _, rest = url.partition("://")
    if scheme == "postgresql":
        return PostgresEngine(url, lease=1.0, poll=0.2)
    return SQLiteEngine(rest.removeprefix("/"), lease=1.0) if scheme == "sqlite" else find_engine(url)


def use_on_many_loops(url, run):
    """Store on two loops, break off serving on two more, finish on the last two."""
    supervisor, done, before = Supervisor(engine=hasty(url)), [], workers()

    @supervisor.task("note")
    async def note(number: int) -> None:
        done.append(number)

    async def leave_open(number):
        with supervisor.context() as ctx:
            await asyncio.gather(*(ctx.enqueue(note, number + extra, key=f"{extra}") for extra in range(5)))

    async def break_off(number):
        supervisor.open()
        await leave_open(number)

    async def finish():
        async with supervisor:
            await until_settled(supervisor.engine)

    for number, main in enumerate((leave_open, leave_open, break_off, break_off)):
        run(main(10 * number))
    run(finish())
    asyncio.run(finish())
    assert set(range(5)) <= set(done)
    assert workers() == before


def workers():
    """Return the threads of SQLite's connections that do not end by themselves."""
    found = [thread for thread in threading.enumerate() if "worker_thread" in thread.name]
    for thread in found:
        thread.join(5)
    return [thread for thread in found if thread.is_alive()]


def test_an_engine_that_was_left_open_is_used_on_the_next_loop(url):
    """What a loop that has ended left open is opened anew by the next, and jobs are served there. C30."""
    use_on_many_loops(url, asyncio.run)


def test_an_engine_whose_loop_was_closed_under_it_is_used_on_the_next(url):
    """So it is where the loop was closed without a word; the process ends, nevertheless. C30."""
    call = f"from tests.engines import test_loops as t; t.use_on_many_loops({url!r}, t.run_and_close)"
    # Left open are tasks, sockets and threads, of which Python warns as it finds them.
    process = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", call], capture_output=True, text=True, timeout=50, check=False
    )
    assert process.returncode == 0, process.stderr


def test_a_loop_that_ends_closes_what_is_open_on_it(url, recwarn):
    """`asyncio.run` closes an engine that nobody has closed: no connection and no thread is left."""
    engine, before = find_engine(url), workers()

    async def main():
        await engine.enqueue([Job(id="1", name="task", payload=b"{}")])

    asyncio.run(main())
    assert all(vars(engine).get(name) is None for name in ("_pool", "_store"))
    assert workers() == before
    assert not recwarn.list


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_an_engine_works_on_one_loop_at_a_time(kind, tmp_path, request):
    """On a second loop, while the first may still run, it is refused by name; closed, it may go there."""
    url = request.getfixturevalue("postgres_url") if kind == "postgres" else f"sqlite:///{tmp_path}/jobs.db"
    engine = find_engine(url)
    first, second = asyncio.new_event_loop(), asyncio.new_event_loop()
    first.run_until_complete(engine.setup())
    with pytest.raises(EngineError, match=f"{url[:6]}.* is open on another event loop"):
        second.run_until_complete(engine.depth())
    first.run_until_complete(engine.close())
    second.run_until_complete(engine.depth())
    second.run_until_complete(engine.close())
    first.close()
    second.close()
