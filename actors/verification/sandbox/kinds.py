"""Words that both ends of a launcher know. Kept apart: a launcher imports as little as it can."""

from __future__ import annotations

import enum


class Tier(enum.Enum):
    """How strongly an execution is isolated, as a self-test has shown it on this machine."""

    NAMESPACES = "T2"
    """Namespaces, seccomp, Landlock, no_new_privs, rlimits; a cgroup where one can be made."""
    FILTERS = "T1"
    """No user namespaces: seccomp, Landlock, no_new_privs, rlimits; an own uid under root."""
    NONE = "none"
    """Rlimits only. Never chosen unless asked for by name."""


class Mode(enum.Enum):
    """What is executed."""

    SCRIPT = "script"
    """``main.py`` as a program: standard input to standard output."""
    FUNCTION = "function"
    """A function of ``main.py``, called once for each input frame."""
    COMMAND = "command"
    """``argv``: a compiler, or what it made."""
