"""Replace this process with ``argv[2:]`` after tying its life to the parent's, pid ``argv[1]``.

A pid of 0 stands for a parent that is not known beforehand.

Run as a script between fork and exec of every child: unlike a ``preexec_fn`` it is safe beside
threads, and the parent-death signal survives the exec.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Ask for SIGKILL at the parent's death, then become the wanted program."""
    parent, argv = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if parent and os.getppid() != parent:  # it died before the signal was asked for
        sys.exit(128 + signal.SIGKILL)
    try:
        os.execvp(argv[0], argv)  # noqa: S606 - no shell is the point
    except OSError as error:
        sys.exit(f"error: cannot start {argv[0]}: {error.strerror}")


if __name__ == "__main__":
    main()
