"""Fields of a task that a model judges."""

from __future__ import annotations

import msgspec


class ModelReference(msgspec.Struct, frozen=True):
    """``helpful``, ``safety`` and ``process`` need no field; ``judge`` reads ``gold``."""

    gold: str | int | float = ""
