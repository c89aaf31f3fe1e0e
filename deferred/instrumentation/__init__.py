"""Hooks that turn events into logs; each module is one kind of telemetry."""
