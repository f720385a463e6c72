"""What one execution may use, and what an execution is told and answers."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from actors.verification.sandbox.kinds import Mode as Mode
from actors.verification.sandbox.kinds import Tier as Tier


@dataclass(frozen=True, slots=True)
class BoxLimits:
    """Limits of one execution: one run of a program, or all calls of one function."""

    cpu_s: float = 5.0
    """Processor seconds over all its processes."""
    wall_s: float = 10.0
    """Seconds from the start, also where nothing is computed."""
    memory_bytes: int = 512 << 20
    """Address space of each process, and memory of all with the files where cgroups exist."""
    num_processes: int = 64
    """Processes and threads."""
    num_files: int = 64
    """Open descriptors of a process."""
    file_bytes: int = 16 << 20
    """Size of one file."""
    disk_bytes: int = 64 << 20
    """Size of all files."""
    num_inodes: int = 4096
    """Files and directories."""
    kept_output_bytes: int = 1 << 20
    """Output that is kept of each stream, and the longest returned value."""
    max_output_bytes: int = 4 << 20
    """Output of both streams that ends the execution."""

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if not getattr(self, name) > 0:
                raise ValueError(f"limit {name} must be > 0, got {getattr(self, name)}")


class Limit(enum.Enum):
    """Which limit ended an execution."""

    CPU = "cpu"
    WALL = "wall"
    MEMORY = "memory"
    OUTPUT = "output"


@dataclass(frozen=True, slots=True)
class BoxJob:
    """One execution. Whatever stands here may be seen by the program; expected values may not."""

    mode: Mode
    files: dict[str, bytes] = field(default_factory=dict)
    """Plain file name -> content, written to the working directory before the start."""
    argv: tuple[str, ...] = ()
    """Arguments of a script, or the whole command."""
    function: str = ""
    stdin: bytes = b""
    inputs: tuple[bytes, ...] = ()
    """One frame for each call (see ``frames``)."""
    artifact: str = ""
    """File of the working directory to bring back when a command has ended with 0."""

    def __post_init__(self) -> None:
        for name in (*self.files, *([self.artifact] if self.artifact else [])):
            if not name or "/" in name or "\0" in name or name in (".", ".."):
                raise ValueError(f"a file of an execution has a plain name, got {name[:80]!r}")


@dataclass(frozen=True, slots=True)
class BoxResult:
    """What came of an execution, seen and measured from outside."""

    exit_code: int | None = None
    """None where a signal or a limit ended it."""
    signal: int | None = None
    limit: Limit | None = None
    stdout: bytes = b""
    stderr: bytes = b""
    frames: tuple[bytes, ...] = ()
    """Returned values, as many as there were before it ended or broke the protocol."""
    call_s: tuple[float, ...] = ()
    """Wall seconds of each call of a function."""
    cpu_s: float = 0.0
    wall_s: float = 0.0
    load_error: str = ""
    """Why the source could not be loaded: a syntax error, or what its module level raised."""
    protocol_error: str = ""
    """How the program broke the exchange of frames."""
    artifact: bytes | None = None
