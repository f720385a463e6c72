"""Language consistency: which words count, in which language, and what is left out."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.verification.language import (
    chain_of_thought,
    count_words,
    judge_language,
    prose,
)
from common.errors import DataError
from common.language_tags import LanguageTag, parse_language_tag


def _share(thought: str, target: str, rivals: str = "") -> float | None:
    reference = json.dumps({"target": target, "rivals": rivals})
    return judge_language(f"<think>{thought}</think><answer>1</answer>", reference).value


@pytest.mark.parametrize(
    ("thought", "target", "share"),
    [
        ("First we add the two numbers, then we check.", "en", 1.0),
        ("先把两个数相加,然后检查。", "zh", 1.0),
        ("먼저 두 수를 더하고 확인한다.", "ko", 1.0),
        ("まず二つの数を足して、確認する。", "ja", 1.0),
        ("Сначала сложим числа", "ru", 1.0),
        ("先把两个数相加", "en", 0.0),
        ("먼저 두 수를 더한다", "en", 0.0),
        ("First we add", "zh", 0.0),
        ("まず数を足す", "zh", 0.0),  # Han, in a sentence with kana
        ("先把两个数相加", "ja", 0.0),  # Han, in a sentence without
        ("one two three 四", "en", 0.75),
        ("一 二 三 four", "zh", 0.75),
        ("하나 둘 셋 four", "ko", 0.75),
        ("まず 数を three", "ja", 0.75),  # kana, one ideograph, kana, one other word
        ("", "en", 0.0),
        ("1 + 2 = 3.", "en", 0.0),  # no words
        ("设 x 为 y", "zh", 1.0),  # one letter is a symbol
        ("First we add", "pt-BR", 1.0),  # one script: not told apart without rivals
        ("don't well-known naïve", "en", 1.0),
    ],
)
def test_the_share_of_words_in_the_target_language(thought: str, target: str, share: float) -> None:
    assert _share(thought, target) == pytest.approx(share)


@pytest.mark.parametrize(
    ("text", "target", "counts"),
    [
        ("汉字", "zh", (2, 2)),  # an ideograph is a word
        ("ラーメンとカレー", "ja", (1, 1)),  # a run of kana is a word
        ("함수는 GPU를", "ko", (2, 3)),  # scripts part words
        ("don't well-known", "en", (2, 2)),
        ("\u0639\u0631\u0628\u064a", "ar", (1, 1)),
        ("1, 2, 3!", "en", (0, 0)),
        ("e\u0301t\u0435", "fr", (1, 2)),  # a Cyrillic letter in disguise
    ],
)
def test_what_is_a_word(text: str, target: str, counts: tuple[int, int]) -> None:
    assert count_words(text, parse_language_tag(target)) == counts


@pytest.mark.parametrize(
    "thought",
    [
        "我们用代码。\n```python\nfor item in items: print(item)\n```\n完成。",
        "设 $velocity + mass$ 为常数",
        "公式 \\(energy = mass\\) 成立",
        "公式 \\[energy = mass\\] 成立",
        "公式 $$\nenergy = mass\n$$ 成立",
        "\\begin{align} mass &= energy \\end{align} 成立",
        "用 \\frac 和 \\sqrt 计算",
        "调用 `compute_sum` 函数",
        "见 https://example.org/some/page 说明",
    ],
)
def test_code_latex_and_addresses_are_left_out(thought: str) -> None:
    assert _share(thought, "zh") == 1.0


@pytest.mark.parametrize(
    ("mark", "num_words"),
    [("```\n", 7), ("\\(", 7), ("$$", 7), ("$", 7), ("`", 7), ("\\begin{align}", 8)],
)
def test_a_mark_that_never_ends_hides_nothing(mark: str, num_words: int) -> None:
    _, counted = count_words(f"Now we compute {mark} 我们 先 算", parse_language_tag("en"))
    assert counted == num_words


def test_a_complete_block_after_a_mark_that_never_ends_is_left_out() -> None:
    text = "Now \\( we write ```\nfor item in items\n``` and stop"
    assert count_words(text, parse_language_tag("en")) == (5, 5)


def test_money_is_no_formula() -> None:
    assert prose("It costs $5 and then $6 more") == "It costs $5 and then $6 more"


@pytest.mark.parametrize(
    ("completion", "thought"),
    [
        ("<think>one</think><answer>two</answer>", "one"),
        ("<think>one", "one"),
        ("one</think><answer>two</answer>", "one"),  # the prompt ended in <think>
        ("|special_token|one|special_token|two", "one"),
        ("one two", "one two"),
        ("zero<think>one</think>two", "zero one"),
        ("<think>one</think>two<think>three", "one two three"),
        ("one <answer>two</answer>", "one"),
        ("<answer>two</answer>", ""),
    ],
)
def test_the_chain_of_thought_is_what_stands_between_the_marks(
    completion: str, thought: str
) -> None:
    assert chain_of_thought(completion) == thought


def test_the_answer_does_not_count() -> None:
    completion = "<think>我们计算</think><answer>The answer is one</answer>"
    assert judge_language(completion, '{"target":"zh"}').value == 1.0


def test_rivals_tell_languages_of_one_script_apart() -> None:
    french = "Nous devons d'abord calculer la somme des deux nombres."
    english = "Then we check the result against the question once more."
    assert _share(french, "en", "fr de") == 0.0
    assert _share(french, "fr", "en de") == 1.0
    assert _share(f"{english} {french}", "en", "fr de") == pytest.approx(10 / 19)
    assert _share("Oui, bon.", "en", "fr de") == 1.0  # too short to tell


@given(st.text(max_size=60), st.sampled_from(["en", "zh", "ja", "ko", "ru", "hi"]))
def test_target_words_are_some_of_the_words(text: str, target: str) -> None:
    num_target, num_words = count_words(text, parse_language_tag(target))
    assert 0 <= num_target <= num_words <= len(text)


@pytest.mark.parametrize(
    "text",
    [
        "\\(" * 100_000,
        "```a" * 60_000,
        "$a" * 100_000,
        "a'" * 100_000,
        "a." * 100_000,
        "\\" * 200_000,
    ],
)
def test_hostile_text_is_counted_in_linear_time(text: str) -> None:
    english = parse_language_tag("en")
    started = time.process_time()
    count_words(text, english)
    assert time.process_time() - started < 3.0  # a quadratic search would take minutes


@pytest.mark.parametrize(
    ("tag", "parsed"),
    [
        ("en", ("en", ("Latin",))),
        ("zh-Hant-TW", ("zh", ("Han",))),
        ("sr-Latn", ("sr", ("Latin",))),
        ("SR", ("sr", ("Cyrillic",))),
        ("ja", ("ja", ("Han", "Hiragana", "Katakana"))),
    ],
)
def test_a_tag_says_language_and_script(tag: str, parsed: tuple[str, tuple[str, ...]]) -> None:
    assert parse_language_tag(tag) == LanguageTag(*parsed)


@pytest.mark.parametrize(
    "reference", ['{"target":"english"}', '{"target":"tlh"}', "{}", '{"target":""}']
)
def test_a_target_that_is_no_known_tag_is_a_malformed_task(reference: str) -> None:
    with pytest.raises(DataError, match="malformed task"):
        judge_language("<think>one</think>", reference)
