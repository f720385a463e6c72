"""Special judges: for tasks with more than one right output.

A judge runs in a box of its own, in a folder with ``input.txt``, ``output.txt`` and
``expected.txt``; the three names are its arguments. It accepts by exit code 0 **and** ``accept`` as
its first word on standard output. ``reject`` is wrong; everything else, a crash on what the program
wrote included, is wrong as well and says so: a program gains nothing by breaking its judge.
"""

from __future__ import annotations

from actors.verification.code.outcomes import CaseOutcome, Outcome
from actors.verification.code.programs import Program, build, is_syntax_error
from actors.verification.sandbox.limits import BoxResult
from actors.verification.sandbox.sandbox import Sandbox
from common.errors import DataError
from common.references.code import CodeChecker

_FILES = ("input.txt", "output.txt", "expected.txt")


class Checker:
    """One special judge, ready to run."""

    def __init__(self, sandbox: Sandbox, program: Program) -> None:
        self._sandbox = sandbox
        self._program = program

    @classmethod
    async def make(cls, sandbox: Sandbox, checker: CodeChecker) -> Checker:
        """Compile it; raises :class:`DataError` where that fails: the task is at fault."""
        program = await build(sandbox, checker.source, checker.language)
        if isinstance(program, BoxResult):
            raise DataError("malformed task: the checker does not compile")
        return cls(sandbox, program)

    async def ask(self, given: str, output: bytes, expected: str) -> CaseOutcome:
        """Right or wrong; raises :class:`DataError` where the judge itself is no program."""
        texts = (given.encode("utf-8", "replace"), output, expected.encode("utf-8", "replace"))
        files = dict(zip(_FILES, texts, strict=True))
        result = await self._sandbox.run(self._program.job(argv=_FILES, files=files))
        if result.exit_code and self._is_no_program(result.stderr.decode("utf-8", "replace")):
            raise DataError("malformed task: the checker has a syntax error")
        first = result.stdout.split(maxsplit=1)[:1]
        if result.exit_code == 0 and first == [b"accept"]:
            return CaseOutcome(Outcome.RIGHT)
        if result.exit_code == 0 and first == [b"reject"]:
            return CaseOutcome(Outcome.WRONG, "rejected by the checker")
        return CaseOutcome(Outcome.WRONG, "the checker failed on this output")

    def _is_no_program(self, complaint: str) -> bool:
        """A judge that reads the output as Python complains of a syntax error too: the program's.

        A task that is malformed is dropped with its whole group, which a wrong answer must not buy.
        """
        if self._program.language != "python" or not is_syntax_error(complaint):
            return False
        try:
            compile(self._program.content, "checker", "exec", dont_inherit=True)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return True
        return False
