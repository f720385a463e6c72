"""How much work a verifier holds ahead. Pure."""

from __future__ import annotations

HELD_S = 0.5
"""Work held ahead, in seconds: enough to cover a durable answer of the broker, and little enough
that another verifier does not stand idle beside a queue."""

_FIRST_CREDIT_PER_CHILD = 8
_MAX_CREDIT_PER_CHILD = 256


def target_held(num_children: int, mean_verify_s: float | None) -> int:
    """Rollouts to hold so that ``num_children`` are busy for :data:`HELD_S`.

    ``mean_verify_s`` is the recent mean wall time of a verification, None before the first. At
    least two a child: one is judged while the next waits.
    """
    if mean_verify_s is None:
        return num_children * _FIRST_CREDIT_PER_CHILD
    wanted = int(HELD_S / max(mean_verify_s, 1e-6))
    return num_children * min(max(wanted, 2), _MAX_CREDIT_PER_CHILD)
