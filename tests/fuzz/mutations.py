"""Damaged messages from whole ones: seeded, and aware of what a message is made of.

Some damage is done to bytes, some to frames, and some to the decoded header, which is packed again:
the latter passes the parser and tries the types behind it.
"""

from __future__ import annotations

import math
import random
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec

from common.batching import encode_batch
from common.codec import encode, pack_manifest
from common.messages import AnyMessage, Register, has_manifest, references_in, rollouts_in
from common.weight_layout import TensorSpec, WeightManifest
from tests.builders import rollout_arrays, version
from tests.contract.samples import SAMPLES

Parts = list[bytes]

_EVIL_VALUES: tuple[Any, ...] = (
    -1, 0, 1, 2**31, 2**53, 2**53 + 1, 2**63, 2**64 - 1, -(2**63),
    math.nan, math.inf, -math.inf, -0.0, 1e308, 0.5,
    "", "x", "x" * 129, "\u0000", "\u202e", "a" * 5000, b"", b"\xff" * 9,
    None, True, [], [[]], [0] * 5000, {}, {"a": 1},
)  # fmt: skip
_CLAIMS = (
    b"\xdd\xff\xff\xff\xff",
    b"\xdd\x10\x00\x00\x00",
    b"\xdc\xff\xff",
    b"\xdb\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\xc9\x7f\xff\xff\xff\x01",
    b"\xcb\x7f\xf8\x00\x00\x00\x00\x00\x00",
)


def whole_message(message: AnyMessage, request_id: int = 7) -> Parts:
    """The frames of ``message``, with arrays that fit its header."""
    frames: list[bytes] = []
    if has_manifest(message):
        tensor = TensorSpec(name="w", dtype="float32", shape=(2, 3), digest="0" * 16)
        frames = [pack_manifest(WeightManifest(version=version(6, 1), tensors=(tensor,)))]
    for header in rollouts_in(message):
        arrays = rollout_arrays(
            num_prompt=header.num_prompt_tokens,
            num_completion=header.num_completion_tokens,
            seed=1,
        )
        frames += [bytes(frame) for frame in arrays.frames()]
    frames += [bytes(header.frame_bytes()) for header in references_in(message)]
    return [bytes(part) for part in encode(message, request_id, frames)]


