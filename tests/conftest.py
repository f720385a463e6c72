"""Settings that every test shares."""

from __future__ import annotations

from hypothesis import settings

# The same examples on every run, and no time limit for one: a loaded machine is not a failure.
settings.register_profile("headrace", derandomize=True, deadline=None)
settings.load_profile("headrace")
