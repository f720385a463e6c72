"""A hostile tree is deleted whole, and nothing outside it is touched."""

from __future__ import annotations

import os
from pathlib import Path

from actors.verification.sandbox.clearing import remove_tree


def test_a_tree_deeper_than_any_path_is_deleted(tmp_path: Path) -> None:
    root = tmp_path / "box"
    root.mkdir()
    here = os.open(root, os.O_RDONLY)
    for _ in range(1200):
        os.mkdir("d" * 20, dir_fd=here)
        below = os.open("d" * 20, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    remove_tree(str(root))
    assert list(tmp_path.iterdir()) == []


def test_links_are_deleted_and_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    root = tmp_path / "box"
    (root / "a" / "x0").mkdir(parents=True)
    (root / "x0").symlink_to(outside)
    (root / "a" / "link").symlink_to(outside / "kept")
    os.mkfifo(root / "a" / "pipe")
    (root / "a" / "x0" / "file").write_text("x")
    (root / "a" / "x0").chmod(0)
    remove_tree(str(root))
    assert [path.name for path in tmp_path.iterdir()] == ["outside"]
    assert (outside / "kept").read_text() == "kept"


def test_what_is_not_there_is_no_error(tmp_path: Path) -> None:
    remove_tree(str(tmp_path / "none"))
    assert list(tmp_path.iterdir()) == []
