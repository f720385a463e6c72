"""What happens to a run as a whole: its prompts, its consumer, its weights, its end."""

from __future__ import annotations

from broker.events.base import Event
from common.messages import GroupIds, PublishWeights
from common.types import Count, FiniteFloat, Name, Reason, Record, WeightVersion


class SettingKept(Event, frozen=True):
    """From here on the journal depends on this value of a key of the configuration."""

    key: Name
    value: Reason


class SetWeight(Record, frozen=True):
    """A prompt set with its weight."""

    name: Name
    weight: FiniteFloat


class PromptSetOpened(Event, frozen=True):
    """A prompt set is used for the first time; ``fingerprint`` names its content and order."""

    name: Name
    fingerprint: Reason


class MixBegan(Event, frozen=True):
    """From here prompts are drawn from these sets: a set is used up, or a weight was changed."""

    mix: tuple[SetWeight, ...]


class ReferenceSet(Event, frozen=True):
    """The learner trains with this reference; None: nobody asks verifiers for one.

    Judged rollouts of these groups wait for a verifier if they lack its log-probabilities.
    """

    version: WeightVersion | None
    group_ids: GroupIds = ()


class Announced(Event, frozen=True):
    """The learner published weights; ``manifest`` is the encoded frame."""

    announcement: PublishWeights
    manifest: bytes


class Resumed(Event, frozen=True):
    """A learner starts at ``checkpoint_step`` and computes ``policy_step`` next; unseals."""

    incarnation: Count
    checkpoint_step: Count
    policy_step: Count
    forked: bool = False


class Sealed(Event, frozen=True):
    """The run ended."""


class CollectorStarted(Event, frozen=True):
    """A collector process with this nonce consumes; it goes on with a run that had ended."""

    nonce: Name
