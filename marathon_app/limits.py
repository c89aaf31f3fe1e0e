"""How often one peer, and one address, may register: token buckets, bounded in number."""

import ipaddress
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from marathon_app.settings import DEFAULT_RATE_LIMIT

MAX_BUCKETS: Final = 10_000  # peers or addresses remembered; the one seen longest ago is forgotten
PER_ADDRESS: Final = 10  # registrations a minute of one e-mail address, first and again


class TokenBuckets:
    """A rate for each key: a full bucket at first, refilled evenly. It keeps a bounded number."""

    def __init__(
        self, per_minute: int, *, max_buckets: int = MAX_BUCKETS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Start with no key known.

        Args:
            per_minute: What a bucket holds, and how many tokens come back in a minute.
            max_buckets: How many keys are remembered.
            clock: Monotonic seconds.
        """
        self._capacity = per_minute
        self._rate = per_minute / 60.0
        self._max_buckets = max_buckets
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # key: tokens, as of when

    def take(self, key: str) -> int:
        """Take a token.

        Returns:
            0 when there was one, otherwise the whole seconds until there is.
        """
        now = self._clock()
        tokens, since = self._buckets.pop(key, (float(self._capacity), now))
        tokens = min(float(self._capacity), tokens + (now - since) * self._rate)
        allowed = tokens >= 1.0
        self._buckets[key] = (tokens - 1.0 if allowed else tokens, now)
        if len(self._buckets) > self._max_buckets:
            self._buckets.popitem(last=False)
        return 0 if allowed else max(1, math.ceil((1.0 - tokens) / self._rate))

    def __len__(self) -> int:
        """Return how many keys are remembered."""
        return len(self._buckets)


class RegistrationLimits:
    """The two rates of the registration routes. They live as long as the app."""

    def __init__(self, per_minute: int | None, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Set the rates.

        Args:
            per_minute: Registrations a minute from one peer; 0 switches both rates off. None is the
                default rate, from which peers on the loopback interface are exempt: one's own
                tools, and load tests.
            clock: Monotonic seconds.
        """
        rate = DEFAULT_RATE_LIMIT if per_minute is None else per_minute
        self._exempts_loopback = per_minute is None
        self._peers = TokenBuckets(rate, clock=clock) if rate else None
        self._addresses = TokenBuckets(min(rate, PER_ADDRESS), clock=clock) if rate else None

    def peer(self, host: str) -> int:
        """Count one request of a peer; return 0, or the seconds it has to wait."""
        if self._peers is None or self._is_exempt(host):
            return 0
        return self._peers.take(_network(host))

    def address(self, host: str, email_key: str) -> int:
        """Count one registration of an e-mail address; return 0, or the seconds to wait.

        It keeps the routes from being used to flood one person's mailbox; only the concurrent
        route can send an address more than one mail at all.
        """
        if self._addresses is None or self._is_exempt(host):
            return 0
        return self._addresses.take(email_key)

    def _is_exempt(self, host: str) -> bool:
        if not self._exempts_loopback:
            return False
        address = _ip(host)
        # A Unix socket has no host, and a test client has a name of its own.
        return address.is_loopback if address is not None else host in {"", "testclient"}


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _network(host: str) -> str:
    """Return what counts as one peer: an IPv4 address, or the 64 bits an IPv6 site is given."""
    address = _ip(host)
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.IPv6Network((int(address), 64), strict=False))
    return host if address is None else str(address)
