"""Keeps an actor on the newest proven weights (hop: learner -> actor weights).

Waits for: an announcement from the broker, then the transfer, then the engine between two steps.
Receiving and loading overlap: while one version is loaded the next may arrive, and a version that
waits for the engine is replaced by a newer one.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

import structlog

from actors.generation.engine_thread import EngineThread
from actors.generation.weight_agent import StagedWeights, WeightReceiver
from common.codec import unpack_manifest
from common.errors import RefusedError, RequestTimeoutError, WeightTransferError
from common.messages import PublishWeights, ReportWeights, WatchWeights, WeightNotice
from common.metrics import Metrics
from common.transport import Channel
from common.types import WeightVersion
from common.weight_layout import WeightManifest

WATCH_WAIT_S = 20.0
_RETRY_S = 1.0
_REPORTED_FAILURE = 2
_MAX_REASON = 2000

_T = TypeVar("_T")


class Serving:
    """The version that the engine was proven to serve, None before the first proof."""

    def __init__(self) -> None:
        self._version: WeightVersion | None = None
        self._is_proven = asyncio.Event()

    @property
    def version(self) -> WeightVersion | None:
        """The version served now."""
        return self._version

    def set(self, version: WeightVersion) -> None:
        """Serve ``version`` from now on."""
        self._version = version
        self._is_proven.set()

    async def wait_proven(self) -> None:
        """Return once there is a version."""
        await self._is_proven.wait()


class WeightWatch:
    """Watches for announcements, receives, has the engine load, reports the proof."""

    def __init__(
        self,
        *,
        channel: Channel,
        engine: EngineThread,
        receiver: WeightReceiver,
        serving: Serving,
        metrics: Metrics,
        log: structlog.stdlib.BoundLogger,
    ) -> None:
        self._channel = channel
        self._engine = engine
        self._receiver = receiver
        self._serving = serving
        self._metrics = metrics
        self._log = log
        self._staged: StagedWeights | None = None
        self._has_staged = asyncio.Event()
        self._failed_load: ReportWeights | None = None

    async def receive_forever(self) -> None:
        """Bring each new announced version into staging; one that fails is tried again.

        A second failure of the same version is reported: the first may only mean that the version
        was superseded and deleted meanwhile.
        """
        known: WeightVersion | None = None
        failures: Counter[WeightVersion] = Counter()
        while True:
            found = await self._watch(known)
            if found is None:
                continue
            announcement, manifest = found
            try:
                self._offer(await self._receive(announcement, manifest))
                known = announcement.version
                failures.clear()
            except WeightTransferError as error:
                failures[announcement.version] += 1
                await self._not_received(announcement.version, error, failures)
                await asyncio.sleep(_RETRY_S)

    async def load_forever(self) -> None:
        """Load what is staged; raises ``WeightLoadError`` when the engine became partial."""
        while True:
            await self._has_staged.wait()
            self._has_staged.clear()
            staged, self._staged = self._staged, None
            if staged is not None:
                await self._load(staged)

    async def report_failed_load(self) -> None:
        """Tell the broker why this process ends, if a load is the reason."""
        if self._failed_load is not None:
            await self._report(self._failed_load)

    async def _watch(
        self, known: WeightVersion | None
    ) -> tuple[PublishWeights, WeightManifest] | None:
        message = WatchWeights(known=known, wait_s=WATCH_WAIT_S)
        try:
            decoded = await self._channel.request(message, timeout_s=WATCH_WAIT_S + 30.0)
        except RequestTimeoutError:
            return None
        except RefusedError as error:
            self._log.warning("broker refused to tell of weights", code=error.code)
            await asyncio.sleep(_RETRY_S)
            return None
        notice = decoded.message
        if not isinstance(notice, WeightNotice) or notice.announcement is None:
            return None
        return notice.announcement, unpack_manifest(decoded.frames[0])

    async def _receive(
        self, announcement: PublishWeights, manifest: WeightManifest
    ) -> StagedWeights:
        staged = await asyncio.wrap_future(
            _on_daemon_thread(lambda: self._receiver.receive(announcement, manifest))
        )
        self._metrics.observe(
            "headrace_weight_transfer_seconds", staged.transfer_s, source=staged.source
        )
        return staged

    async def _not_received(
        self, version: WeightVersion, error: WeightTransferError, failures: Counter[WeightVersion]
    ) -> None:
        self._log.warning("weights did not arrive", version=str(version), error=str(error))
        if failures[version] == _REPORTED_FAILURE:
            await self._report(_failure(version, error))

    def _offer(self, staged: StagedWeights) -> None:
        if self._staged is not None:
            self._receiver.release(self._staged)
        self._staged = staged
        self._has_staged.set()

    async def _load(self, staged: StagedWeights) -> None:
        version = str(staged.version)
        try:
            stall_s = await asyncio.wrap_future(self._engine.load(staged))
        except Exception as error:
            self._failed_load = _failure(staged.version, error)
            self._metrics.inc("headrace_weight_syncs_total", result="failed")
            raise
        self._receiver.release(staged)
        self._metrics.inc("headrace_weight_syncs_total", result="proven")
        self._metrics.observe("headrace_weight_stall_seconds", stall_s)
        self._metrics.set("headrace_serving_policy_step", staged.version.policy_step)
        self._log.info("weights proven", version=version, source=staged.source, stall_s=stall_s)
        await self._report(
            ReportWeights(
                version=staged.version, proven=True, stall_s=stall_s, source=staged.source
            )
        )
        self._serving.set(staged.version)

    async def _report(self, report: ReportWeights) -> None:
        with contextlib.suppress(RefusedError):
            while True:
                try:
                    await self._channel.request(report)
                    return
                except RequestTimeoutError:
                    self._log.warning("broker did not take a weight report; trying again")


def _failure(version: WeightVersion, error: BaseException) -> ReportWeights:
    return ReportWeights(version=version, proven=False, reason=str(error)[:_MAX_REASON])


def _on_daemon_thread(work: Callable[[], _T]) -> Future[_T]:
    """Run ``work`` on a thread that the end of the process does not wait for."""
    outcome: Future[_T] = Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, name="weight-agent", daemon=True).start()
    return outcome
