"""Keeps the collector of reference cycles away from the ledger.

The ledger and the journal's index are millions of objects without a cycle. Walking them, as the
interpreter does whenever they have grown by a quarter, stops the broker for longer than any turn
takes; even what was made in half a second of full load takes 50 ms to walk. So what a busy broker
makes is set aside unwalked (reference counts still free it), and only a broker with little to do
looks for the few cycles that libraries leave behind.
"""

from __future__ import annotations

import gc

QUIET_MESSAGES = 100
"""Messages since the last call: so few have made next to nothing to walk."""


def begin() -> None:
    """Set aside all that the process has made so far; from here on :func:`tidy` is in charge."""
    gc.collect()
    gc.freeze()
    gc.disable()


def tidy(num_messages: int) -> None:
    """Collect what is new if there is little of it, and set the rest aside."""
    if num_messages <= QUIET_MESSAGES:
        gc.collect()
    gc.freeze()
