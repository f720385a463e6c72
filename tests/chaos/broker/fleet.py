"""A thousand actors at once: they register, are served in turn, and come back after a restart."""

from __future__ import annotations

import contextlib
import itertools
import resource
import secrets
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import zmq

from common.codec import Decoded, decode, encode
from common.endpoints import read_endpoint
from common.errors import DecodeError
from common.messages import (
    LeasePrompts,
    PromptLeases,
    Refused,
    Register,
    Registered,
    Request,
    ReturnLease,
)
from common.sockets import set_common_options
from common.types import Role
from tests.builders import version
from tests.chaos.broker.campaign import Outcome
from tests.chaos.broker.logged import LoggedBroker
from tests.fleet_of_clients import FleetOfClients

REGISTER_GOAL_S = 5.0
RESTART_GOAL_S = 10.0
_PATIENCE_S = 60.0
_FILES = 65536


@contextlib.contextmanager
def many_files() -> Iterator[None]:
    """A socket is a file or two; processes started inside may open as many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _FILES if hard == resource.RLIM_INFINITY else min(_FILES, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def storm(folder: Path, num_clients: int, num_restarts: int, seed: int) -> Outcome:
    """All connect at once; then the broker is killed and started again under them."""
    outcome = Outcome("fleet", seed)
    broker = LoggedBroker(folder, dead_after_s=15.0)
    started_s = time.monotonic()
    with many_files():
        broker.start()
        broker.wait_endpoint()
        endpoint = read_endpoint(broker.config, broker.paths)
        fleet = FleetOfClients(endpoint, num_clients, seed=seed)
        try:
            outcome.measures["clients"] = num_clients
            outcome.measures["register_s"] = fleet.run_until_registered(_PATIENCE_S)
            _goal(outcome, "registered", outcome.measures["register_s"], REGISTER_GOAL_S)
            for _ in range(num_restarts):
                outcome.num_trials += 1
                outcome.faults["kill with the fleet connected"] += 1
                broker.kill()
                fleet.forget_registrations()
                broker.start()
                outcome.recovery_s.append(fleet.run_until_registered(_PATIENCE_S))
                _goal(outcome, "registered again", outcome.recovery_s[-1], RESTART_GOAL_S)
            sockets = [client.num_sockets for client in fleet.clients]
            outcome.measures["sockets of a client"] = statistics.mean(sockets)
        except TimeoutError as error:
            outcome.blame("stopped", error)
        finally:
            fleet.close()
            broker.kill()
    outcome.wall_s = time.monotonic() - started_s
    return outcome


def _goal(outcome: Outcome, what: str, seconds: float, goal_s: float) -> None:
    if seconds > goal_s:
        outcome.blame("slow", f"{what} after {seconds:.1f} s, goal {goal_s:.0f} s")


class _Asker:
    """Asks for a prompt, gives it back, and asks again."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str, name: str) -> None:
        self.num_served = 0
        self.is_in = False
        self.socket = context.socket(zmq.DEALER)
        set_common_options(self.socket)
        self.socket.connect(endpoint)
        self._numbers = itertools.count(1)
        nonce = secrets.token_hex(8)
        self._send(Register(role=Role.ACTOR, name=name, nonce=nonce, host="fleet", pid=1))

    def receive(self) -> None:
        decoded: Decoded = decode(self.socket.recv_multipart())
        reply = decoded.message
        if isinstance(reply, Registered):
            self.is_in = True
            self._ask()
        elif isinstance(reply, PromptLeases) and reply.leases:
            self.num_served += 1
            self._send(ReturnLease(lease=reply.leases[0].lease))
        elif isinstance(reply, Refused):
            raise DecodeError(f"{reply.code}: {reply.reason}")
        else:
            self._ask()

    def _ask(self) -> None:
        self._send(LeasePrompts(serving=version(0), max_groups=1, wait_s=30.0))

    def _send(self, message: Request) -> None:
        self.socket.send_multipart(encode(message, next(self._numbers)))


def fairness(folder: Path, num_clients: int, seconds: float, seed: int) -> Outcome:
    """Everybody asks all the time for one of ten prompts: how often is each one served?"""
    outcome = Outcome("fair-share", seed, num_trials=1)
    broker = LoggedBroker(folder, kind="collect", dead_after_s=60.0)
    with many_files():
        broker.start()
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        context.set(zmq.MAX_SOCKETS, _FILES)
        endpoint = broker.wait_endpoint()
        try:
            askers = [_Asker(context, endpoint, f"actor-{n}") for n in range(num_clients)]
            _serve(askers, lambda: all(asker.is_in for asker in askers), _PATIENCE_S)
            before = [asker.num_served for asker in askers]
            _serve(askers, lambda: False, seconds)
        finally:
            context.destroy(linger=0)
            broker.kill()
    served = [asker.num_served - had for asker, had in zip(askers, before, strict=True)]
    outcome.wall_s = seconds
    outcome.measures["served"] = sum(served)
    outcome.measures["least"], outcome.measures["most"] = min(served), max(served)
    squares = sum(number * number for number in served)
    index = sum(served) ** 2 / (num_clients * squares) if squares else 0.0
    outcome.measures["Jain index"] = index
    if index < 0.9 and max(served) - min(served) > 1:  # who is served in turn differs by one
        outcome.blame("unfair", f"Jain index {index:.3f}: from {min(served)} to {max(served)}")
    return outcome


def _serve(askers: list[_Asker], is_done: Callable[[], bool], seconds: float) -> None:
    """Let all of them go on until ``is_done``, for ``seconds`` at most."""
    poller = zmq.Poller()
    owners = {asker.socket: asker for asker in askers}
    for socket in owners:
        poller.register(socket, zmq.POLLIN)
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s and not is_done():
        for socket, _ in poller.poll(50):
            owners[socket].receive()
