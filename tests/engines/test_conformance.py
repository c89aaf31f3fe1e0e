"""The suite that any engine can be run against, on ours."""

import pytest

from deferred.engines.testing import CHECKS


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_engine(check, bench):
    """An engine does what every engine has to do. D04 D12 D24 D37 QU-04 QU-08 QU-11 QU-12 QU-13 QU-14 QU-21."""
    await check(bench)
