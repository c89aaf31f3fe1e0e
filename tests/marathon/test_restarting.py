"""The parent that starts the app again, where a signal comes while there is nobody to hand it on to."""

import os
import signal
import time

import pytest

from marathon_app import restarting


class Child:
    """An app that ends with this code, once it is waited for."""

    stdin = None

    def __init__(self, code):
        self.code, self.told = code, []

    def wait(self):
        """End, with that code or by what it was told."""
        return -self.told[0] if self.told else self.code

    def send_signal(self, signum):
        """Note it."""
        self.told.append(signum)


@pytest.fixture(autouse=True)
def handlers():
    """Leave the signals' handlers as they were."""
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_during_the_rest_after_a_kill(monkeypatch, signum):
    """C04: it ends the parent, with the code of the app that was killed; no other is started."""
    children = [Child(-signal.SIGKILL)]
    monkeypatch.setattr(restarting, "_start", lambda _listener: children.pop())
    monkeypatch.setattr(time, "sleep", lambda _seconds: os.kill(os.getpid(), signum))
    assert restarting.keep_running(None) == 128 + signal.SIGKILL


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_the_app_is_started(monkeypatch, signum):
    """C01: it is handed on to the app as soon as there is one."""
    child = Child(0)

    def start(_listener):
        os.kill(os.getpid(), signum)
        return child

    monkeypatch.setattr(restarting, "_start", start)
    assert restarting.keep_running(None) == 128 + signum
    assert child.told == [signum]
