"""What runs inside namespaces: ``python -m tests.chaos.broker.inside FILE disk|partition ...``."""

from __future__ import annotations

import logging
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import structlog

from tests.chaos.broker.campaign import ENDLESS, Campaign, Outcome
from tests.chaos.broker.deaths import nobody
from tests.chaos.broker.full_disk import FullDisk, mount
from tests.chaos.broker.logged import LoggedBroker
from tests.chaos.broker.namespace import command, write_outcome
from tests.chaos.broker.network import TcpBroker
from tests.chaos.broker.nursery import Nursery
from tests.chaos.broker.partition import NEAR, Partitions, connect_namespaces


def disk(seed: int, num_times: int, kilobytes: int) -> Outcome:
    """A run on a disk of so many kilobytes."""
    with tempfile.TemporaryDirectory(prefix="headrace-chaos-") as name:
        folder = Path(name)
        mount(folder / "run", kilobytes * 1024)
        segment_bytes = max(65536, kilobytes * 1024 // 16)
        broker = LoggedBroker(
            folder,
            num_steps=ENDLESS,
            dead_after_s=1.0,
            settings=(f"journal_segment_bytes = {segment_bytes}",),
        )
        campaign = Campaign(folder, f"disk-{kilobytes}K", seed, broker)
        try:
            return campaign.run(FullDisk(folder / "run", num_times))
        finally:
            command("umount", "--lazy", folder / "run")


def partition(seed: int, num_times: int) -> Outcome:
    """A run whose actors and verifiers are in another network namespace."""
    with tempfile.TemporaryDirectory(prefix="headrace-chaos-") as name:
        far = Nursery(prefix=("unshare", "--net"))
        try:
            far.wait()
            connect_namespaces(far.process.pid)
            broker = TcpBroker(
                Path(name), num_steps=ENDLESS, dead_after_s=0.6, endpoint=f"tcp://{NEAR}:0"
            )
            campaign = Campaign(Path(name), "partition", seed, broker)
            return campaign.run(Partitions(num_times, far), nobody)
        finally:
            far.close()


def main() -> int:
    """Run one campaign."""
    quiet = structlog.make_filtering_bound_logger(logging.ERROR)
    structlog.configure(wrapper_class=quiet)
    _, file, kind, *numbers = sys.argv
    campaigns: dict[str, Callable[..., Outcome]] = {"disk": disk, "partition": partition}
    write_outcome(Path(file), campaigns[kind](*map(int, numbers)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
