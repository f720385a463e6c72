"""Puts a broker together from a configuration and runs it."""

from __future__ import annotations

import secrets
from pathlib import Path

from broker import garbage
from broker.engine import Engine
from broker.exchange import Identity
from broker.fleet import Fleet
from broker.handlers import Handlers
from broker.journal import Journal
from broker.kept_settings import keep_settings
from broker.leases import LeaseTable
from broker.ledger import Ledger
from broker.ledger_state import LedgerRules
from broker.memory_plan import MemoryPlan
from broker.permissions import AccessControl
from broker.prompt_rules import open_prompt_sets
from broker.prompts.mixture import Mixture
from broker.prompts.opening import open_prompt_source
from broker.reference_rules import drop_unused
from broker.resume_rules import adopt_rules
from broker.server import Server
from broker.watchdog import Watchdog
from common.broker_socket import BrokerSocket
from common.clock import MonotonicClock
from common.config import Config
from common.endpoints import broker_endpoint, publish_endpoint
from common.flow_control import FlowControl
from common.lifecycle import Process
from common.security import BROKER, ServerSecurity
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
        staleness=config.learner.staleness,
        max_group_s=config.broker.max_group_s,
        dynamic_sampling=config.learner.dynamic_sampling,
        max_dropped_batches=config.learner.max_dropped_batches,
        retire_pass_rate=config.prompts.retire_pass_rate,
        retire_after=config.prompts.retire_after,
        has_verifier_reference=config.has_verifier_reference,
    )


async def run_broker(process: Process) -> None:
    """The broker role: check the prompts, open the journal, bind, serve until cancelled."""
    source = open_prompt_source(process.config)
    journal = _open_journal(process)
    try:
        security = _security(process)
        secure = None if security is None else security.secure
        memory = MemoryPlan.under(process.config.broker.max_memory_bytes)
        socket = BrokerSocket.bind(
            broker_endpoint(process.config),
            secure=secure,
            max_frame_bytes=memory.largest_frame_bytes,
        )
        try:
            access = AccessControl(None if security is None else security.role_of)
            server = _assemble(process, source, journal, socket, access)
            journal.use_thread()
            publish_endpoint(process.paths, socket.endpoint)
            garbage.begin()
            process.ready(endpoint=socket.endpoint)
            await server.serve()
        finally:
            socket.close()
    finally:
        journal.close()


def _open_journal(process: Process) -> Journal:
    broker = process.config.broker
    return Journal(
        process.paths.journal,
        process.config.run.id,
        acks=broker.acks,
        segment_bytes=broker.journal_segment_bytes,
        max_bytes=broker.max_journal_bytes,
        cache_bytes=MemoryPlan.under(broker.max_memory_bytes).cache_bytes,
    )


def _assemble(
    process: Process,
    source: Mixture,
    journal: Journal,
    socket: BrokerSocket,
    access: AccessControl,
) -> Server:
    config, clock = process.config, MonotonicClock()
    state, history = journal.load()
    ledger = Ledger.replay(ledger_rules(config), state, history)
    journal.drop_payloads([g for g in journal.payload_groups if g not in ledger.groups])
    leases = LeaseTable(config.broker.dead_after_s)
    engine = Engine(ledger, leases, journal, clock.now_s(), journal.num_events)
    engine.do(keep_settings(ledger.state, config), clock.now_s())
    engine.do(open_prompt_sets(ledger, source), clock.now_s())
    engine.do(drop_unused(ledger), clock.now_s())
    engine.do(adopt_rules(ledger), clock.now_s())
    fleet = Fleet(config.broker.dead_after_s, heartbeat_s=config.broker.heartbeat_s)
    identity = Identity(
        run_id=config.run.id,
        broker_nonce=secrets.token_hex(8),
        heartbeat_s=config.broker.heartbeat_s,
        lease_s=config.broker.dead_after_s,
        promise=config.broker.acks,
        store_promise=config.stores.acks,
    )
    consumer = Role.LEARNER if config.run.kind == "train" else Role.COLLECTOR
    stores = (Role.STORE,) if config.stores.payloads == "store" else ()
    watchdog = Watchdog(
        (Role.ACTOR, Role.VERIFIER, consumer, *stores),
        no_progress_s=config.broker.no_progress_s,
        max_absence_s=config.broker.max_absence_s,
        now_s=clock.now_s(),
    )
    memory = MemoryPlan.under(config.broker.max_memory_bytes)
    return Server(
        socket=socket,
        journal=journal,
        engine=engine,
        fleet=fleet,
        handlers=Handlers(engine, fleet, source, identity, references=journal),
        watchdog=watchdog,
        clock=clock,
        metrics=process.metrics,
        log=process.log,
        flow=FlowControl(memory.arriving_bytes, lambda: journal.accepts_payloads),
        access=access,
        max_leaving_bytes=memory.leaving_bytes,
    )


def _security(process: Process) -> ServerSecurity | None:
    """The broker's keys, where the run has keys."""
    if not process.config.security.keys:
        return None
    metric = "headrace_connections_denied_total"
    process.metrics.inc(metric, 0)

    def count(number: int) -> None:
        process.metrics.inc(metric, number)

    keys = Path(process.config.security.keys)
    return ServerSecurity.load(keys, BROKER, process.name, count=count, log=process.log)
