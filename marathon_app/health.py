"""Whether the app is shutting down, for whoever asks for its readiness."""


class Health:
    """One app's state beyond its database. It lives as long as the app."""

    def __init__(self) -> None:
        """Start as an app that is not shutting down."""
        self.draining = False
