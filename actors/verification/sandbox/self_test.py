"""Which tier holds on this machine: found by attacking it, not by asking what the kernel offers."""

from __future__ import annotations

import contextlib
import json
import secrets
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from actors.verification.sandbox.launcher import ENVIRONMENT, Launcher
from actors.verification.sandbox.limits import BoxJob, BoxLimits, BoxResult, Mode, Tier
from common.errors import FatalError, InfraError

SAFE_TIERS = (Tier.NAMESPACES, Tier.FILTERS)
_ATTACKS = Path(__file__).with_name("attacks.py")
_PATIENCE_S = 20.0


@dataclass(frozen=True, slots=True)
class TierReport:
    """What the self-test found."""

    tier: Tier
    refused: dict[Tier, str] = field(default_factory=dict)
    """Stronger tiers, and why they do not hold here."""

    @property
    def line(self) -> str:
        """One line for logs and summaries."""
        why = "".join(f"; not {tier.value}: {text}" for tier, text in self.refused.items())
        if self.tier is Tier.NONE:
            return f"UNSAFE: programs run WITHOUT A SANDBOX, as it was asked for{why}"
        return f"sandbox of tier {self.tier.value}{why}"


def choose_tier(
    limits: BoxLimits,
    *,
    unsafe_no_sandbox: bool = False,
    candidates: Sequence[Tier] = SAFE_TIERS,
    interpreter: str = "",
) -> TierReport:
    """The strongest tier whose every attack fails.

    Raises :class:`FatalError` when there is none, unless ``unsafe_no_sandbox``.
    """
    refused: dict[Tier, str] = {}
    for tier in candidates:
        weakness = find_weakness(tier, limits, interpreter)
        if not weakness:
            return TierReport(tier, refused)
        refused[tier] = weakness
    if unsafe_no_sandbox:
        return TierReport(Tier.NONE, refused)
    reasons = "; ".join(f"{tier.value}: {text}" for tier, text in refused.items())
    raise FatalError(
        f"no sandbox holds on this machine ({reasons}); allow user namespaces or use a kernel with "
        "Landlock, or set verifier.unsafe_no_sandbox = true (--unsafe-no-sandbox) where every "
        "program is trusted"
    )


def find_weakness(tier: Tier, limits: BoxLimits, interpreter: str = "") -> str:
    """What gets through in ``tier``, or why it cannot start; empty when it holds."""
    launcher = Launcher(tier, limits, interpreter)
    try:
        launcher.start()
        with _canaries() as target:
            target |= {"environment": sorted(ENVIRONMENT), "num_processes": limits.num_processes}
            result = launcher.run(_job(target))
    except (FatalError, InfraError, OSError) as error:
        return str(error)
    finally:
        launcher.close()
    return _read_findings(result)


def _job(target: dict[str, Any]) -> BoxJob:
    files = {"main.py": _ATTACKS.read_bytes()}
    return BoxJob(Mode.SCRIPT, files, stdin=json.dumps(target).encode())


def _read_findings(result: BoxResult) -> str:
    """No answer is no proof."""
    try:
        findings = json.loads(result.stdout)
    except ValueError:
        last = result.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
        return f"the self-test did not run: {''.join(last) or result}"[:400]
    return "" if findings == [] else f"a program {', '.join(findings).replace('_', ' ')}"


@contextlib.contextmanager
def _canaries() -> Iterator[dict[str, Any]]:
    """A listening port, an abstract socket, a file and a process, for a program to reach."""
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        name = f"headrace-canary-{secrets.token_hex(8)}"
        abstract = stack.enter_context(socket.socket(socket.AF_UNIX))
        abstract.bind("\0" + name)
        abstract.listen()
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="headrace-canary-")))
        folder.chmod(0o777)
        secret = folder / "secret"
        secret.write_text("canary", encoding="ascii")
        secret.chmod(0o666)
        process = subprocess.Popen(
            ["sleep", "60"], env={"CANARY": "alive", "PATH": "/usr/bin:/bin"}
        )
        stack.callback(process.wait, _PATIENCE_S)
        stack.callback(process.kill)
        yield {
            "port": port.getsockname()[1],
            "abstract": name,
            "file": str(secret),
            "pid": process.pid,
        }
