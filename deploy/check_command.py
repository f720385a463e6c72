"""``headrace check CONFIG``: everything that can be known to be wrong before a process starts."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from common.config import Config
from common.config_loader import load_config, to_toml
from common.errors import ConfigError, FatalError, ModelDirectoryError, PromptFileError
from common.prompt_file import PromptFile
from common.protection import protection
from common.reasoning_gym_catalog import GENERATOR_PREFIX, make_dataset
from common.security import key_problems
from common.trackers import tracker_problems
from common.user_rewards import function_problems

_MAX_SAFETENSORS_HEADER_BYTES = 100_000_000


@click.command("check")
@click.argument("config_path", metavar="CONFIG", type=click.Path(path_type=Path))
def check(config_path: Path) -> None:
    """Validate CONFIG, print it with all defaults filled in and the numbers that follow from it.

    The derived numbers are TOML comments: the output is itself a run file.
    """
    from deploy.derived_numbers import derived_numbers
    from deploy.prompt_numbers import prompt_numbers

    config = load_config(config_path)
    file_sizes, prompt_problems = read_prompt_files(config)
    problems = [*model_problems(config), *prompt_problems, *_other_problems(config)]
    num_parameters = None if problems else read_num_parameters(Path(config.model.path))
    click.echo(to_toml(config))
    click.echo("# What is protected:")
    for line in protection(config):
        click.echo(f"#   {line}")
    click.echo("# What follows from it:")
    numbers = derived_numbers(config, num_parameters)
    for number in [*prompt_numbers(config, file_sizes), *numbers]:
        click.echo(f"#   {number.name}: {number.value} ({number.why})")
    for problem in problems:
        click.echo(f"headrace: {config_path}: {problem}", err=True)
    sys.exit(1 if problems else 0)


def check_inputs(config: Config) -> None:
    """Raise a :class:`FatalError` when the model or the prompts of ``config`` are not there."""
    for problem in input_problems(config):
        raise problem


def input_problems(config: Config) -> list[FatalError]:
    """What is missing on disk, one error each."""
    _, prompt_problems = read_prompt_files(config)
    return [*model_problems(config), *prompt_problems, *_other_problems(config)]


def _other_problems(config: Config) -> list[FatalError]:
    keys = _key_problems(config)
    functions = function_problems(config.verifier.rewards)
    return [*keys, *functions, *_dataset_problems(config), *tracker_problems(config)]


def _dataset_problems(config: Config) -> Iterator[FatalError]:
    """Prompt sets that name no dataset of reasoning-gym, or an option that it does not have."""
    for item in config.prompts.all_sets:
        dataset = item.generator.removeprefix(GENERATOR_PREFIX)
        if dataset != item.generator:
            try:
                make_dataset(dataset, item.options, seed=config.run.seed)
            except ConfigError as error:
                yield error


def _key_problems(config: Config) -> list[FatalError]:
    return key_problems(Path(config.security.keys)) if config.security.keys else []


def read_prompt_files(config: Config) -> tuple[dict[str, int], list[FatalError]]:
    """Prompts in the file of each set, by name of the set, and what is wrong with other files."""
    sizes: dict[str, int] = {}
    problems: list[FatalError] = []
    for item in config.prompts.all_sets:
        if item.file:
            try:
                sizes[item.name] = len(PromptFile(Path(item.file)))
            except PromptFileError as error:
                problems.append(error)
    return sizes, problems


def model_problems(config: Config) -> list[FatalError]:
    """What is missing of the model, one error each."""
    problems: list[FatalError] = []
    model = Path(config.model.path)
    missing = [name for name in ("config.json", "tokenizer.json") if not (model / name).is_file()]
    if not model.is_dir():
        problems.append(
            ModelDirectoryError(
                f"model.path: no such directory: {model} "
                "(give a Hugging Face model directory; headrace tiny-model makes a small one)"
            )
        )
    elif missing or not any(model.glob("*.safetensors")):
        lacks = ", ".join(missing or ["*.safetensors"])
        problems.append(
            ModelDirectoryError(
                f"model.path: {model} lacks {lacks} (save the model with save_pretrained, "
                "the tokenizer as a fast one)"
            )
        )
    else:
        problems.extend(_broken_model_files(model))
    return problems


def _broken_model_files(model: Path) -> Iterator[ModelDirectoryError]:
    """Files of a complete directory that cannot be what their names say."""
    for name in ("config.json", "tokenizer.json"):
        try:
            json.loads((model / name).read_bytes())
        except (OSError, ValueError) as error:
            yield ModelDirectoryError(
                f"model.path: {model / name} is not valid JSON: {error} (copy the model again)"
            )
    for file in sorted(model.glob("*.safetensors")):
        try:
            _safetensors_header(file)
        except (OSError, ValueError) as error:
            yield ModelDirectoryError(
                f"model.path: {file} is not complete safetensors: {error} (copy the model again)"
            )


def read_num_parameters(model: Path) -> int | None:
    """Parameters of the model at ``model`` by its safetensors; None if unreadable."""
    from deploy.derived_numbers import count_parameters

    try:
        return sum(count_parameters(_safetensors_header(f)) for f in model.glob("*.safetensors"))
    except (OSError, ValueError):
        return None


def _safetensors_header(file: Path) -> dict[str, object]:
    """The JSON header of a safetensors file, after its length in 8 bytes.

    Raises ``ValueError`` unless the tensors it names fill the rest of the file exactly.
    """
    with open(file, "rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > min(_MAX_SAFETENSORS_HEADER_BYTES, file.stat().st_size):
            raise ValueError(f"a header of {length} bytes")
        header = json.loads(stream.read(length))
    if not isinstance(header, dict):
        raise ValueError("the header is no object")
    ends = [spec["data_offsets"][1] for name, spec in header.items() if name != "__metadata__"]
    expected = 8 + length + max(ends, default=0)
    if file.stat().st_size != expected:
        raise ValueError(f"{file.stat().st_size} bytes instead of {expected}")
    return header
