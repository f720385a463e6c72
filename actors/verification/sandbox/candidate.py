"""The process that becomes the untrusted program: it loads the source and runs it.

Everything here may be changed by the program, and nothing here is believed: what the program
computed is judged elsewhere, from the bytes that came out.
"""

from __future__ import annotations

import atexit
import builtins
import importlib
import json
import os
import random
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from importlib.machinery import SourceFileLoader
from types import CodeType, MappingProxyType, ModuleType
from typing import Any, NoReturn

from actors.verification.sandbox import frames

SOURCE = "main.py"
USUAL_MODULES = (
    *("bisect", "collections", "copy", "functools", "heapq", "itertools", "math", "operator"),
    *("random", "re", "string", "typing"),
)
INPUTS_FD, RESULTS_FD = 3, 4
_STREAMS = (
    ("stdin", "r", "surrogateescape"),
    ("stdout", "w", "surrogateescape"),
    ("stderr", "w", "backslashreplace"),
)
_end_threads: Callable[[], object] = getattr(threading, "_shutdown", lambda: None)


def open_streams() -> None:
    """Make the standard streams of programs; once, in the launcher, which does not use them.

    The descriptors that a program finds behind them are of the same kinds.
    """
    for number, (name, mode, errors) in enumerate(_STREAMS):
        stream = os.fdopen(number, mode, encoding="utf-8", errors=errors, closefd=False)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    sys.dont_write_bytecode = True


def get_ready(argv: tuple[str, ...]) -> None:
    """What is to be different in each execution; before the fork, where it costs less."""
    sys.argv = [SOURCE, *argv]
    random.seed()


def run_script(source: bytes) -> NoReturn:
    """Run the text of :data:`SOURCE` as ``__main__``."""
    _exit_after(lambda: _load("__main__", source))


def run_function(source: bytes, name: str, max_bytes: int) -> NoReturn:
    """Load the text of :data:`SOURCE`, then answer each input frame with a frame."""
    _exit_after(lambda: _serve_calls(source, name, max_bytes))


def run_command(argv: tuple[str, ...]) -> NoReturn:
    """Become the program ``argv``."""
    try:
        os.execve(argv[0], argv, dict(os.environ))  # noqa: S606 # no shell is what is wanted
    except OSError as error:
        os.write(2, f"{argv[0]}: {error.strerror}\n".encode())
        os._exit(127)


def _serve_calls(source: bytes, name: str, max_bytes: int) -> None:
    try:
        names = _usual_names() if b"class Solution" in source else {}
        function = _entry(_load("solution", source, names), name)
    except (Exception, SystemExit) as error:
        _report_failure(error)
        return
    frames.write_frame(RESULTS_FD, frames.READY)
    while (frame := frames.read_frame(INPUTS_FD)) is not None:
        try:
            answer = frames.encode_return(function(*json.loads(frame)), max_bytes)
        except Exception as error:
            answer = frames.encode_raised(error)
        frames.write_frame(RESULTS_FD, answer)


def _entry(module: ModuleType, name: str) -> Callable[..., Any]:
    """The function ``name``; else that method of a new ``Solution()`` for each call (LeetCode)."""
    solution: Any = getattr(module, "Solution", None)
    if hasattr(module, name) or not hasattr(solution, name):
        return getattr(module, name)  # type: ignore[no-any-return]
    return lambda *args: getattr(solution(), name)(*args)


def _usual_names() -> dict[str, Any]:
    """What LeetCode imports before a ``class Solution``, whose signatures need it."""
    names: dict[str, Any] = {}
    for module in map(importlib.import_module, USUAL_MODULES):
        names[module.__name__] = module
        public = getattr(module, "__all__", None) or [key for key in vars(module) if key[0] != "_"]
        names.update((key, getattr(module, key)) for key in public if not hasattr(builtins, key))
    return names


def _report_failure(error: BaseException) -> None:
    reason = f"{type(error).__name__}: {error}"[:400].encode("utf-8", "replace")
    frames.write_frame(RESULTS_FD, frames.FAILED + reason)


class _Loader(SourceFileLoader):
    """Compiles what it is given as the text of :data:`SOURCE`."""

    source = b""

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.source, SOURCE)


def _load(name: str, source: bytes, names: Mapping[str, Any] = MappingProxyType({})) -> ModuleType:
    loader, module = _Loader(name, SOURCE), ModuleType(name)
    loader.source = source
    module.__dict__.update(names)
    module.__file__, module.__loader__ = SOURCE, loader
    sys.modules[name] = module
    loader.exec_module(module)
    return module


def _exit_after(work: Callable[[], object]) -> NoReturn:
    """Do what the interpreter does around a program, up to its exit code."""
    code = 0
    try:
        work()
    except SystemExit as stop:
        code = _exit_code(stop.code)
    except BaseException:
        traceback.print_exc()
        code = 1
    try:
        _end_threads()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        code = code or 120
    os._exit(code)


def _exit_code(value: Any) -> int:
    if value is None:
        return 0
    if isinstance(value, int):
        return value & 0xFF
    print(value, file=sys.stderr)
    return 1
