"""What a test may change under the feet of the next one in the same process."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from dataclasses import dataclass, field
from typing import Any

import structlog

_OF_PYTEST = {"PYTEST_CURRENT_TEST"}
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM, signal.SIGPROF)


@dataclass(frozen=True)
class ProcessState:
    """A copy of it, taken when this was made."""

    environment: dict[str, str] = field(default_factory=lambda: dict(os.environ))
    directory: str = field(default_factory=os.getcwd)
    signals: dict[int, Any] = field(
        default_factory=lambda: {number: signal.getsignal(number) for number in _SIGNALS}
    )
    event_loops: Any = field(default_factory=asyncio.get_event_loop_policy)
    log_level: int = field(default_factory=lambda: logging.getLogger().level)
    events: dict[str, Any] | None = field(
        default_factory=lambda: structlog.get_config() if structlog.is_configured() else None
    )
    torch: TorchState | None = field(default_factory=lambda: TorchState.now())

    def restore(self) -> None:
        """Make it so again; what torch holds only if torch had been imported."""
        for name in os.environ.keys() - self.environment.keys() - _OF_PYTEST:
            del os.environ[name]
        for name, value in self.environment.items():
            if name not in _OF_PYTEST and os.environ.get(name) != value:
                os.environ[name] = value
        os.chdir(self.directory)
        for number, handler in self.signals.items():
            if handler is not None and signal.getsignal(number) is not handler:
                signal.signal(number, handler)  # None was set by C code, which Python cannot do
        if asyncio.get_event_loop_policy() is not self.event_loops:
            asyncio.set_event_loop_policy(self.event_loops)
        logging.getLogger().setLevel(self.log_level)
        if self.events is None:
            structlog.reset_defaults()
        else:
            structlog.configure(**self.events)
        if self.torch is not None:
            self.torch.restore()
        elif (compiler := sys.modules.get("torch._dynamo.config")) is not None:
            compiler.disable = False  # type: ignore[attr-defined]


@dataclass(frozen=True)
class TorchState:
    """The settings of torch that hold for a whole process."""

    num_threads: int
    default_dtype: Any
    is_deterministic: bool
    has_gradients: bool
    is_compiler_off: bool | None
    """None where the compiler was not imported, or its setting was deleted."""

    @classmethod
    def now(cls) -> TorchState | None:
        """None as long as nobody has imported torch."""
        torch: Any = sys.modules.get("torch")
        if torch is None:
            return None
        compiler: Any = sys.modules.get("torch._dynamo.config")
        return cls(
            torch.get_num_threads(),
            torch.get_default_dtype(),
            torch.are_deterministic_algorithms_enabled(),
            torch.is_grad_enabled(),
            getattr(compiler, "disable", None),
        )

    def restore(self) -> None:
        """Make it so again."""
        found = TorchState.now()
        if found is None or found == self:
            return
        torch: Any = sys.modules["torch"]
        torch.set_num_threads(self.num_threads)
        torch.set_default_dtype(self.default_dtype)
        torch.use_deterministic_algorithms(self.is_deterministic)
        torch.set_grad_enabled(self.has_gradients)
        compiler: Any = sys.modules.get("torch._dynamo.config")
        if compiler is not None:
            compiler.disable = bool(self.is_compiler_off)
