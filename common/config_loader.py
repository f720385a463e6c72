"""TOML file -> :class:`common.config.Config`, or one clear error with file, line and cure."""

from __future__ import annotations

import dataclasses
import difflib
import re
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import tomli_w

from common import config as sections
from common.config import Config, RunPaths
from common.errors import ConfigError
from common.learner_config_rules import learner_rules
from common.learner_presets import apply_preset
from common.loss_config_rules import loss_rules
from common.prompt_config_rules import prompt_rules
from common.reference_config_rules import reference_rules
from common.reward_config_rules import reward_rules
from common.reward_terms import resolved
from common.store_config_rules import store_rules
from common.user_rewards import with_function
from common.verifier_model_rules import thought_rules, verifier_model_rules

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def load_config(path: str | Path, overrides: Mapping[str, object] | None = None) -> Config:
    """Read and check the run file at ``path``.

    ``overrides`` maps dotted keys (``"learner.num_steps"``) to values and wins over the file.
    Relative paths in the file are taken from the file's folder. Raises :class:`ConfigError`.
    """
    file = Path(path)
    text = _read_text(file)
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file}: not valid TOML: {error}") from None
    for key, value in (overrides or {}).items():
        _set_dotted(table, key, value)
    _refuse_unknown_keys(table, Config, (), file, text)
    apply_preset(table)
    config = _convert(table, file)
    config = _with_absolute_paths(config, file.resolve().parent)
    config = _with_rewards(config, file)
    check_config(config, file)
    return config


def run_paths(config: Config) -> RunPaths:
    """Names of everything below the run directory."""
    return RunPaths(Path(config.run.directory))


def to_toml(config: Config) -> str:
    """The resolved configuration as TOML that :func:`load_config` reads back."""
    # asdict first: msgspec leaves the defaults of converted sections on the class and skips them
    return tomli_w.dumps(msgspec.to_builtins(dataclasses.asdict(config)))


def check_config(config: Config, file: Path) -> None:
    """Rules inside and across sections; raises :class:`ConfigError` for the first one broken."""
    for rule in _rules(config):
        raise ConfigError(f"{file}: {rule}")


def _rules(config: Config) -> Iterator[str]:
    yield from _number_rules(config)
    yield from prompt_rules(config)
    yield from _broker_rules(config)
    yield from store_rules(config)
    yield from verifier_model_rules(config.verifier.models)
    yield from thought_rules(config.verifier)
    yield from reference_rules(config)
    if not _NAME.fullmatch(config.run.id):
        yield (
            f"run.id must be up to 64 letters, digits, '.', '_' or '-', got {config.run.id!r} "
            '(for example "math-7b")'
        )
    if config.actor.max_tokens >= config.model.max_length:
        yield (
            f"actor.max_tokens must be below model.max_length ({config.model.max_length}) to leave "
            f"room for the prompt, got {config.actor.max_tokens} (raise model.max_length)"
        )
    yield from reward_rules(config)
    yield from learner_rules(config)
    yield from loss_rules(config)


