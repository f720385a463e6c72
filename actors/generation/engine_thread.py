"""The one thread that owns the sampler: submits, steps, loads weights, proves them, closes.

Everybody else sends it commands and gets futures. Weights are loaded between two steps, so no
decode step ever runs on a mixture; nothing sampled after a load is handed out before the canary
agreed with the learner. An engine whose load failed is PARTIAL and serves nothing: the load is
tried once more from staging, then the thread ends with the error and the process is replaced.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

from actors.generation.sampler import SampledCompletion, Sampler, SampleRequest
from actors.generation.weight_agent import StagedWeights
from common.errors import DataError, InfraError, WeightLoadError
from common.types import WeightVersion
from common.weight_layout import Canary

_NUM_LOAD_ATTEMPTS = 2
_IDLE_WAIT_S = 0.5

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class EngineStatistics:
    """Totals since the engine started, in seconds, and what it does now."""

    busy_s: float
    idle_s: float
    stall_s: float
    num_running: int


def check_canary(sampler: Sampler, canary: Canary) -> float:
    """Largest difference in nats between learner and engine on the canary's sequences.

    Raises ``WeightLoadError`` when it exceeds the canary's tolerance or is not a number.
    """
    worst = 0.0
    for token_ids, expected in zip(canary.token_ids, canary.logprobs, strict=True):
        difference = np.abs(sampler.score(token_ids) - np.asarray(expected, np.float64))
        worst = max(worst, float(difference.max(initial=0.0)))
        if not worst <= canary.tolerance or np.isnan(difference).any():
            raise WeightLoadError(
                f"engine and learner differ by {float(difference.max()):.3g} nats on the canary, "
                f"allowed are {canary.tolerance:.3g} (weights.canary_tolerance)"
            )
    return worst


def load_and_prove(sampler: Sampler, staged: StagedWeights) -> None:
    """Load ``staged`` and prove it by digests and canary, or raise ``WeightLoadError``.

    A load whose digests differ is repeated once: no token was sampled in between. A canary that
    disagrees is not: scoring has advanced running requests under weights that compute something
    else than the learner, and their tokens could no longer be told apart.
    """
    for attempt in range(1, _NUM_LOAD_ATTEMPTS + 1):
        try:
            sampler.load_weights(staged.tensors, staged.manifest, staged.version)
            break
        except WeightLoadError:
            if attempt == _NUM_LOAD_ATTEMPTS:
                raise
    if staged.manifest.canary is not None:
        check_canary(sampler, staged.manifest.canary)


class _Command(Generic[_T]):
    """Something to do with the sampler, and the future of its outcome."""

    def __init__(self, act: Callable[[Sampler], _T]) -> None:
        self._act = act
        self.outcome: Future[_T] = Future()

    def run(self, sampler: Sampler) -> None:
        """Act; a ``DataError`` belongs to the caller alone, any other error ends the thread too."""
        if not self.outcome.set_running_or_notify_cancel():
            return
        try:
            result = self._act(sampler)
        except BaseException as error:
            self.outcome.set_exception(error)
            if not isinstance(error, DataError):
                raise
        else:
            self.outcome.set_result(result)


class EngineThread:
    """Runs a sampler on a thread of its own.

    ``build`` makes the sampler on that thread. ``deliver`` is called there with each finished
    completion and ``fail`` once with the error that ended the thread; both must only hand over.
    """

    def __init__(
        self,
        build: Callable[[], Sampler],
        deliver: Callable[[SampledCompletion], None],
        fail: Callable[[BaseException], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._build = build
        self._deliver = deliver
        self._fail = fail
        self._clock = clock
        self._commands: queue.SimpleQueue[_Command[Any] | None] = queue.SimpleQueue()
        self._has_ended = threading.Event()
        self._busy_s = self._idle_s = self._stall_s = 0.0
        self._num_running = 0
        self.started: Future[WeightVersion] = Future()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Begin building the sampler; ``started`` completes with the version it serves."""
        self._thread.start()

    def submit(self, requests: Sequence[SampleRequest]) -> Future[None]:
        """Queue requests that belong together; ``DataError`` and none of them if one is bad."""
        return self._command(lambda sampler: _submit_all(sampler, requests))

    def abort(self, request_ids: Collection[str]) -> Future[None]:
        """Forget these requests; completions already handed over are not called back."""
        return self._command(lambda sampler: sampler.abort(request_ids))

    def load(self, staged: StagedWeights) -> Future[float]:
        """Load and prove; completes with the seconds that generation stood still.

        A ``WeightLoadError`` also ends the thread: the engine is partial.
        """
        return self._command(lambda sampler: self._load(sampler, staged))

    def close(self, timeout_s: float) -> bool:
        """Free the sampler and end the thread; False when it did not end in time."""
        self._commands.put(None)
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    @property
    def statistics(self) -> EngineStatistics:
        """A snapshot for metrics; may be called from any thread."""
        return EngineStatistics(self._busy_s, self._idle_s, self._stall_s, self._num_running)

    def _command(self, act: Callable[[Sampler], _T]) -> Future[_T]:
        command = _Command(act)
        self._commands.put(command)
        if self._has_ended.is_set():
            self._refuse_commands()
        return command.outcome

    def _run(self) -> None:
        try:
            sampler = self._build()
        except BaseException as error:
            self.started.set_exception(error)
            self._end(error)
            return
        self.started.set_result(sampler.serving_version)
        try:
            self._serve(sampler)
        except BaseException as error:
            self._end(error)
        else:
            self._end(None)
        finally:
            sampler.close()

    def _serve(self, sampler: Sampler) -> None:
        """Commands first, then one decode step, until ``close``."""
        while self._obey(sampler):
            self._step(sampler)

    def _obey(self, sampler: Sampler) -> bool:
        """Run every waiting command; False when one of them was to close."""
        wait_s = 0.0 if sampler.num_running else _IDLE_WAIT_S
        while True:
            try:
                command = self._take(wait_s)
            except queue.Empty:
                return True
            if command is None:
                return False
            command.run(sampler)
            wait_s = 0.0

    def _take(self, wait_s: float) -> _Command[Any] | None:
        if not wait_s:
            return self._commands.get_nowait()
        began_s = self._clock()
        try:
            return self._commands.get(timeout=wait_s)
        finally:
            self._idle_s += self._clock() - began_s

    def _step(self, sampler: Sampler) -> None:
        self._num_running = sampler.num_running
        if not self._num_running:
            return
        began_s = self._clock()
        completions = sampler.step()
        self._busy_s += self._clock() - began_s
        for completion in completions:
            self._deliver(completion)

    def _load(self, sampler: Sampler, staged: StagedWeights) -> float:
        began_s = self._clock()
        load_and_prove(sampler, staged)
        stall_s = self._clock() - began_s
        self._stall_s += stall_s
        return stall_s

    def _end(self, error: BaseException | None) -> None:
        self._has_ended.set()
        self._refuse_commands()
        if error is not None:
            self._fail(error)

    def _refuse_commands(self) -> None:
        while True:
            try:
                command = self._commands.get_nowait()
            except queue.Empty:
                return
            if command is not None and command.outcome.set_running_or_notify_cancel():
                command.outcome.set_exception(InfraError("the engine has ended"))


def _submit_all(sampler: Sampler, requests: Sequence[SampleRequest]) -> None:
    try:
        for request in requests:
            sampler.submit(request)
    except DataError:
        sampler.abort([request.request_id for request in requests])
        raise
