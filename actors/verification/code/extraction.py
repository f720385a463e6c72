"""Where the program of a completion stands. Pure, in linear time.

Only what follows the last ``</think>`` counts; thinking that was never closed holds no answer. Of
that, the last closed fenced block whose fence names the task's language; without one, the content
of the last ``<answer>`` block, out of its fence if it has one; without that, too, the last closed
fenced block that names no language.
"""

from __future__ import annotations

from collections.abc import Iterator

from common.thoughts import THINK_CLOSE, THINK_OPEN

_ALIASES = {
    "python": frozenset({"python", "python3", "py"}),
    "cpp": frozenset({"cpp", "c++", "cc", "cxx"}),
}
_ANSWER_OPEN, _ANSWER_CLOSE = "<answer>", "</answer>"
_MAX_INDENT = 3


def extract_program(completion: str, language: str) -> str | None:
    """The program, or None where there is none."""
    _, closed, conclusion = completion.rpartition(THINK_CLOSE)
    if not closed and THINK_OPEN in completion:
        return None
    blocks = list(_fenced_blocks(conclusion))
    programs = [program for name, program in blocks if name in _ALIASES[language]]
    if not programs and _ANSWER_CLOSE not in conclusion:
        programs = [program for name, program in blocks if not name]
    program = programs[-1] if programs else _from_answer(conclusion)
    return program if program and program.strip() else None


def _from_answer(text: str) -> str | None:
    end = text.rfind(_ANSWER_CLOSE)
    start = text.rfind(_ANSWER_OPEN, 0, max(end, 0))
    if start < 0:
        return None
    content = text[start + len(_ANSWER_OPEN) : end]
    blocks = list(_fenced_blocks(content))
    if not blocks:
        return None if "```" in content else content.strip("\r\n")
    name, program = blocks[-1]
    return None if name else program


def _fenced_blocks(text: str) -> Iterator[tuple[str, str]]:
    """Language and content of each fenced block that is closed (CommonMark 4.5, backticks only)."""
    fence, name, lines = 0, "", list[str]()
    for line in text.splitlines(keepends=True):
        stripped = line.strip()
        ticks = len(stripped) - len(stripped.lstrip("`"))
        indented = len(line) - len(line.lstrip(" ")) > _MAX_INDENT
        if not fence:
            if ticks >= 3 and not indented and "`" not in stripped[ticks:]:
                words = stripped[ticks:].split()
                fence, name, lines = ticks, (words[0].lower() if words else ""), []
        elif ticks >= fence and ticks == len(stripped) and not indented:
            yield name, "".join(lines)
            fence = 0
        else:
            lines.append(line)
