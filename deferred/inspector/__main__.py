"""``python -m deferred.inspector URL``: the waterfalls in the terminal."""

import sys

from deferred.inspector.cli import main

if __name__ == "__main__":
    sys.exit(main())
