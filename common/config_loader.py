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

from common.broker_config_rules import broker_rules
from common.config import Config, RunPaths
from common.errors import ConfigError
from common.guard_config_rules import guard_rules
from common.learner_config_rules import learner_rules
from common.learner_presets import apply_preset
from common.loss_config_rules import loss_rules
from common.number_config_rules import number_rules
from common.prompt_config_rules import prompt_rules
from common.reference_config_rules import reference_rules
from common.reward_config_rules import reward_rules
from common.reward_terms import resolved
from common.store_config_rules import store_rules
from common.user_rewards import with_function
from common.verifier_model_rules import verifier_model_rules

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
    yield from number_rules(config)
    yield from prompt_rules(config)
    yield from broker_rules(config)
    yield from store_rules(config)
    yield from verifier_model_rules(config.verifier.models)
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
    yield from guard_rules(config)
    yield from loss_rules(config)


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
    hints = typing.get_type_hints(kind)
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
        learner=dataclasses.replace(
            config.learner,
            critic=dataclasses.replace(
                config.learner.critic, path=absolute(config.learner.critic.path)
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


def _set_dotted(table: dict[str, Any], key: str, value: object) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        table = table.setdefault(parent, {})
    table[last] = value
