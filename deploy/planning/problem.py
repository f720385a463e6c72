"""A run file, a cluster and a model put together: everything but the split."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from common.config import Config, LearnerConfig
from common.errors import ConfigError
from common.weight_layout import DTYPE_BYTES
from deploy.planning.architecture import Architecture
from deploy.planning.cluster import Cluster
from deploy.planning.law import BATCH_WAITING, STREAMING
from deploy.planning.lengths import AnswerLengths
from deploy.planning.measured import MATH_VERDICTS, NUM_WORKERS
from deploy.planning.memory import EngineMemory, engine_memory
from deploy.planning.rates import Engine, Trainer, recompute_ratio, train_flops_per_step
from deploy.planning.sync import Links

_GIGA = 1e9
_TERA = 1e12


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What is to be split."""

    config: Config
    cluster: Cluster
    model: Architecture
    lengths: AnswerLengths
    room: EngineMemory
    engine: Engine
    trainer: Trainer
    links: Links
    kappa: float

    @property
    def weight_bytes(self) -> int:
        """One published version."""
        return self.model.num_parameters * DTYPE_BYTES[self.config.model.dtype]

    @property
    def rank_room(self) -> float:
        """Bytes that a learner rank can use."""
        ratio = self.cluster.assumed.learner_memory_ratio
        return self.cluster.gpu.memory_gb * _GIGA * ratio

    @property
    def waits(self) -> int:
        """w of the law: 2 where the learner needs the whole batch before its first gradient."""
        learner = self.config.learner
        is_whole = (
            learner.loss.advantage_over == "batch"
            or (learner.loss.baseline == "critic" and learner.critic.whiten)
            or learner.updates_per_batch * learner.epochs_per_batch > 1
        )
        return BATCH_WAITING if is_whole else STREAMING

    @property
    def verify_s(self) -> float:
        """Seconds of one verification in one worker."""
        measured_s = NUM_WORKERS / MATH_VERDICTS.value
        return self.cluster.workload.verify_s or measured_s

    def with_learner(self, **changes: object) -> Problem:
        """The same with other settings of ``[learner]``."""
        learner = dataclasses.replace(self.config.learner, **changes)  # type: ignore[arg-type]
        config = dataclasses.replace(self.config, learner=learner)
        return make_problem(config, self.cluster, self.model)

    def with_nccl(self) -> Problem:
        """The same with ``weights.backend = "nccl"``."""
        weights = dataclasses.replace(self.config.weights, backend="nccl")
        config = dataclasses.replace(self.config, weights=weights)
        return make_problem(config, self.cluster, self.model)

    def with_cluster(self, cluster: Cluster) -> Problem:
        """The same on another cluster, or with other assumptions."""
        return make_problem(self.config, cluster, self.model)


def make_problem(config: Config, cluster: Cluster, model: Architecture) -> Problem:
    """Raises :class:`ConfigError` when a figure of ``cluster`` does not go with the run."""
    if config.run.kind != "train":
        raise ConfigError(
            f'run.kind must be "train" to be planned, got "{config.run.kind}" (a collect run has '
            "no learner to balance: give all GPUs to actors)"
        )
    lengths = answer_lengths(config, cluster)
    gpu, assumed = cluster.gpu, cluster.assumed
    room = engine_memory(
        model,
        dtype=config.model.dtype,
        device_bytes=gpu.memory_gb * _GIGA * config.actor.gpu_memory_ratio,
        engine_bytes=assumed.engine_memory_gb * _GIGA,
        prompt_tokens=cluster.workload.prompt_tokens,
        mean_decoded=lengths.mean_decoded,
    )
    return Problem(
        config=config,
        cluster=cluster,
        model=model,
        lengths=lengths,
        room=room,
        engine=_engine(config, cluster, model, room),
        trainer=_trainer(config, cluster, model, lengths),
        links=Links(
            host=gpu.host_gb_per_s * _GIGA * assumed.link_ratio,
            gloo=assumed.gloo_gb_per_s * _GIGA,
            disk=cluster.cluster.disk_gb_per_s * _GIGA,
            nvlink=gpu.nvlink_gb_per_s * _GIGA * assumed.link_ratio,
            network=cluster.cluster.network_gb_per_s * _GIGA * assumed.link_ratio,
            load=assumed.load_gb_per_s * _GIGA,
            node_gpus=cluster.cluster.gpus_per_node,
        ),
        kappa=lengths.tail_ratio(config.learner.group_size),
    )


