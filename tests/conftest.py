"""Settings that every test shares."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.process_state import ProcessState

# The same examples on every run, and no time limit for one: a loaded machine is not a failure.
settings.register_profile("headrace", derandomize=True, deadline=None)
settings.load_profile("headrace")


@pytest.fixture(autouse=True, scope="module")
def process_as_the_file_found_it() -> Iterator[None]:
    """Also what shared fixtures change, as an engine in this process does, ends with the file."""
    state = ProcessState()
    yield
    state.restore()


@pytest.fixture(autouse=True)
def process_as_the_test_found_it(process_as_the_file_found_it: None) -> Iterator[None]:
    """No test sees what the one before it did to their process."""
    state = ProcessState()
    yield
    state.restore()