_AT_LEAST: tuple[tuple[str, float, str], ...] = (
    ("learner.max_policy_lag", 0, "use 0 for synchronous training"),
    ("learner.group_size", 2, "a group of one has no advantage"),
    ("learner.groups_per_step", 1, "use 32 to start with"),
    ("learner.num_steps", 1, "use 100 to start with"),
    ("learner.num_ranks", 1, "use 1 on one CPU or GPU"),
    ("learner.microbatch_tokens", 1, "use 8192 to start with"),
    ("learner.activation_checkpoint_every", 1, "use 1 for all layers"),
    ("learner.row_tokens", 0, "use 0 for the longest sequence"),
    ("learner.checkpoint_every", 1, "use 10 to start with"),
    ("learner.keep_checkpoints", 1, "keep at least the newest"),
    ("learner.num_threads", 1, "use 1 where roles share cores"),
    ("learner.reference_reset_every", 0, "use 0 to keep the initial model, 400 as R1"),
    ("learner.loss.kl_coefficient", 0, "use 0 to keep no reference"),
    ("learner.max_grad_norm", 0, "use 0 to turn clipping off"),
    ("actor.count", 1, "a run needs an actor"),
    ("actor.max_tokens", 1, "use 1024 to start with"),
    ("actor.max_num_seqs", 1, "use 256 to start with"),
    ("verifier.count", 1, "a run needs a verifier"),
    ("verifier.num_workers", 1, "use the number of spare cores"),
    ("verifier.model_batch_tokens", 1, "use 16384"),
    ("verifier.model_queue_tokens", 1, "use 262144"),
    ("verifier.model_threads", 1, "use 1 where roles share cores"),
    ("broker.max_attempts", 1, "use 3"),
    ("broker.max_outstanding_groups", 1, "use 64"),
    ("broker.max_group_s", 0, "use 0 for no limit"),
    ("broker.journal_segment_bytes", 65536, "use 67108864"),
    ("broker.max_memory_bytes", 201326592, "use 536870912"),
    ("stores.count", 1, "use 1 to start with"),
    ("stores.segment_bytes", 1048576, "use 67108864"),
    ("stores.hot_bytes", 0, "use 0 to keep nothing in memory"),
    ("stores.max_bytes", 1048576, "use 68719476736"),
    ("weights.keep_versions", 1, "keep at least the newest"),
    ("weights.bucket_bytes", 1024, "use 67108864"),
    ("collect.samples_per_prompt", 1, "use 4"),
    ("collect.num_prompts", 1, "use 512"),
    ("sft.num_steps", 1, "use 400"),
    ("sft.batch_size", 1, "use 64"),
    ("learner.max_dropped_batches", 0, "use 0 for no limit"),
    ("model.max_length", 2, "use 2048"),
)
_ABOVE_ZERO: tuple[str, ...] = (
    "learner.learning_rate",
    "learner.loss.clip_low",
    "learner.loss.clip_high",
    "actor.temperature",
    "verifier.wall_limit_s",
    "verifier.model_batch_limit_s",
    "verifier.model_load_limit_s",
    "broker.heartbeat_s",
    "broker.no_progress_s",
    "broker.max_absence_s",
    "stores.patience_s",
    "stores.sweep_s",
    "weights.deadline_s",
    "weights.canary_tolerance",
    "sft.learning_rate",
)


def _number_rules(config: Config) -> Iterator[str]:
    for key, low, cure in _AT_LEAST:
        value = _get_dotted(config, key)
        if not value >= low:
            yield f"{key} must be >= {low}, got {value} ({cure})"
    for key in _ABOVE_ZERO:
        value = _get_dotted(config, key)
        if not 0 < value < float("inf"):
            yield f"{key} must be a finite number above 0, got {value} (delete the line)"
    for role in ("broker", "stores", "actor", "verifier", "learner"):
        port = _get_dotted(config, f"{role}.metrics_port")
        if not 0 <= port <= 65535:
            yield f"{role}.metrics_port must be 0 to 65535, got {port} (0 takes a free port)"


def _broker_rules(config: Config) -> Iterator[str]:
    broker = config.broker
    if broker.dead_after_s < 2 * broker.heartbeat_s:
        yield (
            f"broker.dead_after_s must be at least twice broker.heartbeat_s "
            f"({broker.heartbeat_s}), got {broker.dead_after_s} (use 15)"
        )
    least = 3 * broker.journal_segment_bytes
    if broker.max_journal_bytes and broker.max_journal_bytes < least:
        yield (
            f"broker.max_journal_bytes must be 0 or hold 3 segments of "
            f"broker.journal_segment_bytes ({least} bytes), got {broker.max_journal_bytes} "
            "(use 0 to let the disk decide)"
        )
    if broker.endpoint == "ipc":
        return
    if not re.fullmatch(r"tcp://[^:/\s]+:\d{1,5}", broker.endpoint):
        yield (
            f'broker.endpoint must be "ipc" or "tcp://host:port", got {broker.endpoint!r} '
            '(use "ipc" on one machine)'
        )
    elif not config.security.keys and not broker.allow_plaintext_tcp:
        yield (
            f"broker.endpoint {broker.endpoint!r} is neither encrypted nor authenticated "
            "(make keys with headrace keys DIRECTORY and set security.keys; or set "
            "broker.allow_plaintext_tcp = true on a network that you trust)"
        )


