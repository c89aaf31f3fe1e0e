"""Work to defer, for the tests of the test kit."""

import asyncio


class BoomError(Exception):
    """What failing work raises."""


async def fine(value=None):
    """Succeed at once."""
    return value


async def boom(text="boom"):
    """Fail at once."""
    raise BoomError(text)


async def forever():
    """Wait for what never comes."""
    await asyncio.get_running_loop().create_future()


async def send_mail(to, subject="hello", *, urgent=False):
    """Take arguments in every way."""
