"""Puts a broker together from a configuration and runs it."""

from __future__ import annotations

import secrets

from broker.engine import Engine
from broker.exchange import Identity
from broker.fleet import Fleet
from broker.handlers import Handlers
from broker.journal import Journal
from broker.leases import LeaseTable
from broker.ledger import Ledger
from broker.ledger_state import LedgerRules
from broker.prompt_source import PromptSource, open_prompt_source
from broker.server import Server
from broker.watchdog import Watchdog
from common.broker_socket import BrokerSocket
from common.clock import MonotonicClock
from common.config import Config
from common.endpoints import broker_endpoint, publish_endpoint
from common.lifecycle import Process
from common.types import Role


def ledger_rules(config: Config) -> LedgerRules:
    """What the ledger needs to know of the configuration."""
    return LedgerRules(
        kind=config.run.kind,
        group_size=config.group_size,
        groups_per_step=config.learner.groups_per_step,
        max_policy_lag=config.learner.max_policy_lag,
        num_steps=config.learner.num_steps,
        max_outstanding_groups=config.max_outstanding_groups,
        max_attempts=config.broker.max_attempts,
    )


async def run_broker(process: Process) -> None:
    """The broker role: check the prompts, open the journal, bind, serve until cancelled."""
    source = open_prompt_source(process.config)
    journal = Journal(process.paths.journal, process.config.run.id)
    try:
        socket = BrokerSocket.bind(broker_endpoint(process.config))
        try:
            server = _assemble(process, source, journal, socket)
            publish_endpoint(process.paths, socket.endpoint)
            process.ready(endpoint=socket.endpoint)
            await server.serve()
        finally:
            socket.close()
    finally:
        journal.close()


def _assemble(
    process: Process, source: PromptSource, journal: Journal, socket: BrokerSocket
) -> Server:
    config, clock = process.config, MonotonicClock()
    state, history = journal.load()
    ledger = Ledger.replay(ledger_rules(config), state, history)
    leases = LeaseTable(config.broker.dead_after_s)
    engine = Engine(ledger, leases, journal, clock.now_s())
    fleet = Fleet(config.broker.dead_after_s)
    identity = Identity(
        run_id=config.run.id,
        broker_nonce=secrets.token_hex(8),
        heartbeat_s=config.broker.heartbeat_s,
        lease_s=config.broker.dead_after_s,
    )
    consumer = Role.LEARNER if config.run.kind == "train" else Role.COLLECTOR
    watchdog = Watchdog(
        (Role.ACTOR, Role.VERIFIER, consumer),
        no_progress_s=config.broker.no_progress_s,
        max_absence_s=config.broker.max_absence_s,
        now_s=clock.now_s(),
    )
    return Server(
        socket=socket,
        journal=journal,
        engine=engine,
        fleet=fleet,
        handlers=Handlers(engine, fleet, source, identity),
        watchdog=watchdog,
        clock=clock,
        metrics=process.metrics,
        log=process.log,
    )