def answer_lengths(config: Config, cluster: Cluster) -> AnswerLengths:
    """Lengths of answers; raises :class:`ConfigError` when they do not fit the run file."""
    longest = config.actor.max_tokens
    mean = cluster.workload.mean_tokens or longest / 4
    if not 1 <= mean < longest:
        raise ConfigError(
            f"workload.mean_tokens must be at least 1 and below actor.max_tokens ({longest}), got "
            f"{mean:g} (raise actor.max_tokens, or give what you expect)"
        )
    prompt = cluster.workload.prompt_tokens
    if prompt + longest > config.model.max_length:
        raise ConfigError(
            f"workload.prompt_tokens and actor.max_tokens must fit model.max_length "
            f"({config.model.max_length}), got {prompt:g} + {longest} (raise model.max_length)"
        )
    return AnswerLengths(mean, float(longest), cluster.workload.sigma)


def _engine(config: Config, cluster: Cluster, model: Architecture, room: EngineMemory) -> Engine:
    gpu, assumed = cluster.gpu, cluster.assumed
    return Engine(
        model=model,
        dtype_bytes=DTYPE_BYTES[config.model.dtype],
        bytes_per_s=gpu.memory_gb_per_s * _GIGA * assumed.decode_ratio,
        decode_flops_per_s=gpu.tflops * _TERA * assumed.decode_ratio,
        prefill_flops_per_s=gpu.tflops * _TERA * assumed.prefill_ratio,
        mean_context=room.mean_context,
        overhead_s=assumed.step_overhead_s,
        max_sequences=max(1, min(config.actor.max_num_seqs, room.sequences)),
        prompt_tokens=cluster.workload.prompt_tokens,
        group_size=config.learner.group_size,
        measured_tokens_per_s=cluster.measured.decode_tokens_per_s,
    )


def _trainer(
    config: Config, cluster: Cluster, model: Architecture, lengths: AnswerLengths
) -> Trainer:
    gpu, assumed, learner = cluster.gpu, cluster.assumed, config.learner
    prompt = cluster.workload.prompt_tokens
    flops = train_flops_per_step(model, learner, lengths, prompt, config.rollouts_per_step)
    passes = config.rollouts_per_step * learner.epochs_per_batch
    return Trainer(
        flops_per_step=flops * recompute_ratio(learner),
        tokens_per_step=passes * (prompt + lengths.mean),
        flops_per_s=gpu.tflops * _TERA * assumed.mfu,
        num_parameters=model.num_parameters,
        moved_bytes=_optimizer_bytes(learner, model) * learner.updates_per_batch,
        bytes_per_s=_optimizer_rate(learner, cluster),
        microbatch_tokens=max(learner.microbatch_tokens, config.model.max_length),
        context_parallel=learner.context_parallel,
        node_gpus=cluster.cluster.gpus_per_node,
        nvlink_bytes_per_s=gpu.nvlink_gb_per_s * _GIGA * assumed.link_ratio,
        network_bytes_per_s=cluster.cluster.network_gb_per_s * _GIGA * assumed.link_ratio,
        measured_tokens_per_s=cluster.measured.train_tokens_per_s,
    )


def _optimizer_bytes(learner: LearnerConfig, model: Architecture) -> float:
    """AdamW reads weight, gradient and two moments and writes all but the gradient back."""
    moments = 2 * DTYPE_BYTES[learner.optimizer_dtype]
    return model.num_parameters * (4 + 2 * (4 + moments))


def _optimizer_rate(learner: LearnerConfig, cluster: Cluster) -> float:
    """Device memory, or the way to the host where the optimizer's state lies."""
    gpu, assumed = cluster.gpu, cluster.assumed
    if learner.offload_optimizer:
        return gpu.host_gb_per_s * _GIGA * assumed.link_ratio
    return gpu.memory_gb_per_s * _GIGA * assumed.decode_ratio
