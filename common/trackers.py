"""Which packages the trackers of ``learner.trackers`` need; nothing here imports them."""

from __future__ import annotations

from importlib.util import find_spec

from common.config import Config
from common.errors import ConfigError


def tracker_problems(config: Config) -> list[ConfigError]:
    """One error for each tracker that cannot be imported on this machine."""
    return [
        ConfigError(
            f'learner.trackers must be installed where the learner runs, "{name}" is not '
            f"(pip install 'headrace[{name}]', or take it off the list)"
        )
        for name in config.learner.trackers
        if find_spec(name) is None
    ]
