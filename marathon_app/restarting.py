"""A parent that starts the app again when it was killed; for the demonstration.

The parent holds the listening socket, so that who calls while nobody runs waits instead of being
refused. It hands signals on and ends with the app's own exit code; when the parent is killed
itself, the app goes with it.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from types import FrameType
from typing import Final

LISTENER: Final = "--listener"  # the child's argument: the number of the socket it inherits
QUICK: Final = 1.0  # seconds; who lives no longer is not started again at once


def keep_running(listener: socket.socket) -> int:
    """Run the app as a child until it ends by itself.

    Args:
        listener: The socket it is to serve.

    Returns:
        The child's exit code.
    """
    child: subprocess.Popen[bytes] | None = None
    told = False

    def hand_on(signum: int, _frame: FrameType | None) -> None:
        nonlocal told
        told = True
        if child is not None:
            child.send_signal(signum)

    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, hand_on)
    while True:
        started = time.monotonic()
        child = _start(listener)
        code = child.wait()
        if child.stdin is not None:
            child.stdin.close()
        if code != -signal.SIGKILL or told:
            return code if code >= 0 else 128 - code
        print("The app was killed; it is started again.", file=sys.stderr, flush=True)
        time.sleep(max(0.0, QUICK - (time.monotonic() - started)))


def inherited(arguments: list[str]) -> socket.socket | None:
    """Return the socket that the parent handed over, or None where there is no such parent."""
    if LISTENER not in arguments:
        return None
    threading.Thread(target=_die_with_parent, name="parent", daemon=True).start()
    return socket.socket(fileno=int(arguments[arguments.index(LISTENER) + 1]))


def _start(listener: socket.socket) -> subprocess.Popen[bytes]:
    descriptor = listener.fileno()
    command = [sys.executable, "-m", "marathon_app", LISTENER, str(descriptor)]
    # A session of its own: Ctrl-C reaches the child once, through the parent. Its standard input
    # is a pipe that only the parent's end closes.
    return subprocess.Popen(  # noqa: S603 - our own command, and no shell
        command, stdin=subprocess.PIPE, pass_fds=[descriptor], start_new_session=True
    )


def _die_with_parent() -> None:
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGKILL)
