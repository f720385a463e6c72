"""Kind ``function``: a reward that the user wrote, in the child that runs it.

The functions are loaded once, when the child starts, under its limits. What comes of a call:

====================================== =========================================================
the function                           outcome
====================================== =========================================================
returns a finite number, or a pair     ``graded`` with that value; the reason goes into the
(number, reason)                       verdict
returns anything else, NaN included    ``infra-error``: it is broken, which is not a reward of 0
raises, or cannot be loaded            ``infra-error`` with the error and the line
does not return within the wall limit  ``limit-exceeded``, 0
needs more memory than the limit       ``limit-exceeded``, 0
====================================== =========================================================
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import msgspec

from actors.verification.judgement import Judgement, Verifier
from common.errors import InfraError
from common.task_reference import read_reference

Score = Callable[..., object]

TRIAL_KIND = "trial"
"""Kind of check that only asks whether the function works."""

_MAX_REASON_CHARS = 4096
_MAX_VALUE = 1e300

_loaded: dict[str, Score | str] = {}
"""Function by name, or why it could not be loaded."""


class FunctionCall(msgspec.Struct, frozen=True):
    """What a check of this kind brings along."""

    function: str
    prompt: str
    reference: dict[str, Any]


class UserRewardError(Exception):
    """The function raised."""


def prepare(functions: tuple[str, ...]) -> None:
    """Load every function; one that cannot be loaded says so when it is asked."""
    for function in functions:
        try:
            _loaded[function] = _load(function)
        except BaseException as error:  # a module may even try to exit
            _loaded[function] = f"{function} cannot be loaded: {_told(error)}"


def judge_function(completion: str, reference_json: str) -> Judgement:
    """The value that the function gives; raises :class:`InfraError` where it gives none."""
    call = read_reference(reference_json, FunctionCall)
    try:
        return _judge(call, completion)
    except UserRewardError as error:
        raise InfraError(str(error)) from None


def try_function(completion: str, reference_json: str) -> Judgement:
    """As :func:`judge_function`, but raising is allowed: the task of a trial is made up."""
    call = read_reference(reference_json, FunctionCall)
    try:
        return _judge(call, completion)
    except UserRewardError as error:
        return Judgement.wrong_format(str(error)[:_MAX_REASON_CHARS])


VERIFIERS: dict[str, Verifier] = {"function": judge_function, TRIAL_KIND: try_function}


def _judge(call: FunctionCall, completion: str) -> Judgement:
    score = _loaded.get(call.function, f"{call.function} was not named when this process started")
    if isinstance(score, str):
        raise InfraError(score)
    try:
        result = score(completion, prompt=call.prompt, reference=call.reference)
    except MemoryError:
        raise
    except BaseException as error:
        raise UserRewardError(f"{call.function} raised {_told(error)}") from None
    value, reason = _unpacked(result, call.function)
    return Judgement.graded(value, reason)


def _unpacked(result: object, function: str) -> tuple[float, str]:
    """Value and reason of what the function returned."""
    reason: object = ""
    if isinstance(result, tuple) and len(result) == 2:
        result, reason = result
    if not isinstance(reason, str):
        raise InfraError(f"{function} returned a reason that is {type(reason).__name__}, not text")
    if isinstance(result, str | bytes) or not hasattr(type(result), "__float__"):
        raise InfraError(f"{function} returned {type(result).__name__}, not a number")
    try:
        value = float(cast("float", result))
    except MemoryError:
        raise
    except BaseException as error:  # a number of the user's own class may even try to exit
        raise InfraError(f"{function} returned no number: {_told(error)}") from None
    if not math.isfinite(value) or abs(value) > _MAX_VALUE:
        raise InfraError(f"{function} returned {value}, not a finite number")
    return value, reason.encode("utf-8", "replace").decode()[:_MAX_REASON_CHARS]


def _load(function: str) -> Score:
    where, _, name = function.rpartition(":")
    module = (
        _module_of_file(Path(where)) if where.endswith(".py") else importlib.import_module(where)
    )
    score = getattr(module, name)
    if not callable(score):
        raise TypeError(f"{name} is {type(score).__name__}, not a function")
    return cast("Score", score)


def _module_of_file(file: Path) -> ModuleType:
    """Run ``file`` as a module of its own; it may import its neighbours."""
    folder = str(file.parent)
    if folder not in sys.path:
        sys.path.append(folder)
    spec = importlib.util.spec_from_file_location(f"headrace_reward_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _told(error: BaseException) -> str:
    """Type, message and last line of the user's own code."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [
        frame
        for frame in frames
        if frame.filename != __file__ and "importlib" not in frame.filename
    ]
    place = f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""
    try:
        message = str(error)
    except BaseException:  # the error is the user's class, and may try to exit as well
        message = "?"
    return f"{type(error).__name__}: {message[:500]}{place}"
