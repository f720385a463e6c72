"""The process that becomes the untrusted program: it loads the source and runs it.

Everything here may be changed by the program, and nothing here is believed: what the program
computed is judged elsewhere, from the bytes that came out.
"""

from __future__ import annotations

import atexit
import importlib.util
import json
import os
import random
import sys
import threading
import traceback
from collections.abc import Callable
from types import ModuleType
from typing import Any

from actors.verification.sandbox import frames

SOURCE = "main.py"
INPUTS_FD, RESULTS_FD = 3, 4
_STREAMS = (
    ("stdin", "r", "surrogateescape"),
    ("stdout", "w", "surrogateescape"),
    ("stderr", "w", "backslashreplace"),
)


def run_script(argv: tuple[str, ...]) -> None:
    """Run :data:`SOURCE` as ``__main__``; does not return."""
    sys.argv = [SOURCE, *argv]
    _exit_after(lambda: _load("__main__"))


def run_function(name: str, max_bytes: int) -> None:
    """Load :data:`SOURCE`, then answer each input frame with a frame; does not return."""
    sys.argv = [SOURCE]
    _exit_after(lambda: _serve_calls(name, max_bytes))


def run_command(argv: tuple[str, ...]) -> None:
    """Become the program ``argv``; does not return."""
    try:
        os.execve(argv[0], argv, dict(os.environ))  # noqa: S606 # no shell is what is wanted
    except OSError as error:
        os.write(2, f"{argv[0]}: {error.strerror}\n".encode())
        os._exit(127)


def _serve_calls(name: str, max_bytes: int) -> None:
    try:
        function = getattr(_load("solution"), name)
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


def _report_failure(error: BaseException) -> None:
    reason = f"{type(error).__name__}: {error}"[:400].encode("utf-8", "replace")
    frames.write_frame(RESULTS_FD, frames.FAILED + reason)


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, SOURCE)
    if spec is None or spec.loader is None:
        raise ImportError(SOURCE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _exit_after(work: Callable[[], object]) -> None:
    """Do what the interpreter does around a program, up to its exit code."""
    _prepare_interpreter()
    code = 0
    try:
        work()
    except SystemExit as stop:
        code = _exit_code(stop.code)
    except BaseException:
        traceback.print_exc()
        code = 1
    try:
        shutdown: Callable[[], None] = getattr(threading, "_shutdown", _nothing)
        shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        code = code or 120
    os._exit(code)


def _nothing() -> None:
    return None


def _exit_code(value: Any) -> int:
    if value is None:
        return 0
    if isinstance(value, int):
        return value & 0xFF
    print(value, file=sys.stderr)
    return 1


def _prepare_interpreter() -> None:
    for number, (name, mode, errors) in enumerate(_STREAMS):
        stream = os.fdopen(number, mode, encoding="utf-8", errors=errors, closefd=False)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    sys.dont_write_bytecode = True
    random.seed()
