"""What a verifier of one kind says about one completion, before weights turn it into a reward."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping

from common.codec import unpack
from common.errors import DataError, DecodeError
from common.thoughts import response_of
from common.types import Count, FiniteFloat, Name, Reason, Record, Text, VerdictStatus


class Judgement(Record, frozen=True):
    """``value`` is the component's value, None exactly when the answer was not judged.

    ``step_values`` are those of the single steps, where the verifier scores steps, and
    ``step_ends`` the characters of the completion behind which they end, in rising order.
    """

    status: VerdictStatus
    value: FiniteFloat | None
    reason: Reason = ""
    step_values: tuple[FiniteFloat, ...] = ()
    step_ends: tuple[Count, ...] = ()

    @classmethod
    def graded(cls, value: float, reason: str = "") -> Judgement:
        """The answer was read and judged."""
        return cls(status=VerdictStatus.GRADED, value=value, reason=reason)

    @classmethod
    def wrong_format(cls, reason: str) -> Judgement:
        """There was no answer where one is required: judged, and worth 0."""
        return cls(status=VerdictStatus.WRONG_FORMAT, value=0.0, reason=reason)

    @classmethod
    def limit_exceeded(cls, reason: str) -> Judgement:
        """The answer could not be judged within its limits: its own doing, and worth 0."""
        return cls(status=VerdictStatus.LIMIT_EXCEEDED, value=0.0, reason=reason)

    @classmethod
    def bad_input(cls, reason: str) -> Judgement:
        """The task itself is malformed: nothing can be said about the answer."""
        return cls(status=VerdictStatus.BAD_INPUT, value=None, reason=reason[:4096])


Verifier = Callable[[str, str], Judgement]
"""(completion, reference_json) -> judgement. Raises :class:`DataError` for a bad reference."""


class Check(Record, frozen=True):
    """One verifier to run: its kind and its task's fields as JSON."""

    kind: Name
    reference_json: Text


class VerifyJob(Record, frozen=True):
    """One completion and all that is to be checked about it.

    ``inside_thought`` says that the prompt ended in ``<think>``.
    ``prompt`` (the task's text, without a template) and the token ids (raw little-endian int32, as
    sampled) are for backends that run a model; others are sent a job without them.
    """

    completion: Text
    checks: tuple[Check, ...]
    prompt: Text = ""
    prompt_token_ids: bytes = b""
    completion_token_ids: bytes = b""
    inside_thought: bool = False

    @property
    def response(self) -> str:
        """The completion behind the ``<think>`` that its prompt ended in: what is judged."""
        return response_of(self.completion, inside_thought=self.inside_thought)

    def about_completion(self, checks: tuple[Check, ...]) -> VerifyJob:
        """These checks of the completion alone: all that a rule needs to see."""
        return VerifyJob(
            completion=self.completion, checks=checks, inside_thought=self.inside_thought
        )


class JobReply(Record, frozen=True):
    """One judgement for each check, in order, or the reason why there is none.

    ``failure`` is ``limit-exceeded`` or ``infra-error``. ``seconds`` is the wall time that the job
    held a worker, as whoever holds the clock measured it; ``check_seconds`` the part of each check,
    empty where it is not known.
    """

    judgements: tuple[Judgement, ...] = ()
    failure: VerdictStatus | None = None
    reason: Reason = ""
    seconds: FiniteFloat = 0.0
    check_seconds: tuple[FiniteFloat, ...] = ()


def parse_reply(frame: bytes, num_checks: int) -> JobReply:
    """Read a child's reply; raises :class:`DecodeError` unless it answers every check."""
    reply: JobReply = unpack(frame, JobReply)
    if reply.failure is None and len(reply.judgements) != num_checks:
        raise DecodeError(f"{len(reply.judgements)} judgements for {num_checks} checks")
    return reply


def run_checks(
    job: VerifyJob,
    verifiers: Mapping[str, Verifier],
    clock: Callable[[], float] = time.perf_counter,
) -> JobReply:
    """Run every check of ``job``; a bad task is a judgement, any other error is the caller's."""
    judgements, times = [], [clock()]
    for check in job.checks:
        judgements.append(_run_check(job, check, verifiers))
        times.append(clock())
    took = (end - start for start, end in itertools.pairwise(times))
    return JobReply(judgements=tuple(judgements), check_seconds=tuple(took))


def _run_check(job: VerifyJob, check: Check, verifiers: Mapping[str, Verifier]) -> Judgement:
    verifier = verifiers.get(check.kind)
    if verifier is None:
        known = ", ".join(sorted(verifiers))
        return Judgement.bad_input(f"unknown kind {check.kind!r} (known: {known})")
    try:
        return verifier(job.response, check.reference_json)
    except DataError as error:
        return Judgement.bad_input(str(error))
