"""Frames of the private pipes: a length, then JSON of values of exact builtin types.

The program's side of this module runs where the program could change it. That is no loss: a program
can only lie about its own value, and the reader outside trusts neither length nor content.
"""

from __future__ import annotations

import json
import os
import struct
from collections import Counter, OrderedDict, defaultdict, deque
from typing import Any

LENGTH = struct.Struct("<I")
READY = b"ready"
FAILED = b"failed "
MAX_DEPTH = 100

_DICTIONARIES = frozenset({dict, Counter, OrderedDict, defaultdict})
"""Dictionaries that programs mostly return, each equal to a plain one with the same items."""
_PLAIN = frozenset({int, str, bool, float, type(None)})


class UnsupportedValueError(TypeError):
    """A value is not built of int, str, bool, float, None, bytes, list, tuple, set and dict."""


def framed(body: bytes) -> bytes:
    """``body`` with its length before it."""
    return LENGTH.pack(len(body)) + body


def to_primitive(value: Any, depth: int = 0) -> Any:
    """``value`` as JSON can carry it, containers other than lists tagged by a letter.

    A named tuple is a tuple, a deque a list. Raises :class:`UnsupportedValueError` for every other
    type, other subclasses included.
    """
    kind = type(value)
    if kind in _PLAIN:
        return value
    if depth >= MAX_DEPTH:
        raise UnsupportedValueError(f"a value nested more than {MAX_DEPTH} deep")
    if kind is list or kind is deque:
        return [to_primitive(item, depth + 1) for item in value]
    if kind is tuple or _is_named_tuple(kind):
        return {"t": [to_primitive(item, depth + 1) for item in value]}
    if kind is set or kind is frozenset:
        return {"s": [to_primitive(item, depth + 1) for item in value]}
    if kind is bytes:
        return {"b": value.hex()}
    if kind in _DICTIONARIES:
        pairs = [[to_primitive(part, depth + 1) for part in pair] for pair in value.items()]
        return {"d": pairs}
    raise UnsupportedValueError(f"a value of type {kind.__name__}")


def _is_named_tuple(kind: type) -> bool:
    return kind.__bases__ == (tuple,) and isinstance(getattr(kind, "_fields", None), tuple)


def write_frame(descriptor: int, body: bytes) -> None:
    """Write one frame, whole."""
    data = memoryview(framed(body))
    while data:
        data = data[os.write(descriptor, data) :]


def read_frame(descriptor: int) -> bytes | None:
    """The next frame, None at the end."""
    prefix = _read_exactly(descriptor, LENGTH.size)
    if prefix is None:
        return None
    (size,) = LENGTH.unpack(prefix)
    return _read_exactly(descriptor, size)


def _read_exactly(descriptor: int, size: int) -> bytes | None:
    parts = []
    while size:
        part = os.read(descriptor, min(size, 1 << 16))
        if not part:
            return None
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def encode_return(value: Any, max_bytes: int) -> bytes:
    """The frame's body for a returned value."""
    try:
        body = json.dumps({"value": to_primitive(value)}).encode("ascii")
    except (ValueError, TypeError, RecursionError) as error:
        return json.dumps({"unsupported": str(error)[:200]}).encode("ascii")
    if len(body) > max_bytes:
        return json.dumps({"unsupported": f"a value of {len(body)} bytes"}).encode("ascii")
    return body


def encode_raised(error: BaseException) -> bytes:
    """The frame's body for a call that raised."""
    return json.dumps({"raised": f"{type(error).__name__}: {error}"[:200]}).encode("ascii")
