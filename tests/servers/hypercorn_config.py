"""hypercorn's limit on the shutdown, for which it has no flag: half a second."""

shutdown_timeout = 0.5
