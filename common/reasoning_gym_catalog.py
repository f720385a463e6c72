"""The datasets of the optional package reasoning-gym, by name and with checked options.

The package takes one to four seconds to import, so it is imported when the first dataset is asked
for. One definition for the broker, which generates problems, ``headrace check`` and the verifier,
which scores answers.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib
import importlib.util
import typing
import warnings
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import msgspec

from common.errors import ConfigError

GENERATOR_PREFIX = "reasoning-gym:"
"""``prompts.generator = "reasoning-gym:leg_counting"``."""

_PACKAGE = "reasoning_gym"
_OWN_FIELDS = frozenset({"seed", "size"})
_COMPOSITE = "composite"


class Dataset(Protocol):
    """What is used of a ``reasoning_gym.dataset.ProceduralDataset``."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Entry number ``index``: ``question``, ``answer`` and ``metadata``."""
        ...

    def score_answer(self, answer: str | None, entry: dict[str, Any]) -> float:
        """Score of ``answer``, by the package's convention within 0..1."""
        ...


def is_installed() -> bool:
    """Whether the package is there; nothing is imported."""
    return importlib.util.find_spec(_PACKAGE) is not None


def version() -> str:
    """Version of the installed distribution: another one may generate other problems."""
    from importlib import metadata  # slow to import, and a verifier does not need it

    return metadata.version("reasoning-gym")


def find_dataset(name: str) -> str:
    """The registered name of a dataset; ``-`` and ``_`` are the same.

    Raises :class:`ConfigError` with the near match for an unknown name, for ``composite`` and where
    the package is not installed.
    """
    wanted = name.replace("-", "_")
    if wanted == _COMPOSITE:
        raise ConfigError(
            "reasoning-gym dataset 'composite' mixes others and has no problems of its own (give "
            "each dataset a set in [[prompts.sets]])"
        )
    known = dataset_names()
    if wanted not in known:
        raise ConfigError(f"reasoning-gym has no dataset {name!r} ({_nearest(wanted, known)})")
    return wanted


def dataset_names() -> list[str]:
    """Every dataset that can be named, sorted; raises :class:`ConfigError` as above."""
    return sorted(name for name in _registered() if name != _COMPOSITE)


def make_dataset(name: str, options: Mapping[str, object], *, seed: int) -> Dataset:
    """The dataset ``name`` made with ``options``.

    Only its first entry is used: entry 0 is a function of ``seed`` and ``options`` alone, while
    some datasets fix their size or their choices when they are made. Raises :class:`ConfigError`
    for an unknown or refused option.
    """
    dataset_class, config_class = _registered()[find_dataset(name)]
    values = _checked_options(name, config_class, options)
    try:
        config = config_class(seed=seed, size=1, **values)
        if hasattr(config, "validate"):
            config.validate()
        dataset: Dataset = dataset_class(config)
    except (AssertionError, ValueError, TypeError, KeyError) as error:
        given = ", ".join(f"{key} = {value!r}" for key, value in options.items()) or "no options"
        raise ConfigError(
            f"reasoning-gym dataset {name!r} refuses {given}: {error} (change the options)"
        ) from None
    return dataset


def option_names(name: str) -> list[str]:
    """Options of a dataset, in its own order."""
    _, config_class = _registered()[find_dataset(name)]
    return [item.name for item in dataclasses.fields(config_class) if item.name not in _OWN_FIELDS]


def _checked_options(
    name: str, config_class: type[Any], options: Mapping[str, object]
) -> dict[str, Any]:
    known = option_names(name)
    hints = typing.get_type_hints(config_class)
    values: dict[str, Any] = {}
    for key, value in options.items():
        if key in _OWN_FIELDS:
            raise ConfigError(
                f"prompts.options.{key} is not an option of {name} (run.seed seeds every set, "
                "limit is its size)"
            )
        if key not in known:
            raise ConfigError(
                f"prompts.options.{key} is not an option of {name} ({_nearest(key, known)})"
            )
        values[key] = _typed(f"prompts.options.{key}", value, hints[key])
    return values


def _typed(key: str, value: object, kind: Any) -> Any:
    """``value`` as the dataset declares it; left alone where the declaration says nothing."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{key} {value!r}: {str(error)[0].lower()}{str(error)[1:]}") from None
    except TypeError:
        return value


@functools.lru_cache(maxsize=1)
def _registered() -> dict[str, tuple[type[Any], type[Any]]]:
    """Name -> (dataset class, configuration class)."""
    if not is_installed():
        raise ConfigError(
            "reasoning-gym datasets need the package reasoning-gym, which is not installed here "
            "(pip install 'headrace[tasks]')"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the packages that it imports, about their syntax
            importlib.import_module(_PACKAGE)
        factory = importlib.import_module(f"{_PACKAGE}.factory")
    except ImportError as error:
        raise ConfigError(
            f"the package reasoning-gym cannot be imported: {error} "
            "(install it again: pip install --force-reinstall 'headrace[tasks]')"
        ) from None
    return dict(factory.DATASETS)


def _nearest(name: str, known: Iterable[str]) -> str:
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names)}"