class Mutator:
    """Damages whole messages, up to four times each; ``whole_share`` of them are left whole."""

    def __init__(self, corpus: Sequence[Parts], seed: int, whole_share: float = 0.0) -> None:
        self._corpus = corpus
        self._whole_share = whole_share
        self._random = random.Random(seed)
        self._ways: tuple[Callable[[Parts], None], ...] = (
            self._flip,
            self._flip,
            self._cut,
            self._insert,
            self._splice,
            self._claim,
            self._nest,
            self._replace_value,
            self._replace_value,
            self._replace_value,
            self._reorder_frames,
            self._lie_about_lengths,
            self._spoil_prelude,
            self._many_frames,
            self._batch_together,
        )

    def next(self) -> Parts:
        """Another message."""
        parts = list(self._random.choice(self._corpus))
        if self._random.random() < self._whole_share:
            return parts
        for _ in range(self._random.choice((1, 1, 1, 2, 4))):
            self._random.choice(self._ways)(parts)
        return parts

    # --- bytes ------------------------------------------------------------------------------------

    def _place(self, parts: Parts) -> tuple[int, int]:
        """A frame, most often the header, and a place in it."""
        if not parts:
            parts.append(b"")
        number = self._random.randrange(len(parts)) if self._random.random() < 0.3 else 1
        number = min(number, len(parts) - 1)
        return number, self._random.randrange(len(parts[number]) + 1)

    def _flip(self, parts: Parts) -> None:
        number, at = self._place(parts)
        data = bytearray(parts[number] or b"\x00")
        data[min(at, len(data) - 1)] ^= 1 << self._random.randrange(8)
        parts[number] = bytes(data)

    def _cut(self, parts: Parts) -> None:
        number, at = self._place(parts)
        parts[number] = parts[number][:at]

    def _insert(self, parts: Parts) -> None:
        number, at = self._place(parts)
        new = self._random.randbytes(self._random.choice((1, 2, 8, 64)))
        parts[number] = parts[number][:at] + new + parts[number][at:]

    def _splice(self, parts: Parts) -> None:
        number, at = self._place(parts)
        other = self._random.choice(self._random.choice(self._corpus))
        start = self._random.randrange(len(other) + 1)
        parts[number] = parts[number][:at] + other[start:]

    def _claim(self, parts: Parts) -> None:
        """A length that is not there."""
        number, at = self._place(parts)
        parts[number] = parts[number][:at] + self._random.choice(_CLAIMS) + parts[number][at + 1 :]

    def _nest(self, parts: Parts) -> None:
        number, at = self._place(parts)
        depth = self._random.choice((10, 1000, 20_000))
        parts[number] = parts[number][:at] + b"\x91" * depth + parts[number][at:]

    # --- values -----------------------------------------------------------------------------------

    def _replace_value(self, parts: Parts) -> None:
        """Another value somewhere in the header, packed well."""
        if len(parts) < 2:
            return
        try:
            header = msgspec.msgpack.decode(parts[1])
            parts[1] = msgspec.msgpack.encode(self._damaged(header))
        except (ValueError, OverflowError, RecursionError, msgspec.MsgspecError):
            self._flip(parts)

    def _damaged(self, value: Any) -> Any:
        if not isinstance(value, list) or not value or self._random.random() < 0.15:
            return self._random.choice(_EVIL_VALUES)
        at = self._random.randrange(len(value))
        action = self._random.random()
        if action < 0.1:
            return value[:at] + value[at + 1 :]
        if action < 0.2:
            return [*value[:at], value[at], *value[at:]]
        return [*value[:at], self._damaged(value[at]), *value[at + 1 :]]

    # --- frames -----------------------------------------------------------------------------------

    def _reorder_frames(self, parts: Parts) -> None:
        action = self._random.randrange(4)
        if action == 0:
            self._random.shuffle(parts)
        elif action == 1 and parts:
            del parts[self._random.randrange(len(parts))]
        elif action == 2 and parts:
            parts.append(self._random.choice(parts))
        else:
            parts.append(b"")

    def _lie_about_lengths(self, parts: Parts) -> None:
        """An array frame longer or shorter than the header says."""
        if len(parts) > 2:
            number = self._random.randrange(2, len(parts))
            parts[number] = self._random.choice(
                (parts[number][:-1], parts[number] + b"\x00", b"", parts[number] * 2)
            )

    def _batch_together(self, parts: Parts) -> None:
        """One message of this header and some of the corpus, in any order."""
        headers = [parts[1]] if len(parts) > 1 else []
        for _ in range(self._random.choice((0, 1, 5, 31, 40))):
            headers.append(self._random.choice(self._corpus)[1])
        self._random.shuffle(headers)
        batch = encode_batch([(self._random.randrange(9), header) for header in headers])
        parts[:] = [bytes(part) for part in batch]

    def _spoil_prelude(self, parts: Parts) -> None:
        magic = self._random.choice((b"HRCE", b"HRCE", b"GET ", b"\x16\x03\x01\x00"))
        schema = self._random.choice((0, 1, 2, 65535))
        request_id = self._random.choice((0, 1, 2**64 - 1))
        prelude = struct.pack("<4sHHQ", magic, schema, self._random.randrange(2**16), request_id)
        parts[:1] = [prelude]

    def _many_frames(self, parts: Parts) -> None:
        parts.extend([b""] * self._random.choice((1, 3, 100)))


def damaged_messages(seed: int, *, as_insiders: bool) -> Iterator[Parts]:
    """Endless damaged messages made from one sample of each.

    Insiders send some whole ones, to get the broker into more states; strangers have no
    registration to damage, for one that is whole would make them insiders.
    """
    samples = [m for m in SAMPLES if as_insiders or not isinstance(m, Register)]
    corpus = [whole_message(message) for message in samples]
    mutator = Mutator(corpus, seed, whole_share=0.2 if as_insiders else 0.0)
    while True:
        parts = mutator.next()
        if parts:
            yield parts
