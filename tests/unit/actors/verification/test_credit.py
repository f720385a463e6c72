"""How much work a verifier holds ahead."""

from __future__ import annotations

import pytest

from actors.verification.credit import target_held


@pytest.mark.parametrize(
    ("num_children", "mean_verify_s", "held"),
    [
        (1, None, 8),
        (4, None, 32),
        (1, 0.1, 5),
        (2, 0.1, 10),
        (1, 10.0, 2),
        (3, 10.0, 6),
        (1, 0.0001, 256),
        (1, 0.0, 256),
    ],
)
def test_half_a_second_of_work_is_held_between_two_and_256_a_child(
    num_children: int, mean_verify_s: float | None, held: int
) -> None:
    assert target_held(num_children, mean_verify_s) == held
