"""The bytes of every message are fixed by a golden file.

To change the wire on purpose: raise ``common.messages.SCHEMA`` (a new field last, with a default)
and write the file anew with ``python -m tests.contract.test_wire_bytes``.
"""

from __future__ import annotations

import json
import typing
from pathlib import Path

import msgspec
import pytest

from common.codec import pack, unpack
from common.messages import SCHEMA, AnyMessage
from common.types import Verdict, VerdictStatus
from tests.contract.samples import SAMPLES

GOLDEN = Path(__file__).parent.parent / "golden" / "wire.json"


def current() -> dict[str, object]:
    return {
        "schema": SCHEMA,
        "messages": {type(sample).__name__: pack(sample).hex() for sample in SAMPLES},
    }


def test_every_message_has_a_sample() -> None:
    kinds = {kind.__name__ for kind in typing.get_args(AnyMessage)}
    assert kinds == {type(sample).__name__ for sample in SAMPLES}


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: type(sample).__name__)
def test_the_bytes_on_the_wire_are_the_golden_ones(sample: AnyMessage) -> None:
    golden = json.loads(GOLDEN.read_text())
    assert golden["schema"] == SCHEMA
    assert pack(sample).hex() == golden["messages"][type(sample).__name__]
    assert unpack(bytes.fromhex(golden["messages"][type(sample).__name__]), AnyMessage) == sample


def test_a_verdict_may_leave_its_last_field_out() -> None:
    """Journals hold verdicts that have no steps."""
    verdict = Verdict(status=VerdictStatus.GRADED, reward=1.0, reason="equal")
    *told, steps = msgspec.msgpack.decode(pack(verdict))
    assert steps == []
    assert unpack(msgspec.msgpack.encode(told), Verdict) == verdict


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(current(), indent=1) + "\n")
