"""The cluster that is planned for, and every assumption of the model, with its source.

A file of four tables, all optional: ``[cluster]`` hardware, ``[workload]`` lengths, ``[measured]``
rates that you know, ``[assumed]`` what else the model takes for granted.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from common.errors import ConfigError
from deploy.planning.gpus import GPUS, Gpu


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """``[cluster]``: a value of 0 is looked up by the name of the GPU."""

    gpus: int = 8
    """GPUs for actors and learner together."""
    gpu: str = "H100"
    """Name in the table of published figures; any other name with own figures."""
    gpus_per_node: int = 8
    """GPUs of one machine, which NVLink connects."""
    tflops: float = 0.0
    """Dense bfloat16 TFLOP/s of one GPU."""
    memory_gb: float = 0.0
    """GB (10^9 bytes) of one GPU."""
    memory_gb_per_s: float = 0.0
    """GB/s of its memory."""
    nvlink_gb_per_s: float = 0.0
    """GB/s between GPUs of a machine, one direction."""
    host_gb_per_s: float = 0.0
    """GB/s between a GPU and host memory, one direction."""
    network_gb_per_s: float = 50.0
    """GB/s between machines for each GPU, one direction; 50 is a 400 Gb/s port a GPU."""
    disk_gb_per_s: float = 2.0
    """GB/s that one process writes to the run directory."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """``[workload]``: lengths in tokens. Look at them again after the first steps of the run."""

    mean_tokens: float = 0.0
    """Mean answer; 0: a quarter of ``actor.max_tokens``."""
    prompt_tokens: float = 256.0
    """Mean prompt."""
    sigma: float = 0.8
    """Spread of the logarithm of the lengths."""
    verify_s: float = 0.0
    """Wall time of one verification; 0: what math answers take."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """``[measured]``: rates of your own model on your own GPUs; 0: not known, the model is used."""

    decode_tokens_per_s: float = 0.0
    """Sampled tokens a second of one engine with all its sequences running."""
    train_tokens_per_s: float = 0.0
    """Tokens (prompts included) a second that one learner rank trains on."""
    load_s: float = 0.0
    """Seconds that an engine stands still to load a published version."""


@dataclass(frozen=True, kw_only=True)
class Assumed:
    """``[assumed]``: shares of peak figures, and rates of software."""

    decode_ratio: float = 0.6
    """Share of the memory bandwidth that decoding gets; expected, no published figure."""
    prefill_ratio: float = 0.4
    """Share of the peak FLOP/s that prefill gets; expected, no published figure."""
    mfu: float = 0.3
    """Model FLOPs utilisation of a learner rank that computes nothing twice; full checkpointing
    takes a quarter off. prime-rl publishes 0.11 to 0.36, torchtitan 0.39 for Llama 8B."""
    learner_memory_ratio: float = 0.9
    """Share of a GPU that a rank can use: the rest is the CUDA context and fragments."""
    engine_memory_gb: float = 3.0
    """GB of an engine beside weights and KV cache: graphs, workspace, activations."""
    step_overhead_s: float = 0.003
    """Seconds of a decode step that are neither bandwidth nor FLOPs: scheduling, sampling."""
    link_ratio: float = 0.8
    """Share of a link's bandwidth that collectives get."""
    gloo_gb_per_s: float = 1.2
    """GB/s of gloo through host memory; expected, what one stream of TCP gets."""
    load_gb_per_s: float = 4.0
    """GB/s at which vLLM loads weights: 1.9 to 2.1 s for 8 GB (vLLM issue 48382)."""
    delta_ratio: float = 0.025
    """Bytes of a sparse delta over those of the weights: TRL publishes 20 to 35 MB of 1.2 GB."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """All that a plan needs beside the run file."""

    cluster: Hardware = field(default_factory=Hardware)
    workload: Workload = field(default_factory=Workload)
    measured: Measured = field(default_factory=Measured)
    assumed: Assumed = field(default_factory=Assumed)

    @property
    def gpu(self) -> Gpu:
        """Figures of one GPU: the table's, with own figures in their place."""
        own = {
            item.name: getattr(self.cluster, item.name)
            for item in dataclasses.fields(Gpu)
            if item.name != "source" and getattr(self.cluster, item.name) > 0
        }
        published = GPUS.get(self.cluster.gpu)
        if published is None:
            return Gpu(source="the cluster file", **own)
        source = f"{published.source}; own: {', '.join(own)}" if own else published.source
        return dataclasses.replace(published, source=source, **own)

    def with_gpus(self, gpus: int) -> Cluster:
        """The same with another number of GPUs."""
        return dataclasses.replace(self, cluster=dataclasses.replace(self.cluster, gpus=gpus))


