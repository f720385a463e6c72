"""What the log-probability head costs beside materialised logits.

``python -m learner.studies.head_study`` prints one JSON object. Time is processor time of one
thread, the two taking turns. Memory is the peak of resident memory (VmHWM) above what was resident
before, each in a process of its own: it holds everything that torch took from the system,
gradients of the inputs included.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from common.torch.logprob_head import token_logprobs

VOCABULARY = 151_936
"""Of the Qwen models."""
HIDDEN_SIZES = (64, 256)
"""The first counts; with the second, matrix products take most of the time of both."""
MEMORY_TOKENS = 1024
TIME_TOKENS = 256
GRADIENT_TOKENS = 64
REPEATS = 5

_Inputs = tuple[Tensor, Tensor, Tensor]


def main(arguments: list[str]) -> None:
    """Without arguments the study; ``peak NAME`` is the process that measures one peak."""
    torch.set_num_threads(1)
    if arguments:
        print(peak_bytes(arguments[1]))
        return
    json.dump(study(), sys.stdout)


def study() -> dict[str, object]:
    """Peaks in bytes, seconds by hidden size, and the error of the gradients."""
    return {
        "peak_bytes": {name: _peak_in_process(name) for name in _LOSSES},
        "seconds": {str(size): seconds(size) for size in HIDDEN_SIZES},
        "gradient_error": gradient_error(),
        "vocabulary": VOCABULARY,
        "tokens": {"memory": MEMORY_TOKENS, "time": TIME_TOKENS, "gradient": GRADIENT_TOKENS},
    }


def seconds(hidden_size: int) -> dict[str, list[float]]:
    """Processor seconds of forward and backward, in turns, after a round that warms up."""
    inputs = _inputs(TIME_TOKENS, hidden_size)
    found: dict[str, list[float]] = {name: [] for name in _LOSSES}
    for turn in range(REPEATS + 1):
        for name, loss in _LOSSES.items():
            started_s = time.process_time()
            _gradients(loss, inputs)
            if turn:
                found[name].append(time.process_time() - started_s)
    return found


def gradient_error() -> dict[str, float]:
    """Norm of the difference to float64 over the norm, of both gradients, in float32."""
    inputs = _inputs(GRADIENT_TOKENS, HIDDEN_SIZES[0])
    hidden, weight, targets = inputs
    exact = (hidden.detach().double().requires_grad_(), weight.detach().double().requires_grad_())
    expected = _gradients(materialised_loss, (*exact, targets))
    ours = _gradients(chunked_loss, inputs)
    return {
        name: float((one.double() - other).norm() / other.norm())
        for name, one, other in zip(("hidden", "weight"), ours, expected, strict=True)
    }


def peak_bytes(name: str) -> int:
    """Resident bytes above those of the inputs, at most, while ``name`` is computed."""
    few, inputs = _inputs(2, HIDDEN_SIZES[0]), _inputs(MEMORY_TOKENS, HIDDEN_SIZES[0])
    _gradients(_LOSSES[name], few)  # loads kernels and starts the backward thread
    del few
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # peak := what is resident
    before = _status_bytes("VmRSS")
    _gradients(_LOSSES[name], inputs)
    return _status_bytes("VmHWM") - before


def materialised_loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy as torch computes it."""
    logits = torch.nn.functional.linear(hidden, weight)
    return torch.nn.functional.cross_entropy(logits, targets)


def chunked_loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """The same loss by the head, which computes the entropy as well."""
    logprobs, _ = token_logprobs(hidden, weight, targets)
    return -logprobs.mean()


_LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "materialised": materialised_loss,
    "chunked": chunked_loss,
}


def _gradients(loss: Callable[[Tensor, Tensor, Tensor], Tensor], inputs: _Inputs) -> list[Tensor]:
    hidden, weight, targets = inputs
    return list(torch.autograd.grad(loss(hidden, weight, targets), (hidden, weight)))


def _inputs(num_tokens: int, hidden_size: int) -> _Inputs:
    source = torch.Generator().manual_seed(0)
    hidden = torch.randn(num_tokens, hidden_size, generator=source)
    weight = torch.randn(VOCABULARY, hidden_size, generator=source) / hidden_size**0.5
    targets = torch.randint(0, VOCABULARY, (num_tokens,), generator=source)
    return hidden.requires_grad_(), weight.requires_grad_(), targets


def _peak_in_process(name: str) -> int:
    command = [sys.executable, "-m", "learner.studies.head_study", "peak", name]
    return int(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def _status_bytes(key: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{key}:"):
            return 1024 * int(line.split()[1])
    raise KeyError(key)


if __name__ == "__main__":
    main(sys.argv[1:])
