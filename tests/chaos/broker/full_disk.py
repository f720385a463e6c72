"""The disk of the broker fills up and is freed, again and again, while the run goes on.

Run in a mount namespace of its own (:mod:`tests.chaos.broker.namespace`): the run directory is a
small tmpfs, which says ENOSPC as a real disk does.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from common.errors import RequestTimeoutError
from common.messages import GetStatus
from common.transport import Channel
from common.types import Role
from tests.chaos.broker.campaign import Campaign

HEARTBEAT_S = 0.2
CONTROL_GOAL_S = 2.0
"""A control message is answered while the disk is full, on a machine with two busy cores."""
RESUME_GOAL_S = 2.0
_POLL_S = 0.005
_RESTART_S = 0.2
_GIVE_UP_S = 20.0
_BLOCK_BYTES = 4096


def mount(folder: Path, num_bytes: int) -> None:
    """Put a tmpfs of this size over ``folder``."""
    folder.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={num_bytes}", "tmpfs", str(folder)], check=True
    )


class Ballast:
    """A file that takes all the space that is left."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def fill(self) -> None:
        """Until ENOSPC, and what others give back meanwhile, too."""
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            while os.write(descriptor, bytes(_BLOCK_BYTES)):
                pass
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
        finally:
            os.close(descriptor)

    def free(self) -> None:
        """Give it all back."""
        self._path.unlink(missing_ok=True)


@dataclass(frozen=True)
class FullDisk:
    """Trouble: the disk is full for a while, ``num_times``; every other time the broker dies then.

    Nobody restarts a broker that was not killed: it has to go on by itself.
    """

    folder: Path
    num_times: int
    kills: bool = True
    _is_refused: asyncio.Event = field(default_factory=asyncio.Event)
    """A broker that was killed may find no room to start again, until there is some."""

    async def __call__(self, campaign: Campaign) -> None:
        probe = await campaign.broker.connect(Role.SUPERVISOR, "watcher")
        living = asyncio.create_task(self._keep_alive(campaign))
        try:
            for turn in range(self.num_times):
                await self._fill_and_free(campaign, probe, kill=self.kills and turn % 2 == 1)
        finally:
            living.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await living
            await probe.close()

    async def _fill_and_free(self, campaign: Campaign, probe: Channel, *, kill: bool) -> None:
        ballast, outcome = Ballast(self.folder / "ballast"), campaign.outcome
        outcome.num_trials += 1
        outcome.faults["disk full and broker killed" if kill else "disk full"] += 1
        await asyncio.sleep(campaign.dice.uniform(0.1, 0.4))
        until_s = time.monotonic() + campaign.dice.uniform(3, 8) * HEARTBEAT_S
        while time.monotonic() < until_s:
            ballast.fill()
            await asyncio.sleep(_POLL_S)
        accepted = len(campaign.history.rollouts)
        if kill:
            self._is_refused.set()
            campaign.kill()
            await asyncio.sleep(campaign.dice.uniform(0.0, 2.5) * _RESTART_S)
        else:
            await self._check_control(campaign, probe)
            stalled = len(campaign.history.rollouts) == accepted
            outcome.measures["times stalled"] = outcome.measures.get("times stalled", 0) + stalled
        ballast.free()
        if kill:
            await self._until_back(campaign)
        await self._check_resumed(campaign, kill=kill)

    async def _check_control(self, campaign: Campaign, probe: Channel) -> None:
        try:
            await probe.request(GetStatus(), timeout_s=CONTROL_GOAL_S)
        except RequestTimeoutError as error:
            campaign.outcome.blame("mute", f"control message on a full disk: {error}")

    async def _check_resumed(self, campaign: Campaign, *, kill: bool) -> None:
        """Space is back: rollouts are accepted again, soon and by themselves."""
        started_s = time.monotonic()
        accepted = len(campaign.history.rollouts)
        async with asyncio.timeout(_GIVE_UP_S):
            while len(campaign.history.rollouts) == accepted:
                await asyncio.sleep(_POLL_S)
        seconds = time.monotonic() - started_s
        campaign.outcome.recovery_s.append(seconds)
        if not kill and seconds > RESUME_GOAL_S:
            campaign.outcome.blame("slow", f"accepted again {seconds:.2f} s after space was back")

    async def _until_back(self, campaign: Campaign) -> None:
        """A life that was started since serves; one may have found no room to start."""
        async with asyncio.timeout(_GIVE_UP_S):
            while campaign.was_killed or not campaign.is_ready():
                await asyncio.sleep(_POLL_S)
        self._is_refused.clear()

    async def _keep_alive(self, campaign: Campaign) -> None:
        """A supervisor: a dead broker is started again; one that was not killed is a finding."""
        while True:
            code = await campaign.until_dead(limit_s=None)
            if code >= 0 and self._is_refused.is_set():
                campaign.outcome.faults["start refused on a full disk"] += 1
            elif code >= 0:
                tail = campaign.log.read_text()[-300:]
                campaign.outcome.blame("died", f"exit {code} on a full disk: {tail}")
            await asyncio.sleep(_RESTART_S)
            campaign.start()
