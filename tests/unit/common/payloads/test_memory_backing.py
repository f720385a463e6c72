"""Arrays in memory: what is kept, and how many bytes that is."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from common.payloads.backing import MemoryBacking
from common.types import RolloutHeader, RolloutId
from tests.builders import rollout_arrays, rollout_header

groups = st.integers(0, 3)
indices = st.integers(0, 2)


class MemoryMachine(RuleBasedStateMachine):
    """Compares the backing with a plain dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.backing = MemoryBacking()
        self.kept: dict[RolloutId, list[bytes]] = {}
        self.headers: dict[RolloutId, RolloutHeader] = {}

    @rule(group_id=groups, index=indices, length=st.integers(0, 9), seed=st.integers(0, 99))
    def add(self, group_id: int, index: int, length: int, seed: int) -> None:
        header = rollout_header(group_id=group_id, index=index, num_completion=length)
        frames = rollout_arrays(num_prompt=3, num_completion=length, seed=seed).frames()
        self.backing.add(header, frames)
        if self.headers.get(header.rollout_id) != header or header.rollout_id not in self.kept:
            self.kept[header.rollout_id] = [bytes(frame) for frame in frames]
        self.headers[header.rollout_id] = header

    @rule(gone=st.sets(groups))
    def drop_groups(self, gone: set[int]) -> None:
        self.backing.drop_groups(gone)
        self.kept = {key: kept for key, kept in self.kept.items() if key.group_id not in gone}

    @rule(group_id=groups, index=indices)
    def forget(self, group_id: int, index: int) -> None:
        rollout_id = RolloutId(group_id=group_id, index=index, attempt=1)
        self.backing.forget(rollout_id)
        self.kept.pop(rollout_id, None)

    @invariant()
    def keeps_exactly_what_was_added_and_not_dropped(self) -> None:
        for rollout_id, frames in self.kept.items():
            header, found = self.backing.payload(rollout_id)
            assert header.rollout_id == rollout_id
            assert [bytes(frame) for frame in found] == frames
        assert set(self.backing.group_ids()) == {key.group_id for key in self.kept}
        assert self.backing.num_bytes == sum(
            len(frame) for frames in self.kept.values() for frame in frames
        )


TestMemoryMachine = MemoryMachine.TestCase
