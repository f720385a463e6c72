"""A registry of verifiers that misbehave, for tests of the pool that runs them."""

from __future__ import annotations

import os
import signal

from actors.verification.judgement import Judgement, Verifier


def _hang(completion: str, reference_json: str) -> Judgement:
    while True:
        pass


def _hold_the_interpreter(completion: str, reference_json: str) -> Judgement:
    return Judgement.graded(float(9**9**9 % 7))


def _allocate(completion: str, reference_json: str) -> Judgement:
    return Judgement.graded(float(len(bytearray(3 << 30))))


def _kill_itself(completion: str, reference_json: str) -> Judgement:
    os.kill(os.getpid(), signal.SIGKILL)
    return Judgement.graded(1.0)


def _die_once(completion: str, reference_json: str) -> Judgement:
    """Die on the first job whose completion names a file that is not there yet."""
    try:
        os.mkdir(completion)
    except FileExistsError:
        return Judgement.graded(1.0)
    os.kill(os.getpid(), signal.SIGKILL)
    return Judgement.graded(0.0)


def _print_garbage(completion: str, reference_json: str) -> Judgement:
    print("\x00\xff garbage" * 100, flush=True)
    os.write(1, b"\xff" * 1000)
    os.write(2, b"\xff" * 1000)
    return Judgement.graded(1.0)


def _raise(completion: str, reference_json: str) -> Judgement:
    raise KeyError("a bug")


def _not_a_number(completion: str, reference_json: str) -> Judgement:
    return Judgement.graded(float("nan"))


def _environment(completion: str, reference_json: str) -> Judgement:
    return Judgement.graded(1.0, reason=",".join(sorted(os.environ)))


def _open_descriptors(completion: str, reference_json: str) -> Judgement:
    return Judgement.graded(float(len(os.listdir("/proc/self/fd"))))


def _right(completion: str, reference_json: str) -> Judgement:
    return Judgement.graded(1.0)


VERIFIERS: dict[str, Verifier] = {
    "hang": _hang,
    "hold-the-interpreter": _hold_the_interpreter,
    "allocate": _allocate,
    "kill-itself": _kill_itself,
    "die-once": _die_once,
    "print-garbage": _print_garbage,
    "raise": _raise,
    "not-a-number": _not_a_number,
    "environment": _environment,
    "open-descriptors": _open_descriptors,
    "right": _right,
}
