"""A simulated collector: consumes verified groups of a run that does not train."""

from __future__ import annotations

import asyncio

from common.messages import CommitStep, EndRun, Groups, PullGroups
from tests.simulation.process import Process
from tests.simulation.trace import Violation


class Collector(Process):
    """Writes a group down before it commits it, and recognises one that comes again."""

    async def live(self) -> None:
        """See :meth:`Process.live`."""
        async with asyncio.TaskGroup() as tasks:
            beats = tasks.create_task(self.send_heartbeats())
            await self._collect()
            self.books.end_was_sent = True
            await self.ask(EndRun())
            beats.cancel()
        self.is_done = True

    async def _collect(self) -> None:
        while True:
            message = PullGroups(
                policy_step=0,
                max_groups=self.random.randint(1, 8),
                wait_s=self.random.uniform(1.0, 10.0),
                held=(),
            )
            reply = (await self.ask(message)).message
            assert isinstance(reply, Groups)
            if reply.exhausted:
                return
            whole = []
            for group in reply.groups:
                self.books.group_delivered(group)
                if group.group_id in self.books.collected:
                    raise Violation("duplicated", f"group {group.group_id} came after its commit")
                if await self.fetch([item.rollout for item in group.rollouts]):
                    whole.append(group.group_id)
            group_ids = tuple(whole)
            if group_ids:
                await self.ask(CommitStep(incarnation=0, policy_step=0, group_ids=group_ids))
                self.books.collected.update(group_ids)
