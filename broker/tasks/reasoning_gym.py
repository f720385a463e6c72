"""Problems of the package reasoning-gym: over a hundred generated tasks, each with a scorer.

A problem is made by a dataset of its own from one integer, so problem ``index`` of a stream is a
function of ``run.seed``, the dataset's options and the package's version alone: nothing depends on
which problems were asked for before. As elsewhere, a hash of the question decides whether a problem
is held out, whatever the seed.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from broker.tasks.problem import Problem, is_held_out_text
from common.errors import ConfigError
from common.reasoning_gym_catalog import find_dataset, make_dataset, version

NOT_REPEATABLE = frozenset(
    {"isomorphic_strings", "knight_swap", "polynomial_multiplication", "ransom_note", "word_ladder"}
)
"""Their problems depend on Python's hash seed, so they differ from process to process."""

_TRIES = 64
"""Seeds a problem may take: some are held out, and from some no puzzle can be made."""

_SEEDS = 2**32
_FEWEST_DISTINCT = "raise its difficulty with prompts.options, or ask for fewer"


@dataclass(frozen=True, slots=True)
class DatasetProblems:
    """The problems of one dataset, with its options."""

    name: str
    options: Mapping[str, object]

    @classmethod
    def open(
        cls, name: str, options: Mapping[str, object], *, repeatable: bool = True
    ) -> DatasetProblems:
        """Check name and options, and make one problem to see that they work.

        ``repeatable`` refuses the datasets that cannot be streamed. Raises :class:`ConfigError`.
        """
        found = find_dataset(name)
        if repeatable and found in NOT_REPEATABLE:
            raise ConfigError(
                f"reasoning-gym dataset {found!r} makes other problems in every process, so a "
                "restarted run could not go on where it was (write them to a file once: headrace "
                f"task reasoning-gym:{found} --count 1000 --out FILE, then set prompts.file)"
            )
        problems = cls(found, dict(options))
        problems.prompt_at(0, 0)
        return problems

    @property
    def identity(self) -> str:
        """What a cursor depends on besides seed and options."""
        return f"reasoning-gym {version()}, {self.name}"

    def prompt_at(self, seed: int, index: int) -> Problem:
        """Training problem number ``index`` (from 0) of the endless stream that ``seed`` names."""
        first = _base("prompt", seed) + index * _TRIES
        problem = self._first(first, held_out=False)
        if problem is None:
            raise ConfigError(
                f"reasoning-gym dataset {self.name!r} has too few distinct problems to train on "
                f"({_FEWEST_DISTINCT})"
            )
        return problem

    def held_out(self, seed: int, count: int) -> list[Problem]:
        """``count`` distinct held-out problems; a larger ``count`` extends a smaller one."""
        found: dict[str, Problem] = {}
        first = _base("held-out", seed)
        for number in range(2 * count):
            problem = self._first(first + number * _TRIES, held_out=True)
            if problem is not None:
                found.setdefault(problem.text, problem)
            if len(found) == count:
                return list(found.values())
        raise ConfigError(
            f"reasoning-gym dataset {self.name!r} has too few held-out problems for count = "
            f"{count}, found {len(found)} ({_FEWEST_DISTINCT})"
        )

    def _first(self, first: int, *, held_out: bool) -> Problem | None:
        """The first problem from ``first`` on that is of the split; None if there is none near."""
        failure: Exception | None = None
        num_made = 0
        for number in range(first, first + _TRIES):
            try:
                problem = self._problem(number % _SEEDS)
            except ConfigError:
                raise
            except Exception as error:  # some puzzles cannot be made from every seed
                failure = error
                continue
            num_made += 1
            if is_held_out_text(problem.text) == held_out:
                return problem
        if not num_made:
            raise ConfigError(
                f"reasoning-gym dataset {self.name!r} makes no problem with these options: "
                f"{failure} (change prompts.options)"
            )
        return None

    def _problem(self, number: int) -> Problem:
        entry = _entry(self.name, self.options, number)
        fields: dict[str, object] = {"entry": entry}
        if self.options:
            fields["options"] = dict(self.options)
        return Problem(
            problem_id=f"reasoning-gym/{self.name}{_mark(self.options)}/{number}",
            text=entry["question"],
            answer=entry["answer"] or "",
            task="task",
            fields_json=json.dumps(fields, allow_nan=False, default=str),
        )


def _entry(name: str, options: Mapping[str, object], number: int) -> dict[str, Any]:
    """Entry of seed ``number``; what is shared is seeded too, for some datasets draw from it."""
    import numpy as np  # reasoning-gym brings it, the broker alone does without

    state, numpy_state = random.getstate(), np.random.get_state()
    random.seed(number)
    np.random.seed(number)
    try:
        return make_dataset(name, options, seed=number)[0]
    finally:
        random.setstate(state)
        np.random.set_state(numpy_state)


def _base(split: str, seed: int) -> int:
    """Where the numbers of a split begin."""
    digest = blake2b(f"{split}/{seed}".encode(), digest_size=4, person=b"reasoning-gym").digest()
    return int.from_bytes(digest, "little")


def _mark(options: Mapping[str, object]) -> str:
    """Tells problems of one number and other options apart; empty without options."""
    if not options:
        return ""
    text = json.dumps(options, sort_keys=True)
    return "-" + blake2b(text.encode(), digest_size=4).hexdigest()
