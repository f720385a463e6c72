"""A prompt that ends in an opened thought, told from its token ids or from its template."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from common.arrays import RolloutArrays
from common.completions import Completion, decode_completion, template_opens_thought
from common.errors import ModelDirectoryError
from common.prompt_template import R1_ZERO_ENDING, R1_ZERO_PARAGRAPH
from common.text_tokenizer import TextTokenizer
from common.thoughts import InsideThought

_LETTERS = "".join(sorted(set(f"{R1_ZERO_PARAGRAPH}{R1_ZERO_ENDING}\n0123456789+=|?")))


def _tokenizer(*, marks: bool) -> TextTokenizer:
    """A letter is a token, or with ``marks`` a tag of the reasoning is one."""
    symbols = ["<eos>", *_LETTERS, *(("<think>", "</think>") if marks else ())]
    tokenizer = Tokenizer(models.WordLevel({symbol: i for i, symbol in enumerate(symbols)}))
    pieces = Regex(r"</?think>|[\s\S]" if marks else r"[\s\S]")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(pieces, behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return TextTokenizer(tokenizer, (0,), ())


def _decoded(prompt: str, setting: InsideThought = "auto", *, marks: bool = True) -> Completion:
    tokenizer = _tokenizer(marks=marks)
    ids = [np.array(tokenizer.encode(text), np.int32) for text in (prompt, "2</think>3")]
    arrays = RolloutArrays(ids[0], ids[1], np.zeros(len(ids[1]), np.float32))
    return decode_completion(tokenizer, arrays, setting)


@pytest.mark.parametrize("marks", [True, False])
@pytest.mark.parametrize(
    ("prompt", "inside"),
    [
        ("1+1=<think>", True),
        ("1+1=<think>\n", True),
        ("1+1=<think> \n\n", True),
        ("1+1=", False),
        ("", False),
        ("1+1=<think>\n\n</think>\n\n", False),
        ("<think>1+1=", False),
        (f"{R1_ZERO_PARAGRAPH}1+1={R1_ZERO_ENDING}", False),
        (f"{R1_ZERO_PARAGRAPH}1+1={R1_ZERO_ENDING} <think>", True),
    ],
)
def test_a_completion_begins_inside_the_thought_that_its_prompt_ends_in(
    prompt: str, inside: bool, marks: bool
) -> None:
    completion = _decoded(prompt, marks=marks)
    assert (completion.text, completion.inside_thought) == ("2</think>3", inside)
    assert completion.response == ("<think>2</think>3" if inside else "2</think>3")


def test_the_run_may_say_it_for_every_prompt() -> None:
    assert _decoded("1+1=", "always").inside_thought
    assert not _decoded("1+1=<think>", "never").inside_thought


@pytest.mark.parametrize(
    ("ending", "opens"),
    [("<|assistant|><think>\\n", True), ("<|assistant|>", False), ("<think></think>", False)],
)
def test_a_chat_template_is_asked_what_it_puts_behind_a_question(
    ending: str, opens: bool, tmp_path: Path
) -> None:
    template = "{{ messages[0].content }}{% if add_generation_prompt %}" + ending + "{% endif %}"
    template = template.replace("\\n", "\n")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    assert template_opens_thought("auto", "chat", tmp_path) is opens
    assert template_opens_thought("always", "chat", tmp_path)
    assert not template_opens_thought("never", "chat", tmp_path)


def test_templates_of_ours_open_nothing_and_a_model_without_one_is_named(tmp_path: Path) -> None:
    assert not template_opens_thought("auto", "plain", tmp_path)
    assert not template_opens_thought("auto", "r1-zero", tmp_path)
    with pytest.raises(ModelDirectoryError, match="needs a chat template"):
        template_opens_thought("auto", "chat", tmp_path)
