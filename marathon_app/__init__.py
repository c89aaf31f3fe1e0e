"""The marathon registration API: what `deferred` is for, as a working app."""
