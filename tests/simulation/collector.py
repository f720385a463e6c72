"""A simulated collector: consumes verified groups of a run that does not train."""

from __future__ import annotations

import asyncio

from common.messages import CommitStep, EndRun, FetchRollouts, Groups, PullGroups, Rollouts
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
            for group in reply.groups:
                self.books.group_delivered(group)
                if group.group_id in self.books.collected:
                    raise Violation("duplicated", f"group {group.group_id} came after its commit")
                wanted = tuple(item.rollout.rollout_id for item in group.rollouts)
                fetched = await self.ask(FetchRollouts(rollout_ids=wanted))
                assert isinstance(fetched.message, Rollouts)
                for place, header in enumerate(fetched.message.rollouts):
                    frames = fetched.frames[3 * place : 3 * place + 3]
                    self.books.check_content(header, frames)
            group_ids = tuple(group.group_id for group in reply.groups)
            if group_ids:
                await self.ask(CommitStep(incarnation=0, policy_step=0, group_ids=group_ids))
                self.books.collected.update(group_ids)
