"""The failure tree, split by what to do next rather than by where it happened.

Classify an error where the fact is known, before it crosses a process boundary.
"""

from __future__ import annotations


class HeadraceError(Exception):
    """Root of every error that headrace raises on purpose."""


class InfraError(HeadraceError):
    """The work is fine, the place is not: try again elsewhere or later."""


class DataError(HeadraceError):
    """This item would fail anywhere: drop it, count it, go on."""


class FatalError(HeadraceError):
    """The run cannot go on. The message is one line for a person: rule, value, cure."""


class ConfigError(FatalError):
    """A configuration value breaks a rule; the message names file, key, value and cure."""


class PromptFileError(FatalError):
    """A prompt or corpus file is malformed; the message names file and line."""


class ModelDirectoryError(FatalError):
    """A model directory is missing, incomplete or of an unsupported kind."""


class ForbiddenError(FatalError):
    """The broker does not let this process in, or not do this: wrong key, wrong role."""


class JournalError(FatalError):
    """The broker's journal cannot be written or read."""


class CheckpointError(FatalError):
    """A checkpoint, step record or export cannot be written or read."""


class DecodeError(DataError):
    """Bytes from a peer are not a valid message."""


class JournalFullError(InfraError):
    """The journal's disk has no room; what was to be written is kept and may be tried again."""


class RequestTimeoutError(InfraError):
    """The broker did not answer within the deadline of the request."""


class RefusedError(InfraError):
    """The broker answered that it will not serve this request; ``code`` says why."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(f"{code}: {reason}")
        self.code = code
        self.reason = reason


class WeightTransferError(InfraError):
    """Weights did not arrive whole; the engine was not touched."""


class WeightLoadError(InfraError):
    """An engine holds partly loaded or unproven weights and must not serve."""


EXIT_OK = 0
EXIT_FATAL = 1
EXIT_USAGE = 2
EXIT_INFRA = 75  # EX_TEMPFAIL: a supervisor may start the process again
EXIT_INTERRUPTED = 130
