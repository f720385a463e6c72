"""Starting vLLM inside this process, and the sampling parameters that headrace asks it for.

vLLM is imported inside functions only: the environment that it reads at import is prepared
first, and machines without it can still import this module.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from actors.generation.sampler import SampleRequest
from common.errors import ModelDirectoryError


@dataclass(frozen=True, kw_only=True, slots=True)
class VllmOptions:
    """How to start the engine.

    ``kv_cache_bytes`` is taken at start and never grows; None, for GPUs only, lets the engine fill
    ``gpu_memory_ratio`` of the device instead. ``max_num_seqs`` is the number of
    requests decoded together; more wait in order of submission. ``record_experts`` asks for the
    experts that computed each token.
    """

    model_dir: Path
    max_model_len: int
    dtype: str = "float32"
    kv_cache_bytes: int | None = 256 << 20
    gpu_memory_ratio: float = 0.9
    max_num_seqs: int = 256
    enforce_eager: bool = True
    seed: int = 0
    record_experts: bool = False


def start_engine(options: VllmOptions) -> Any:
    """An ``LLMEngine`` on the model directory, with every weight left where it can be read."""
    _prepare_process()
    from vllm import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    arguments = EngineArgs(
        model=str(options.model_dir),
        dtype=options.dtype,
        seed=options.seed,
        max_model_len=options.max_model_len,
        # One place more than requests are admitted, so that a canary never queues behind them.
        max_num_seqs=options.max_num_seqs + 1,
        kv_cache_memory_bytes=options.kv_cache_bytes,
        gpu_memory_utilization=options.gpu_memory_ratio,
        enforce_eager=options.enforce_eager,
        # The other kernels for GPUs shuffle the experts of a mixture, out of reach of a proof.
        moe_backend="triton" if torch.cuda.is_available() else "auto",
        enable_prefix_caching=True,
        async_scheduling=False,
        skip_tokenizer_init=True,
        generation_config="vllm",
        logprobs_mode="processed_logprobs",
        disable_log_stats=True,
        use_tqdm_on_load=False,
        # on a CPU the actor listens to the routers itself
        enable_return_routed_experts=options.record_experts and torch.cuda.is_available(),
    )
    try:
        return LLMEngine.from_engine_args(arguments, enable_multiprocessing=False)
    except Exception as error:
        leave_process_groups()
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise ModelDirectoryError(
            f"vLLM must be able to serve {options.model_dir}, but its engine did not start: "
            f"{reason} (check the architecture, actor memory and context length)"
        ) from error


def _prepare_process() -> None:
    """Set what vLLM reads at import; a value that the user exported wins where both work."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)  # would override kv_cache_bytes
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    if not torch.cuda.is_available():
        # Even an eager engine compiles its sampling kernel in C++ at the first token.
        # The variable speaks to vLLM; torch itself may have read it before this line.
        os.environ["TORCH_COMPILE_DISABLE"] = "1"
        from torch._dynamo import config as dynamo_config
        from vllm import _custom_ops

        dynamo_config.disable = True

        # oneDNN packing empties the weights, which hides them from proofs and leaves a tied
        # head stale after a load; plain torch kernels are as fast at float32.
        _custom_ops._supports_onednn = False


def leave_process_groups() -> None:
    """Give back the process group that an engine took, so that another engine can start."""
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

    cleanup_dist_env_and_memory()


def sampling_params(request: SampleRequest) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        temperature=request.temperature,
        seed=request.seed,
        max_tokens=request.max_tokens,
        stop_token_ids=list(request.stop_token_ids),
        ignore_eos=True,  # the request's own stop tokens are the only ones
        logprobs=0,
        flat_logprobs=True,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def score_params() -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        max_tokens=1,
        prompt_logprobs=0,
        flat_logprobs=True,
        detokenize=False,
        skip_reading_prefix_cache=True,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )
