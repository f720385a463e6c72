"""Digests of tensors that prove a weight load (hop: learner -> actor weights).

A 64-bit sum over the elements of a tensor, computed with int64 arithmetic on the tensor's own
device. It is a proof against accidents (bits flipped, rows or shards swapped, tensors skipped),
not against an adversary.

Every element contributes ``mix(bits + position * GOLDEN)`` modulo 2**64, where ``mix`` is the
finaliser of MurmurHash3 (Appleby, fmix64): a bijection, so that one changed element always changes
the sum. Because the sum is associative, shards of a flattened tensor can be digested where they
lie and added up: ``digest(cat(a, b)) == merge_digests([digest(a), digest(b, offset=len(a))])``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from common.weight_layout import TensorSpec

_CPU_CHUNK_ELEMENTS = 1 << 15  # int64 words and one temporary stay in a core's cache
_DEVICE_CHUNK_ELEMENTS = 1 << 23  # enough work for a kernel launch to vanish
_MODULUS = 2**64
_INTEGER_OF_BYTES = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _signed(word: int) -> int:
    """Two's-complement reading of a 64-bit word: torch has no uint64 arithmetic."""
    return word - _MODULUS if word >= 2**63 else word


_GOLDEN = 0x9E3779B97F4A7C15
_FMIX_FIRST = _signed(0xFF51AFD7ED558CCD)
_FMIX_SECOND = _signed(0xC4CEB9FE1A85EC53)


def tensor_digest(tensor: torch.Tensor, *, offset_elements: int = 0) -> int:
    """Digest the bits of ``tensor``, read in row-major order, as an integer in [0, 2**64).

    Args:
        tensor: any shape and device; real floating or integer elements of 1, 2, 4 or 8 bytes.
            The dtype is not part of the digest: it stands beside it in the manifest.
        offset_elements: position of the first element inside the whole tensor, for a shard that
            is contiguous in the flattened whole (a slice along the first dimension).

    Needs memory for two chunks of words besides the tensor; one that is not contiguous is copied
    first. Raises ``TypeError`` for complex elements.
    """
    words = _words(tensor)
    chunk_elements = _CPU_CHUNK_ELEMENTS if words.is_cpu else _DEVICE_CHUNK_ELEMENTS
    keys = torch.arange(min(chunk_elements, len(words)), device=words.device)
    keys.mul_(_signed(_GOLDEN))
    total = torch.zeros((), dtype=torch.int64, device=words.device)
    for start in range(0, len(words), chunk_elements):
        chunk = words[start : start + chunk_elements].to(torch.int64, copy=True)
        chunk.add_(keys[: len(chunk)])
        chunk.add_(_signed((offset_elements + start) * _GOLDEN % _MODULUS))
        total.add_(_mix_(chunk).sum())
    return int(total) % _MODULUS


def merge_digests(digests: Iterable[int]) -> int:
    """Digest of a whole tensor from those of its shards, each taken with its own offset."""
    return sum(digests) % _MODULUS


def digest_text(digest: int) -> str:
    """The form that a manifest carries: 16 hexadecimal digits."""
    return f"{digest:016x}"


def describe_tensors(tensors: Mapping[str, torch.Tensor]) -> tuple[TensorSpec, ...]:
    """Manifest entries (name, dtype, shape, digest) of ``tensors``, in their order."""
    return tuple(
        TensorSpec(
            name=name,
            dtype=str(tensor.dtype).removeprefix("torch."),
            shape=tuple(tensor.shape),
            digest=digest_text(tensor_digest(tensor)),
        )
        for name, tensor in tensors.items()
    )


def _words(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.is_complex():
        raise TypeError(f"a digest needs real elements, got {tensor.dtype} (digest both parts)")
    flat = tensor.detach().contiguous().view(-1)
    return flat.view(_INTEGER_OF_BYTES[flat.element_size()])


def _mix_(words: torch.Tensor) -> torch.Tensor:
    """MurmurHash3 fmix64, in place and element by element."""
    _xor_shift_33_(words)
    words.mul_(_FMIX_FIRST)
    _xor_shift_33_(words)
    words.mul_(_FMIX_SECOND)
    _xor_shift_33_(words)
    return words


def _xor_shift_33_(words: torch.Tensor) -> None:
    # A shift of int64 drags the sign along; the mask makes it the logical shift of the definition.
    words.bitwise_xor_((words >> 33).bitwise_and_(0x7FFFFFFF))
