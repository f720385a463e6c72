"""A source text -> something that a box can run. A compiler runs in a box as well."""

from __future__ import annotations

from dataclasses import dataclass

from actors.verification.sandbox.limits import BoxJob, BoxResult, Mode
from actors.verification.sandbox.sandbox import Sandbox
from common.errors import InfraError

MAX_SOURCE_BYTES = 256 << 10
_COMPILER = "/usr/bin/g++"
_COMPILE = (_COMPILER, "-std=c++20", "-O2", "-pipe", "-o", "program", "main.cpp")
_SYNTAX_ERRORS = ("SyntaxError", "IndentationError", "TabError")


@dataclass(frozen=True, slots=True)
class Program:
    """A program that can be started again and again, each time in a pristine box."""

    language: str
    content: bytes

    def job(
        self, stdin: bytes = b"", argv: tuple[str, ...] = (), files: dict[str, bytes] | None = None
    ) -> BoxJob:
        """One run from standard input to standard output."""
        files = files or {}
        if self.language == "python":
            return BoxJob(Mode.SCRIPT, {**files, "main.py": self.content}, argv, stdin=stdin)
        command = ("./program", *argv)
        return BoxJob(Mode.COMMAND, {**files, "program": self.content}, command, stdin=stdin)

    def calls(self, function: str, inputs: tuple[bytes, ...]) -> BoxJob:
        """One call of ``function`` for each input frame."""
        files = {"main.py": self.content}
        return BoxJob(Mode.FUNCTION, files, function=function, inputs=inputs)


async def build(sandbox: Sandbox, source: str, language: str) -> Program | BoxResult:
    """The program, or what the compiler said. Python is only read when it is run.

    Raises :class:`InfraError` when there is no compiler.
    """
    content = source.encode("utf-8", "replace")
    if language == "python":
        return Program(language, content)
    job = BoxJob(Mode.COMMAND, {"main.cpp": content}, _COMPILE, artifact="program")
    result = await sandbox.run(job)
    if result.exit_code == 127 and result.stderr.startswith(_COMPILER.encode()):
        raise InfraError(f"tasks in C++ need {_COMPILER}, which this machine does not have")
    if result.exit_code == 0 and result.artifact is not None:
        return Program(language, result.artifact)
    return result


def is_syntax_error(text: str) -> bool:
    """True where the last line of a traceback, or the reason of a failed load, is about syntax."""
    last = text.strip().splitlines()[-1:]
    return bool(last) and last[0].startswith(_SYNTAX_ERRORS)
