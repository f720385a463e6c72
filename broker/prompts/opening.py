"""From ``[prompts]`` to a checked :class:`Mixture`: files are read, generators looked up."""

from __future__ import annotations

from pathlib import Path

from broker.prompts.mixture import Mixture, PromptSet
from broker.prompts.sequences import EpochSequence, PromptSequence, StreamSequence
from broker.tasks.finding import Problems, find_problems
from common.config import Config, PromptSetConfig
from common.errors import ConfigError
from common.prompt_file import PromptFile


def open_prompt_source(config: Config) -> Mixture:
    """The sets that ``[prompts]`` names, checked whole.

    A collect run answers each prompt of a list once, ``collect.num_prompts`` in all. Raises
    :class:`PromptFileError` for a bad file and :class:`ConfigError` for a bad generator.
    """
    sets = [_open_set(config, item) for item in config.prompts.all_sets]
    is_collect = config.run.kind == "collect"
    return Mixture(sets, limit=config.collect.num_prompts if is_collect else 0)


def _open_set(config: Config, item: PromptSetConfig) -> PromptSet:
    if item.file:
        return _open_file(config, item)
    if item.split == "held-out":
        return _open_held_out(config, item)
    return _open_stream(config, item)


def _open_file(config: Config, item: PromptSetConfig) -> PromptSet:
    file = PromptFile(Path(item.file))
    seed = f"{item.name}/{config.run.seed}" if item.shuffle else None
    sequence = EpochSequence(
        len(file),
        file.__getitem__,
        order_seed=seed,
        epochs=1 if config.run.kind == "collect" else item.epochs,
        limit=item.limit,
    )
    order = f"shuffled by seed {config.run.seed}" if item.shuffle else "in order"
    fingerprint = f"{len(file)} prompts, blake2b {file.digest}, {order}"
    return _prompt_set(item, sequence, item.file, fingerprint)


def _open_held_out(config: Config, item: PromptSetConfig) -> PromptSet:
    is_collect = config.run.kind == "collect"
    limits = [item.limit] if item.limit else []
    if is_collect:
        limits.append(config.collect.num_prompts)
    if not limits:
        raise ConfigError(
            'prompts.split = "held-out" needs a number of prompts (set prompts.limit, for example '
            "to 512)"
        )
    task = find_problems(item.generator, item.options)
    problems = task.held_out(config.run.seed, min(limits))
    sequence = EpochSequence(
        len(problems),
        lambda position: problems[position].prompt,
        order_seed=None,
        epochs=1 if is_collect else max(item.epochs, 1),
    )
    fingerprint = f"{len(problems)} held-out prompts, {_generated(task, config, item)}"
    return _prompt_set(item, sequence, item.generator, fingerprint)


def _open_stream(config: Config, item: PromptSetConfig) -> PromptSet:
    task = find_problems(item.generator, item.options)
    sequence = StreamSequence(
        lambda cursor: task.prompt_at(config.run.seed, cursor).prompt, limit=item.limit
    )
    return _prompt_set(item, sequence, item.generator, _generated(task, config, item))


def _prompt_set(
    item: PromptSetConfig, sequence: PromptSequence, origin: str, fingerprint: str
) -> PromptSet:
    return PromptSet(item.name, item.weight, sequence, origin, fingerprint)


def _generated(task: Problems, config: Config, item: PromptSetConfig) -> str:
    options = "".join(f", {key} = {value!r}" for key, value in sorted(item.options.items()))
    return f"{task.identity} of seed {config.run.seed}{options}"
