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
from collections.abc import Mapping
from types import FrameType
from typing import Final

LISTENER: Final = "--listener"  # the child's argument: the number of the socket it inherits
MAILBOX: Final = "--mailbox"  # likewise, the socket of the embedded mail server
FOLLOW: Final = "_MARATHON_FOLLOW"  # in a child's environment: end when the standard input does
BACKLOG: Final = 2048  # connections the kernel holds while the loop is busy, or nobody runs
QUICK: Final = 1.0  # seconds; who lives no longer is not started again at once


def keep_running(listener: socket.socket) -> int:
    """Run the app as a child until it ends by itself.

    Args:
        listener: The socket it is to serve.

    Returns:
        The child's exit code.
    """
    child: subprocess.Popen[bytes] | None = None
    told: int | None = None

    def hand_on(signum: int, _frame: FrameType | None) -> None:
        nonlocal told
        told = signum
        if child is not None:
            child.send_signal(signum)

    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, hand_on)
    while True:
        started = time.monotonic()
        child = _start(listener)
        if told is not None:  # while there was nobody to hand it on to
            child.send_signal(told)
        code = child.wait()
        if child.stdin is not None:
            child.stdin.close()
        if code != -signal.SIGKILL or told is not None:
            break
        print("The app was killed; it is started again.", file=sys.stderr, flush=True)
        time.sleep(max(0.0, QUICK - (time.monotonic() - started)))
        if told is not None:
            break
    return code if code >= 0 else 128 - code


def inherited(arguments: list[str], name: str = LISTENER) -> socket.socket | None:
    """Return the socket that the parent handed over, or None where there is no such parent."""
    if name not in arguments:
        return None
    return socket.socket(fileno=int(arguments[arguments.index(name) + 1]))


def follow_parent(environ: Mapping[str, str] = os.environ) -> None:
    """End this process when its parent has ended, if it was started by one that wants that."""
    if FOLLOW in environ:
        threading.Thread(target=_die_with_parent, name="parent", daemon=True).start()


def listen(host: str, port: int) -> socket.socket:
    """Open a socket, so that a port in use is one line and not a log."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, _, _, _, address = found[0]
    return socket.create_server(address[:2], family=family, backlog=BACKLOG)


def _start(listener: socket.socket) -> subprocess.Popen[bytes]:
    descriptor = listener.fileno()
    command = [sys.executable, "-m", "marathon_app", LISTENER, str(descriptor)]
    # A session of its own: Ctrl-C reaches the child once, through the parent. Its standard input
    # is a pipe that only the parent's end closes.
    return subprocess.Popen(  # noqa: S603 - our own command, and no shell
        command, stdin=subprocess.PIPE, pass_fds=[descriptor], start_new_session=True, env={**os.environ, FOLLOW: "yes"}
    )


def _die_with_parent() -> None:
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGKILL)
