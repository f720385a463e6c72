"""Does the reward still mean what it should? A watch over the verdicts of one verifier. Pure.

A policy that finds a flaw in its checker raises the reward while what is wanted falls (reward
hacking). Verdicts are gathered in blocks of ``window``; each full block is compared with the
earlier ones:

- *truth falls*: the rewarded term (proxy) moved away from a stricter term that is not rewarded
  (truth), beyond noise, and the truth did not follow even a quarter of the proxy's rise. A rise of
  both, or a fall of both when prompts get harder, is no alarm.
- *exploits*: the share of answers that look like a known trick.
- *repetition*, *length*: answers repeat themselves, or grow many times longer with no more reward.
- *collapse*: all rewards are nearly equal, so that nothing is learned from them.
"""

from __future__ import annotations

import enum
import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from common.config import MonitorConfig

MAX_EARLIER_BLOCKS = 64
NUM_SIGMAS = 4.0
"""A divergence counts when it is so many standard errors from none."""
FOLLOWED_RATIO = 0.25
"""Part of the proxy's rise that the truth must follow."""


class Alarm(enum.Enum):
    """What the monitor may find."""

    TRUTH_FALLS = "truth-falls"
    EXPLOITS = "exploits"
    REPETITION = "repetition"
    LENGTH = "length"
    COLLAPSE = "collapse"


@dataclass(frozen=True, slots=True)
class Observation:
    """What the monitor sees of one judged answer."""

    reward: float
    proxy: float
    """The value that training raises."""
    truth: float | None
    """The stricter value that training does not see, None where there is none."""
    num_tokens: int
    repeat_ratio: float
    """Share of repeated n-grams."""
    is_exploit: bool
    """It looks like a known trick."""


@dataclass(frozen=True, slots=True)
class Block:
    """Means over one window."""

    proxy: float
    truth: float | None
    gap_error: float
    """Standard error of the mean of proxy - truth."""
    num_tokens: float
    repeat_ratio: float
    exploit_ratio: float
    reward_std: float


@dataclass(frozen=True, slots=True)
class Finding:
    """An alarm, with the numbers that raised it."""

    alarm: Alarm
    evidence: str


class HackingMonitor:
    """Collects observations; every full window yields what is wrong with it."""

    def __init__(self, config: MonitorConfig) -> None:
        self._config = config
        self._current: list[Observation] = []
        self._earlier: deque[Block] = deque(maxlen=MAX_EARLIER_BLOCKS)

    def observe(self, observation: Observation) -> tuple[Finding, ...] | None:
        """None until a window is full, then its findings, empty when all is well."""
        self._current.append(observation)
        if len(self._current) < self._config.window:
            return None
        block = summarise(self._current)
        self._current = []
        findings = tuple(find_hacking(block, self._earlier, self._config))
        self._earlier.append(block)
        return findings


def summarise(observations: Sequence[Observation]) -> Block:
    """The block of ``observations``, at least one."""
    count = len(observations)
    truths = [item.truth for item in observations if item.truth is not None]
    gaps = [item.proxy - item.truth for item in observations if item.truth is not None]
    return Block(
        proxy=sum(item.proxy for item in observations) / count,
        truth=sum(truths) / len(truths) if truths else None,
        gap_error=_std(gaps) / math.sqrt(len(gaps)) if gaps else 0.0,
        num_tokens=sum(item.num_tokens for item in observations) / count,
        repeat_ratio=sum(item.repeat_ratio for item in observations) / count,
        exploit_ratio=sum(item.is_exploit for item in observations) / count,
        reward_std=_std([item.reward for item in observations]),
    )


def find_hacking(
    block: Block, earlier: Sequence[Block], config: MonitorConfig
) -> Iterator[Finding]:
    """Everything that is wrong with ``block``, at most once a kind."""
    for before in earlier:
        if _diverges(before, block, config):
            yield Finding(
                Alarm.TRUTH_FALLS,
                f"{config.proxy or 'accuracy'} went from {before.proxy:.3f} to {block.proxy:.3f} "
                f"while {config.truth} went from {before.truth:.3f} to {block.truth:.3f}",
            )
            break
    if block.exploit_ratio > config.max_exploit_ratio:
        yield Finding(
            Alarm.EXPLOITS, f"{block.exploit_ratio:.1%} of the answers look like a known exploit"
        )
    if block.repeat_ratio > config.max_repeat_ratio:
        yield Finding(Alarm.REPETITION, f"{block.repeat_ratio:.1%} of the n-grams are repeated")
    yield from _length_finding(block, earlier, config)
    if block.reward_std < config.min_reward_std:
        yield Finding(Alarm.COLLAPSE, f"rewards differ by only {block.reward_std:.4f} (std)")


def _length_finding(
    block: Block, earlier: Sequence[Block], config: MonitorConfig
) -> Iterator[Finding]:
    """Answers that grew many times longer than in a block that earned no less."""
    no_worse = [item.num_tokens for item in earlier if block.proxy - item.proxy < config.min_change]
    shortest = min(no_worse, default=0.0)
    if config.max_length_growth and 0 < shortest < block.num_tokens / config.max_length_growth:
        yield Finding(
            Alarm.LENGTH,
            f"answers grew from {shortest:.0f} to {block.num_tokens:.0f} tokens for no more reward",
        )


def _diverges(before: Block, block: Block, config: MonitorConfig) -> bool:
    """Whether the proxy left the truth behind between two blocks."""
    if before.truth is None or block.truth is None:
        return False
    proxy_rise = block.proxy - before.proxy
    truth_rise = block.truth - before.truth
    divergence = proxy_rise - truth_rise
    noise = NUM_SIGMAS * math.hypot(before.gap_error, block.gap_error)
    return (
        divergence >= max(config.min_change, noise)
        and proxy_rise >= -FOLLOWED_RATIO * divergence
        and truth_rise <= FOLLOWED_RATIO * max(proxy_rise, 0.0)
    )


def _std(values: Sequence[float]) -> float:
    """Population standard deviation."""
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))
