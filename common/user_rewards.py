"""Rewards that users write: how a function is named, found and checked without running it.

``verifier.rewards = [{name = "mine", module = "rewards/mine.py:score"}]`` names a function in a
file, relative to the run file, or in an importable module (``package.module:score``). It is only
ever run in a verifier's killable child; here its source is parsed.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from common.config import RewardWeight
from common.errors import ConfigError

FUNCTION_KIND = "function"
"""Kind of check that runs a function of the user."""
FUNCTION_OPTION = "reward_function"
"""Option of the term, and key in the check's fields, that names the function."""
SIGNATURE = "def score(completion: str, *, prompt: str, reference: dict) -> float"

_GIVEN = ("completion", "prompt", "reference")


def with_function(term: RewardWeight, folder: Path) -> RewardWeight:
    """``term`` as one of kind ``function``, its file taken from ``folder``, if it names one.

    Raises :class:`ConfigError` for a name that is not of the form ``file.py:function``, and for a
    term that names a kind as well.
    """
    if not term.module:
        return term
    if term.kind not in ("", FUNCTION_KIND):
        raise ConfigError(
            f"verifier.rewards: {term.name}: module takes the place of kind, got both "
            f"{term.module!r} and {term.kind!r} (remove one)"
        )
    where, function = split_function(term.module)
    if _is_file(where):
        where = str((folder / Path(where).expanduser()).absolute())
    module = f"{where}:{function}"
    options = {**term.options, FUNCTION_OPTION: module}
    return dataclasses.replace(term, module=module, kind=FUNCTION_KIND, options=options)


def split_function(module: str) -> tuple[str, str]:
    """(file or module, function) of ``rewards/mine.py:score``; raises :class:`ConfigError`."""
    where, _, function = module.rpartition(":")
    if not where or not function.isidentifier():
        raise ConfigError(
            f"verifier.rewards: module must be file.py:function or package.module:function, got "
            f"{module!r} (for example rewards/mine.py:score)"
        )
    return where, function


def function_problems(terms: Sequence[RewardWeight]) -> list[ConfigError]:
    """What is wrong with the functions that ``terms`` name, one error each. Nothing is run."""
    problems = []
    for term in terms:
        if term.module:
            try:
                _check_function(term.module)
            except ConfigError as error:
                problems.append(ConfigError(f"verifier.rewards: {term.name}: {error}"))
    return problems


def _check_function(module: str) -> None:
    where, name = split_function(module)
    file = Path(where) if _is_file(where) else _source_of(where)
    try:
        tree = ast.parse(file.read_bytes(), str(file))
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror} (check module)") from None
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None) or 1
        raise ConfigError(f"{file}:{line}: not valid Python: {error} (correct it)") from None
    functions = {
        node.name: node
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    if name not in functions:
        close = difflib.get_close_matches(name, functions, n=1)
        cure = f"did you mean {close[0]}?" if close else f"write {SIGNATURE}"
        raise ConfigError(f"{file}: has no function {name!r} at its top level ({cure})")
    _check_parameters(functions[name], file)


def _check_parameters(function: ast.FunctionDef | ast.AsyncFunctionDef, file: Path) -> None:
    """Raise unless ``function(completion, prompt=..., reference=...)`` is a valid call."""
    where = f"{file}:{function.lineno}: {function.name}"
    if isinstance(function, ast.AsyncFunctionDef):
        raise ConfigError(f"{where} must not be async (write {SIGNATURE})")
    arguments = function.args
    positional = [item.arg for item in (*arguments.posonlyargs, *arguments.args)]
    if not positional and arguments.vararg is None:
        raise ConfigError(f"{where} must take the completion first (write {SIGNATURE})")
    after_first = arguments.args if arguments.posonlyargs else arguments.args[1:]
    by_name = {item.arg for item in (*after_first, *arguments.kwonlyargs)}
    missing = [name for name in _GIVEN[1:] if name not in by_name]
    if missing and arguments.kwarg is None:
        raise ConfigError(f"{where} must take {' and '.join(missing)} by name (write {SIGNATURE})")
    required = positional[1 : len(positional) - len(arguments.defaults)]
    required += [
        item.arg
        for item, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
        if default is None
    ]
    unknown = [name for name in required if name not in _GIVEN]
    if unknown:
        raise ConfigError(
            f"{where} asks for {unknown[0]!r}, which is not given (write {SIGNATURE})"
        )


def _is_file(where: str) -> bool:
    return where.endswith(".py")


def _source_of(module: str) -> Path:
    """The source of an importable module, found without importing its packages."""
    spec: ModuleSpec | None = None
    parts = module.split(".")
    for depth in range(1, len(parts) + 1):
        path = None if spec is None else spec.submodule_search_locations
        found = PathFinder.find_spec(".".join(parts[:depth]), path) if depth == 1 or path else None
        if found is None:
            raise ConfigError(
                f"there is no module {'.'.join(parts[:depth])!r} (install it here, or give the "
                "path of a file that ends in .py)"
            )
        spec = found
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise ConfigError(f"module {module!r} has no Python source (give the path of a .py file)")
    return Path(spec.origin)
