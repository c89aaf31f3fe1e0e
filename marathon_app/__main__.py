"""Start the app: `python -m marathon_app`."""

from marathon_app.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