def read_cluster(file: Path | None, options: Mapping[str, object]) -> Cluster:
    """The cluster of ``file`` (None: all defaults) with ``options``, dotted keys, over it.

    Raises :class:`ConfigError` with file, line where there is one, rule, value and cure.
    """
    name = str(file) if file else "options"
    text = _read(file) if file else ""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{name}: not valid TOML: {error}") from None
    _refuse_unknown(table, name, text)
    for dotted, value in options.items():
        section, _, key = dotted.partition(".")
        table.setdefault(section, {})[key] = value
    try:
        cluster = msgspec.convert(table, Cluster, strict=True)
    except msgspec.ValidationError as error:
        message, _, where = str(error).partition(" - at `$.")
        key = where.rstrip("`") or "the file"
        at = f"{name}:{_line_of(text, key)}" if file else name
        raise ConfigError(f"{at}: {key}: {message[0].lower()}{message[1:]}") from None
    for key, rule in _broken_rules(cluster):
        at = f"{name}:{_line_of(text, key)}" if _line_of(text, key) else name
        raise ConfigError(f"{at}: {rule}")
    return cluster


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(
            f"{file}: no such file (copy examples/cluster-8-h100.toml, or use --gpu and --gpus)"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: cannot be read: {error} (give a TOML file)") from None


def _refuse_unknown(table: Mapping[str, Any], name: str, text: str) -> None:
    sections = {item.name: item for item in dataclasses.fields(Cluster)}
    kinds = {"cluster": Hardware, "workload": Workload, "measured": Measured, "assumed": Assumed}
    for section, values in table.items():
        if section not in sections:
            raise ConfigError(
                f"{name}:{_line_of(text, section)}: unknown table [{section}]"
                f"{_nearest(section, list(sections))}"
            )
        known = [item.name for item in dataclasses.fields(kinds[section])]
        for key in values if isinstance(values, dict) else ():
            if key not in known:
                dotted = f"{section}.{key}"
                raise ConfigError(
                    f"{name}:{_line_of(text, dotted)}: unknown key {dotted}{_nearest(key, known)}"
                )


def _nearest(key: str, known: list[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    return f" (did you mean {close[0]}?)" if close else f" (known here: {', '.join(known)})"


def _line_of(text: str, dotted: str) -> int:
    """Line of a table or of a key in its table, 0 where the file does not have it."""
    section, _, key = dotted.partition(".")
    table = ""
    for number, line in enumerate(text.splitlines(), start=1):
        header = re.match(r"\s*\[\s*([^\]]+?)\s*\]", line)
        if header:
            table = header.group(1)
            if not key and table == section:
                return number
        elif table == section and re.match(rf'\s*"?{re.escape(key)}"?\s*=', line):
            return number
    return 0


_RATIOS = ("decode_ratio", "prefill_ratio", "mfu", "learner_memory_ratio", "link_ratio")
_MAY_BE_ZERO = {
    "cluster": ("tflops", "memory_gb", "memory_gb_per_s", "nvlink_gb_per_s", "host_gb_per_s"),
    "workload": ("mean_tokens", "prompt_tokens", "verify_s"),
    "measured": ("decode_tokens_per_s", "train_tokens_per_s", "load_s"),
    "assumed": ("engine_memory_gb", "step_overhead_s"),
}
_CURES = {
    "gpus": "one engine and one learner rank need a GPU each",
    "sigma": "0.8 is usual for chains of thought",
    "mfu": "0.3 is usual",
}


def _broken_rules(cluster: Cluster) -> Iterator[tuple[str, str]]:
    """(key, rule with value and cure) of what is wrong."""
    if cluster.cluster.gpus < 2:
        yield (
            "cluster.gpus",
            f"cluster.gpus must be >= 2, got {cluster.cluster.gpus} ({_CURES['gpus']})",
        )
    for section in ("cluster", "workload", "measured", "assumed"):
        for key, value in dataclasses.asdict(getattr(cluster, section)).items():
            if isinstance(value, int | float):
                yield from _number_rule(section, key, float(value))
    if cluster.cluster.gpu not in GPUS:
        yield from _unknown_gpu(cluster.cluster)


def _number_rule(section: str, key: str, value: float) -> Iterator[tuple[str, str]]:
    dotted = f"{section}.{key}"
    may_be_zero = key in _MAY_BE_ZERO[section]
    cure = _CURES.get(key, "leave the key out for its default")
    if not math.isfinite(value) or value < 0 or (value == 0 and not may_be_zero):
        least = ">= 0" if may_be_zero else "> 0"
        yield dotted, f"{dotted} must be finite and {least}, got {value:g} ({cure})"
    elif key in _RATIOS and value > 1:
        yield dotted, f"{dotted} is a share and must be <= 1, got {value:g} ({cure})"


def _unknown_gpu(hardware: Hardware) -> Iterator[tuple[str, str]]:
    needed = [item.name for item in dataclasses.fields(Gpu) if item.name != "source"]
    missing = [name for name in needed if not getattr(hardware, name)]
    if missing:
        yield (
            "cluster.gpu",
            f"cluster.gpu must be one of {', '.join(GPUS)}, got {hardware.gpu!r} (or give its own "
            f"figures, which lack: {', '.join(missing)})",
        )
