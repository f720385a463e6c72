"""A replayed step as one HTML page: every answer, each token coloured by how hard it pulls.

No script, nothing loaded from elsewhere; what a model wrote is escaped.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from learner.recorder.token_rows import TokenRow

if TYPE_CHECKING:
    from learner.recorder.replay_report import Replayed, ReplayedRollout

MAX_ROLLOUTS = 64
"""Answers on the page, those that pull hardest; the JSON Lines have all."""

_STYLE = """
:root { color-scheme: light dark; --back: #f6f8fa; --card: #fff; --text: #1c2530;
  --muted: #5c6773; --line: #dde3e8; }
@media (prefers-color-scheme: dark) { :root { --back: #0d1117; --card: #161b22; --text: #e6eaef;
  --muted: #9aa5b1; --line: #2b333d; } }
body { margin: 0; background: var(--back); color: var(--text);
  font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 24px 16px 64px; }
h1 { font-size: 1.5rem; } p { color: var(--muted); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 12px 16px; margin-bottom: 14px; }
.card span.facts { color: var(--muted); font-size: .87rem; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: 8px 0 0;
  font: .9rem/1.7 ui-monospace, Menlo, Consolas, monospace; }
pre i { color: var(--muted); font-style: normal; } pre b { font-weight: inherit;
  border-radius: 3px; } pre b.clipped { text-decoration: underline dotted; }
"""


def replay_page(replayed: Replayed, rollouts: Sequence[ReplayedRollout]) -> str:
    """The whole page."""
    largest = max((abs(row.gradient or 0.0) for row in replayed.rows), default=0.0)
    cards = "\n".join(_card(item, largest) for item in rollouts[:MAX_ROLLOUTS])
    shown = min(len(rollouts), MAX_ROLLOUTS)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>headrace: step {replayed.policy_step}</title><style>{_STYLE}</style></head>\n"
        f"<body><main><h1>Step {replayed.policy_step}, token by token</h1>\n"
        f"<p>Loss {replayed.loss:.6g}, gradient norm {replayed.grad_norm:.6g}. {shown} of "
        f"{len(rollouts)} answers, those that pull hardest first. Green tokens become likelier, "
        "red ones less likely; the stronger the colour, the larger the gradient of the loss in "
        "the token's log-probability. Dotted: clipped. Rest the pointer on a token for its "
        f"numbers.</p>\n{cards}\n</main></body></html>\n"
    )


def _card(item: ReplayedRollout, largest: float) -> str:
    facts = [f"group {item.group_id} answer {item.index}", f"{item.pull_share:.1%} of the pull"]
    if item.item is not None:
        verdict = item.item.verdict
        reward = "none" if verdict.reward is None else f"{verdict.reward:g}"
        parts = ", ".join(f"{part.name} {part.value:g}" for part in verdict.components)
        facts += [f"reward {reward}" + (f" ({parts})" if parts else "")]
    if item.advantage is not None:
        facts += [f"advantage {item.advantage:+.3g}"]
    facts += [f"{item.sums.num_tokens} tokens", f"largest ratio {item.sums.largest_ratio:.4g}"]
    tokens = "".join(_token(row, largest) for row in item.rows if row.visit == 0)
    return (
        f'<div class="card"><span class="facts">{escape(" · ".join(facts))}</span>'
        f"<pre><i>{escape(item.prompt)}</i>{tokens}</pre></div>"
    )


def _token(row: TokenRow, largest: float) -> str:
    gradient = row.gradient or 0.0
    strength = min(1.0, abs(gradient) / largest) * 0.75 if largest else 0.0
    colour = "38,160,90" if gradient < 0 else "214,69,40"
    style = f' style="background:rgba({colour},{strength:.3f})"' if strength >= 0.005 else ""
    kind = ' class="clipped"' if row.clipped or row.capped else ""
    return f'<b{kind}{style} title="{escape(_numbers(row))}">{escape(row.text)}</b>'


def _numbers(row: TokenRow) -> str:
    values = (
        ("gradient", row.gradient),
        ("advantage", row.advantage),
        ("log-prob now", row.policy_logprob),
        ("when sampled", row.behavior_logprob),
        ("reference", row.reference_logprob),
        ("ratio", row.ratio),
        ("weight", row.weight),
        ("entropy", row.entropy),
    )
    named = [f"{name} {value:.4g}" for name, value in values if value is not None]
    return ", ".join([f"token {row.position}", *named, f"lag {row.lag}"])
