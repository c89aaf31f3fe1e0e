"""Token buckets, and who they are for."""

import pytest

from marathon_app.limits import PER_ADDRESS, RegistrationLimits, TokenBuckets


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        """Return the time."""
        return self.now


def test_a_bucket_empties_and_fills_again():
    """E22: What was taken comes back evenly, and the answer says when the next token is there."""
    clock = Clock()
    buckets = TokenBuckets(60, clock=clock)

    assert [buckets.take("a") for _ in range(61)] == [0] * 60 + [1]
    assert buckets.take("b") == 0
    clock.now = 0.9
    assert buckets.take("a") == 1
    clock.now = 1.0
    assert buckets.take("a") == 0
    assert buckets.take("a") == 1
    clock.now = 3600.0
    assert [buckets.take("a") for _ in range(61)] == [0] * 60 + [1]


def test_the_wait_is_told_in_whole_seconds():
    """A slow rate tells a long wait, rounded up."""
    clock = Clock()
    buckets = TokenBuckets(2, clock=clock)

    assert [buckets.take("a") for _ in range(3)] == [0, 0, 30]
    clock.now = 29.5
    assert buckets.take("a") == 1


def test_the_number_of_buckets_is_bounded():
    """E22: A flood of addresses takes a bounded amount of memory; the oldest is forgotten."""
    buckets = TokenBuckets(1, max_buckets=100, clock=Clock())
    for number in range(1000):
        buckets.take(str(number))

    assert len(buckets) == 100
    assert buckets.take("999") == 60
    assert buckets.take("0") == 0


def test_without_a_setting_loopback_is_exempt():
    """E22: By default other peers have 600 a minute and an address ten, and loopback has no limit."""
    limits = RegistrationLimits(None, clock=Clock())

    for host in ("127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", "", "testclient"):
        assert {limits.peer(host) for _ in range(2000)} == {0}
        assert {limits.address(host, "ada@example.com") for _ in range(50)} == {0}
    assert [limits.peer("192.0.2.1") for _ in range(601)].count(0) == 600
    assert [limits.address("192.0.2.1", "ada@example.com") for _ in range(20)].count(0) == PER_ADDRESS


def test_a_setting_holds_for_everybody():
    """E22: A rate that was asked for holds on loopback too."""
    limits = RegistrationLimits(5, clock=Clock())

    assert [limits.peer("127.0.0.1") for _ in range(6)] == [0] * 5 + [12]
    assert [limits.address("127.0.0.1", "ada@example.com") for _ in range(6)].count(0) == 5


def test_nought_switches_both_rates_off():
    """E22: A rate of 0 means none."""
    limits = RegistrationLimits(0)

    assert {limits.peer("192.0.2.1") for _ in range(2000)} == {0}
    assert {limits.address("192.0.2.1", "ada@example.com") for _ in range(2000)} == {0}


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("192.0.2.1", "::ffff:192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("fe80::1%eth0", "fe80::2%eth1", True),
        ("one.example", "two.example", False),
    ],
)
def test_who_is_one_peer(one, other, same):
    """E22: An IPv6 site, and an IPv4 address however it is written, is one peer."""
    limits = RegistrationLimits(1)
    limits.peer(one)

    assert (limits.peer(other) > 0) is same
