"""Delete a tree that somebody hostile has made: of any depth, without following links."""

from __future__ import annotations

import itertools
import os
import stat
from contextlib import suppress


def remove_tree(path: str) -> None:
    """Delete ``path``. Nothing may change it meanwhile. What cannot be deleted stays.

    Folders are moved up beside each other before they are emptied: neither recursion nor the length
    of a path can run out, however deep they were.
    """
    names = itertools.count()
    with suppress(OSError):
        while entries := os.listdir(path):
            for entry in entries:
                _remove_entry(path, os.path.join(path, entry), names)
    with suppress(OSError):
        os.rmdir(path)


def _remove_entry(root: str, entry: str, names: itertools.count[int]) -> None:
    if not stat.S_ISDIR(os.lstat(entry).st_mode):
        os.unlink(entry)
        return
    os.chmod(entry, 0o700)
    for inner in os.listdir(entry):
        os.rename(os.path.join(entry, inner), _unused(root, names))
    os.rmdir(entry)


def _unused(root: str, names: itertools.count[int]) -> str:
    return next(
        name for number in names if not os.path.lexists(name := os.path.join(root, f"x{number}"))
    )
