"""A made-up machine for deploy/venv.sh: a fake ``uv`` and a fake ``python3.11`` that record.

PATH holds nothing but those two and the few system tools that the scripts need, so that what is
installed on the real machine cannot help a test to pass.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
SYSTEM_TOOLS = (
    *("bash", "cat", "chmod", "dirname", "env", "flock"),
    *("grep", "mkdir", "rm", "sed", "sha256sum", "tr", "uname"),
)
CLONED_FILES = (
    "deploy/venv.sh",
    "deploy/uv.sh",
    "pyproject.toml",
    "requirements/cpu.txt",
    "requirements/broker.txt",
    "requirements/tasks.txt",
)

FAKE_UV = """#!/usr/bin/env bash
echo "uv $*" >>"$CALLS"
env | grep -E '^(UV_|SSL_CERT_FILE)' >"$CALLS.settings"
case "$1 $2" in
  "venv "*)
    mkdir -p .venv/bin
    echo '#!/usr/bin/env bash
      echo "$2 ${PYTHONDONTWRITEBYTECODE:-with bytecode}" >>"$CALLS"
      exit "${IMPORT_STATUS:-0}"' >.venv/bin/python
    chmod +x .venv/bin/python ;;
  "pip install") [[ "$*" != *tasks.txt ]] || exit "${TASKS_STATUS:-0}"; exit "${PROBE_STATUS:-0}" ;;
  "pip sync")
    cat >"$CALLS.stdin"
    [ -z "${KILLED_IN_SYNC:-}" ] || kill -9 0
    exit "${SYNC_STATUS:-0}" ;;
esac
"""

FAKE_PYTHON = f"""#!/usr/bin/env bash
case "$*" in
  "-m pip config get "*)
    name=${{5#global.}}; name=PIP_FILE_${{name//-/_}}; echo "${{!name:-}}"; exit ;;
  "-m pip install "*)
    echo "pip ${{*:4}}" >>"$CALLS"
    [ -n "${{UV_TO_FETCH:-}}" ] || exit 1
    mkdir -p .tools/bin && cat "$UV_TO_FETCH" >.tools/bin/uv && chmod +x .tools/bin/uv; exit ;;
esac
exec "{sys.executable}" "$@"
"""


def write_program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@dataclass
class Machine:
    """A clone in ``clone`` and a machine whose PATH is the one folder ``programs``."""

    clone: Path
    programs: Path
    calls_file: Path
    settings: dict[str, str] = field(default_factory=dict)

    def start(self, profile: str = "cpu") -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", "deploy/venv.sh", profile],
            cwd=self.clone,
            env={"PATH": str(self.programs), "CALLS": str(self.calls_file), **self.settings},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def set_up(self, profile: str = "cpu") -> None:
        process = self.start(profile)
        _, complaints = process.communicate(timeout=20)
        assert process.returncode == 0, complaints

    def complaint(self, profile: str = "cpu") -> str:
        """The last line of a set-up that must fail."""
        process = self.start(profile)
        _, complaints = process.communicate(timeout=20)
        assert process.returncode != 0
        return complaints.splitlines()[-1]

    def calls(self) -> list[str]:
        return self.calls_file.read_text().splitlines() if self.calls_file.exists() else []

    def num_set_ups(self) -> int:
        return sum(call.startswith("uv venv") for call in self.calls())

    def uv_settings(self) -> dict[str, str]:
        lines = Path(f"{self.calls_file}.settings").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines)

    def has_stamp(self) -> bool:
        return (self.clone / ".venv/.headrace").exists()

    def edit(self, name: str, old: str, new: str) -> None:
        path = self.clone / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))


def make_machine(folder: Path) -> Machine:
    """A machine with the programs of a usual one; take some away for an unusual one."""
    clone = folder / "a clone with blanks"
    for name in CLONED_FILES:
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / name, clone / name)
    programs = folder / "programs"
    write_program(programs / "uv", FAKE_UV)
    write_program(programs / "python3.11", FAKE_PYTHON)
    for tool in SYSTEM_TOOLS:
        path = shutil.which(tool)
        assert path is not None, f"deploy/venv.sh needs {tool}"
        (programs / tool).symlink_to(path)
    return Machine(clone, programs, folder / "calls")
