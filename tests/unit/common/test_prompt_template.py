"""Prompt templates, byte for byte."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from common.errors import ConfigError, FatalError, ModelDirectoryError
from common.prompt_template import render_prompt

_R1_ZERO_SNAPSHOT = (
    b"A conversation between User and Assistant. The user asks a question, and the Assistant solves"
    b" it. The assistant first thinks about the reasoning process in the mind and then provides the"
    b" user with the answer. The reasoning process and answer are enclosed within <think> </think>"
    b" and <answer> </answer> tags, respectively, i.e., <think> reasoning process here </think>"
    b" <answer> answer here </answer>. User: What is {1} + 1?. Assistant:"
)
_CHAT = (
    "{{ bos_token }}{% for message in messages %}<|{{ message.role }}|>{{ message.content }}"
    "{{ eos_token }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def _settings(directory: Path, **settings: object) -> Path:
    (directory / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return directory


def test_plain_is_the_text_itself(tmp_path: Path) -> None:
    assert render_prompt("plain", "7+2=", tmp_path) == "7+2="


def test_r1_zero_is_the_papers_paragraph_byte_for_byte(tmp_path: Path) -> None:
    assert render_prompt("r1-zero", "What is {1} + 1?", tmp_path).encode() == _R1_ZERO_SNAPSHOT


def test_chat_renders_the_models_own_template_up_to_the_answer(tmp_path: Path) -> None:
    _settings(tmp_path, chat_template=_CHAT, bos_token="<s>", eos_token={"content": "</s>"})
    assert render_prompt("chat", "{{ 1 }}", tmp_path) == "<s><|user|>{{ 1 }}</s><|assistant|>"


def test_a_template_file_wins_and_a_list_of_templates_means_the_default_one(
    tmp_path: Path,
) -> None:
    named = [{"name": "tools", "template": "no"}, {"name": "default", "template": "[default]"}]
    listed = _settings(tmp_path, chat_template=named)
    assert render_prompt("chat", "x", listed) == "[default]"
    other = tmp_path / "other"
    other.mkdir()
    _settings(other, chat_template="[settings]")
    (other / "chat_template.jinja").write_text("[file]", encoding="utf-8")
    assert render_prompt("chat", "x", other) == "[file]"


def test_a_model_without_a_chat_template_is_named_with_the_cure(tmp_path: Path) -> None:
    with pytest.raises(ModelDirectoryError, match='use template = "plain"'):
        render_prompt("chat", "x", _settings(tmp_path))


@pytest.mark.parametrize(
    "source",
    [
        "{% if %}",
        "{{ raise_exception('system turn required') }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages[0].no.such }}",
    ],
)
def test_a_template_that_fails_or_leaves_its_sandbox_is_an_error(
    tmp_path: Path, source: str
) -> None:
    with pytest.raises(ModelDirectoryError, match="cannot render a single user turn"):
        render_prompt("chat", "x", _settings(tmp_path, chat_template=source))


def test_a_machine_without_jinja2_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(FatalError, match="pip install jinja2"):
        render_prompt("chat", "x", _settings(tmp_path, chat_template=_CHAT))


def test_an_unknown_template_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="plain, r1-zero, chat, got 'llama'"):
        render_prompt("llama", "x", tmp_path)
