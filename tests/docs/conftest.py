"""What the documentation's tests share."""

import logging
import socket
from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let examples connect to this machine and to nothing else."""
    connect = socket.socket.connect

    def connect_here(self: socket.socket, address: Any) -> None:
        if self.family in {socket.AF_INET, socket.AF_INET6} and address[0] not in {"127.0.0.1", "::1", "localhost"}:
            raise AssertionError(f"an example connects to {address!r}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect_here)


@pytest.fixture(autouse=True)
def own_logging() -> Iterator[None]:
    """Undo what a page, or a framework on it, has set up for the logs of the whole process."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    known = {name: logger for name, logger in root.manager.loggerDict.items() if isinstance(logger, logging.Logger)}
    before = {name: (logger.disabled, logger.level, logger.handlers[:]) for name, logger in known.items()}
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, (disabled, own_level, own_handlers) in before.items():
        known[name].disabled = disabled
        known[name].setLevel(own_level)
        known[name].handlers[:] = own_handlers