def _read_text(file: Path) -> str:
    try:
        return file.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{file}: no such file (see examples/ for one to start from)") from None
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: must be UTF-8, byte {error.start} is not") from None


def _convert(table: dict[str, Any], file: Path) -> Config:
    try:
        return msgspec.convert(table, Config, strict=True)
    except msgspec.ValidationError as error:
        message, _, where = str(error).partition(" - at `$.")
        key = where.rstrip("`") if where else "the file"
        raise ConfigError(f"{file}: {key}: {message[0].lower()}{message[1:]}") from None


def _refuse_unknown_keys(
    table: Mapping[str, Any], kind: type[Any], path: tuple[str, ...], file: Path, text: str
) -> None:
    known = {item.name: item for item in dataclasses.fields(kind)}
    hints = typing.get_type_hints(kind, vars(sections))
    for key, value in table.items():
        dotted = ".".join((*path, key))
        if key not in known:
            raise ConfigError(
                f"{file}:{_line_of(text, path, key)}: unknown key {dotted}"
                f"{_nearest(key, list(known), path)}"
            )
        inner = hints[key]
        if dataclasses.is_dataclass(inner) and isinstance(value, dict):
            _refuse_unknown_keys(value, typing.cast("type[Any]", inner), (*path, key), file, text)
        item_type = _tuple_item(inner)
        if item_type is not None and isinstance(value, list):
            for entry in value:
                if isinstance(entry, dict):
                    _refuse_unknown_keys(entry, item_type, (*path, key), file, text)


def _tuple_item(kind: object) -> type[Any] | None:
    """The dataclass that a ``tuple[Section, ...]`` holds, or None."""
    arguments = typing.get_args(kind) if isinstance(kind, types.GenericAlias) else ()
    if arguments and dataclasses.is_dataclass(arguments[0]) and isinstance(arguments[0], type):
        return arguments[0]
    return None


def _nearest(key: str, known: list[str], path: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    if close:
        return f" (did you mean {'.'.join((*path, close[0]))}?)"
    return f" (known here: {', '.join(known)})"


def _line_of(text: str, path: tuple[str, ...], key: str) -> int:
    """Line of ``key`` in its table, found in the text because TOML tables carry no positions."""
    table = ""
    for number, line in enumerate(text.splitlines(), start=1):
        header = re.match(r"\s*\[+\s*([^\]]+?)\s*\]", line)
        if header:
            table = header.group(1)
            if table == ".".join((*path, key)):
                return number
        elif table == ".".join(path) and re.match(rf'\s*"?{re.escape(key)}"?\s*[.=]', line):
            return number
    return 1


def _with_absolute_paths(config: Config, folder: Path) -> Config:
    def absolute(value: str) -> str:
        return str((folder / Path(value).expanduser()).absolute()) if value else ""

    return dataclasses.replace(
        config,
        run=dataclasses.replace(config.run, directory=absolute(config.run.directory)),
        model=dataclasses.replace(config.model, path=absolute(config.model.path)),
        prompts=dataclasses.replace(
            config.prompts,
            file=absolute(config.prompts.file),
            sets=tuple(
                dataclasses.replace(item, file=absolute(item.file)) for item in config.prompts.sets
            ),
        ),
        verifier=dataclasses.replace(
            config.verifier,
            models=tuple(
                dataclasses.replace(
                    item, path=absolute(item.path), directory=absolute(item.directory)
                )
                for item in config.verifier.models
            ),
        ),
        security=dataclasses.replace(config.security, keys=absolute(config.security.keys)),
        sft=dataclasses.replace(
            config.sft, corpus=absolute(config.sft.corpus), output=absolute(config.sft.output)
        ),
        collect=dataclasses.replace(config.collect, output=absolute(config.collect.output)),
    )


def _with_rewards(config: Config, file: Path) -> Config:
    """``config`` with the terms of its preset in place, and the user's own functions found."""
    folder = file.resolve().parent
    try:
        rewards = tuple(with_function(term, folder) for term in config.verifier.rewards)
        verifier = dataclasses.replace(config.verifier, rewards=rewards)
        return dataclasses.replace(config, verifier=resolved(verifier))
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from None


def _get_dotted(config: Config, key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


def _set_dotted(table: dict[str, Any], key: str, value: object) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        table = table.setdefault(parent, {})
    table[last] = value
