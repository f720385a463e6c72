"""How the text of a prompt becomes the text that a model continues (``prompts.template``)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from common.errors import ConfigError, FatalError, ModelDirectoryError
from common.text_tokenizer import read_json_object, special_token_text

R1_ZERO_PARAGRAPH = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant solves "
    "it. The assistant first thinks about the reasoning process in the mind and then provides the "
    "user with the answer. The reasoning process and answer are enclosed within <think> </think> "
    "and <answer> </answer> tags, respectively, i.e., <think> reasoning process here </think> "
    "<answer> answer here </answer>. User: "
)
"""DeepSeek-R1 (arXiv 2501.12948), Table 1, up to the question."""
R1_ZERO_ENDING = ". Assistant:"

TEMPLATES = ("plain", "r1-zero", "chat")


def render_prompt(template: str, text: str, model_dir: Path | str) -> str:
    """Model input for the task ``text``.

    ``plain`` is the text itself, ``r1-zero`` puts it into R1-Zero's one paragraph, ``chat`` into
    the chat template of ``model_dir`` as one user turn followed by the generation prompt. Raises
    :class:`ConfigError` for another name and :class:`ModelDirectoryError` when the model has no
    usable chat template.
    """
    if template == "plain":
        return text
    if template == "r1-zero":
        return f"{R1_ZERO_PARAGRAPH}{text}{R1_ZERO_ENDING}"
    if template == "chat":
        return _chat_renderer(str(model_dir))([_turn("user", text)], True)
    raise ConfigError(
        f"prompts.template must be one of {', '.join(TEMPLATES)}, got {template!r} (use plain)"
    )


def render_exchange(prompt: str, answer: str, model_dir: Path | str) -> str:
    """One user turn and one finished assistant turn in the chat template of ``model_dir``.

    Raises :class:`ModelDirectoryError` when the model has no usable chat template.
    """
    turns = [_turn("user", prompt), _turn("assistant", answer)]
    return _chat_renderer(str(model_dir))(turns, False)


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


@functools.lru_cache(maxsize=8)
def _chat_renderer(model_dir: str) -> Callable[[list[dict[str, str]], bool], str]:
    """Compile the chat template of ``model_dir`` once."""
    try:
        import jinja2
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ModuleNotFoundError:
        raise FatalError(
            'prompts.template = "chat" needs the package jinja2, which is not installed '
            '(pip install jinja2, or use template = "plain")'
        ) from None

    directory = Path(model_dir)
    settings = read_json_object(directory / "tokenizer_config.json")
    source = _chat_source(directory, settings)
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = _raise_template_error
    special = {key: special_token_text(settings, key) or "" for key in ("bos_token", "eos_token")}

    def render(turns: list[dict[str, str]], add_generation_prompt: bool) -> str:
        try:
            return environment.from_string(source).render(
                messages=turns, add_generation_prompt=add_generation_prompt, **special
            )
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            what = "a single user turn" if len(turns) == 1 else "a question with its answer"
            raise ModelDirectoryError(
                f"the chat template of {directory} cannot render {what}: {error} "
                '(use the template "plain")'
            ) from None

    return render


def _chat_source(directory: Path, settings: dict[str, Any]) -> str:
    """The template's text: ``chat_template.jinja`` wins over ``tokenizer_config.json``."""
    file = directory / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = settings.get("chat_template")
    if isinstance(template, list):
        named = {entry["name"]: entry["template"] for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    if isinstance(template, str):
        return template
    raise ModelDirectoryError(
        f'prompts.template = "chat" needs a chat template, {directory} has none '
        '(use template = "plain" or "r1-zero", or add chat_template.jinja)'
    )


def _raise_template_error(message: str) -> NoReturn:
    from jinja2 import TemplateError

    raise TemplateError(message)
