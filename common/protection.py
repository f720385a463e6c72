"""What the traffic of a run is protected against, in words, and what it is not."""

from __future__ import annotations

from common.config import Config


def is_plaintext(config: Config) -> bool:
    """Whether anybody on the network between the roles could read and forge their messages."""
    return config.broker.endpoint.startswith("tcp://") and not config.security.keys


def plaintext_warning(config: Config) -> str | None:
    """The risk that ``config`` takes, for the log of every role; None when it takes none."""
    if not is_plaintext(config):
        return None
    return (
        f"broker.endpoint {config.broker.endpoint} is plaintext TCP: whoever reaches it can read "
        "prompts and rollouts, forge rewards and end the run (set security.keys)"
    )


def protection(config: Config) -> tuple[str, ...]:
    """One line for each channel of a run, for ``headrace check``."""
    return (
        f"broker and payload stores: {_broker(config)}",
        f"weights: {_weights(config)}",
        "metrics and health pages: loopback only, readable by every user of the machine",
        f"run directory: as its file modes say ({config.run.directory})",
    )


def _broker(config: Config) -> str:
    if config.security.keys:
        return f"encrypted and authenticated by the CURVE keys in {config.security.keys}"
    if is_plaintext(config):
        return "NOT PROTECTED, plaintext TCP that anybody on the network can read and forge"
    return "local sockets in a directory that only this user can enter"


def _weights(config: Config) -> str:
    if config.weights.transfer == "pull":
        return "files of the run directory"
    return (
        f"NOT PROTECTED, a process group of torch.distributed on {config.weights.interface} "
        "(keep it on a private network)"
    )
