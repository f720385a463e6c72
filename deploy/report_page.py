"""The report as HTML: one file, no script, nothing loaded from elsewhere.

Everything that a model wrote is escaped: a completion is text on this page, never markup.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from deploy.derived_numbers import format_bytes
from deploy.progress_state import format_duration
from deploy.report_data import Answer, AnswerPair, ReportData
from deploy.run_analysis import series

_STYLE = """
:root { color-scheme: light dark; --back: #f6f8fa; --card: #ffffff; --text: #1c2530;
  --muted: #5c6773; --line: #dde3e8; --accent: #0f62a8; --good: #1d7a55; --bad: #b3401a; }
@media (prefers-color-scheme: dark) { :root { --back: #0d1117; --card: #161b22; --text: #e6eaef;
  --muted: #9aa5b1; --line: #2b333d; --accent: #62aef0; --good: #5cc9a3; --bad: #f39a6b; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--text);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 24px 16px 64px; }
h1 { font-size: 1.7rem; margin: 0 0 4px; } h2 { font-size: 1.2rem; margin: 36px 0 12px; }
p.lead, p.note { color: var(--muted); margin: 0 0 16px; } p.note { font-size: .9rem; }
.grid { display: grid; gap: 14px; grid-template-columns: repeat(3, 1fr); }
@media (max-width: 640px) { .grid { grid-template-columns: repeat(2, 1fr); } }
.grid.plots { grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 14px 16px; min-width: 0; }
.card b { display: block; font-size: 1.3rem; line-height: 1.4; white-space: nowrap; }
.card span { color: var(--muted); font-size: .87rem; }
figure { margin: 0; padding: 8px; } figure img { width: 100%; height: auto; display: block; }
.pair { display: grid; gap: 14px; margin-bottom: 14px;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 360px), 1fr)); }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: 8px 0 0;
  font: .88rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
pre .prompt { color: var(--muted); }
.right { color: var(--good); } .wrong { color: var(--bad); }
table { border-collapse: collapse; width: 100%; } td, th { text-align: left; padding: 6px 10px;
  border-bottom: 1px solid var(--line); } td.number { text-align: right;
  font-variant-numeric: tabular-nums; } tr.total td { font-weight: 600; }
"""


@dataclass(frozen=True, slots=True)
class FigureImages:
    """One plot in both themes as SVG."""

    description: str
    light: bytes
    dark: bytes


def report_page(data: ReportData, figures: Sequence[FigureImages]) -> str:
    """The whole page."""
    sections = [
        f"<h1>{escape(data.title)}</h1>",
        f'<p class="lead">{escape(_lead(data))}</p>',
        '<div class="grid">' + "".join(_card(*item) for item in headline_numbers(data)) + "</div>",
        "<h2>How it went</h2>",
        '<div class="grid plots">' + "".join(map(_figure, figures)) + "</div>",
        _pairs_section(data.pairs, data.pairs_note),
        _conservation_section(data),
        _stages_section(data),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>headrace: {escape(data.title)}</title><style>{_STYLE}</style></head>\n"
        f"<body><main>\n{chr(10).join(filter(None, sections))}\n</main></body></html>\n"
    )


def headline_numbers(data: ReportData) -> list[tuple[str, str]]:
    """(value, what it is) of the figures that stand on top."""
    numbers: list[tuple[str, str]] = []
    if data.before and data.after:
        arrow = f"{data.before.pass_at_1:.1%} → {data.after.pass_at_1:.1%}"
        numbers.append((arrow, "pass@1 on held-out problems"))
        lengths = f"{data.before.mean_length:.1f} → {data.after.mean_length:.1f}"
        numbers.append((lengths, "tokens in a held-out answer"))
    elif accuracy := series(data.steps, lambda step: step.accuracy_mean):
        arrow = f"{accuracy[0][1]:.1%} → {accuracy[-1][1]:.1%}"
        numbers.append((arrow, "right answers in training"))
    for key, value in data.summary.items():
        if key.startswith("maj_at_") and key.endswith("_after"):
            samples = key.removeprefix("maj_at_").removesuffix("_after")
            numbers.append((f"{value:.1%}", f"majority vote of {samples} answers, after"))
    lag_max = max(step.lag_max for step in data.steps)
    bound = "" if data.max_policy_lag is None else f", the bound is {data.max_policy_lag}"
    numbers.append((str(lag_max), f"largest policy lag, in steps{bound}"))
    numbers.append((f"{data.tokens_per_second:,.0f}", "tokens sampled per second"))
    if "peak_memory_bytes" in data.summary:
        memory = format_bytes(data.summary["peak_memory_bytes"])
        numbers.append((memory, "memory of all processes at the peak"))
    return numbers


def _lead(data: ReportData) -> str:
    parts = [f"{len(data.steps)} training steps"]
    if "wall_seconds" in data.summary:
        parts.append(f"{format_duration(data.summary['wall_seconds'])} minutes in all")
    if "engine" in data.summary:
        parts.append(f"sampled with {data.summary['engine']}")
    return ", ".join(parts) + "."


def _card(value: str, label: str) -> str:
    return f'<div class="card"><b>{escape(value)}</b><span>{escape(label)}</span></div>'


def _figure(figure: FigureImages) -> str:
    light, dark = (
        "data:image/svg+xml;base64," + base64.b64encode(image).decode()
        for image in (figure.light, figure.dark)
    )
    return (
        '<figure class="card"><picture>'
        f'<source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img src="{light}" alt="{escape(figure.description)}"></picture></figure>'
    )


def _pairs_section(pairs: Iterable[AnswerPair], note: str) -> str:
    rows = [f'<div class="pair">{_answer(pair.early)}{_answer(pair.late)}</div>' for pair in pairs]
    if not rows:
        return ""
    return f'<h2>What the model wrote</h2><p class="note">{escape(note)}</p>{"".join(rows)}'


def _answer(answer: Answer) -> str:
    kind = "right" if answer.accuracy else "wrong"
    verdict = f'<strong class="{kind}">{kind}</strong>' if answer.accuracy is not None else ""
    facts = f"{answer.when}, {answer.num_tokens} tokens"
    if answer.reward is not None:
        facts += f", reward {answer.reward:g}"
    return (
        f'<div class="card"><span>{escape(facts)}</span> {verdict}'
        f'<pre><span class="prompt">{escape(answer.prompt)}</span>'
        f"{escape(answer.completion)}</pre></div>"
    )


def _conservation_section(data: ReportData) -> str:
    groups = data.status.get("groups")
    if not groups:
        return ""
    parts = ("trained", "evicted", "dead_lettered", "leased", "pending")
    admitted = int(groups.get("admitted", 0))
    difference = admitted - sum(int(groups.get(name, 0)) for name in parts)
    reasons = data.status.get("evicted") or {}
    why = ", ".join(f"{reason} {count}" for reason, count in sorted(reasons.items()))
    notes = {"evicted": why}
    rows = [
        _row("admitted", admitted, ""),
        *(_row(p, groups.get(p, 0), notes.get(p, "")) for p in parts),
    ]
    rows.append(_row("unaccounted for", difference, "must be 0", total=True))
    return (
        "<h2>Where every group went</h2>"
        '<p class="note">A rollout group that was admitted is trained on, evicted for a named '
        "reason, dead-lettered, or still in flight: none is lost, none counted twice.</p>"
        f'<div class="card"><table>{"".join(rows)}</table></div>'
    )


def _row(name: str, count: int, note: str, *, total: bool = False) -> str:
    kind = ' class="total"' if total else ""
    label = escape(name.replace("_", "-"))
    return (
        f'<tr{kind}><td>{label}</td><td class="number">{int(count):,}</td>'
        f"<td>{escape(note)}</td></tr>"
    )


def _stages_section(data: ReportData) -> str:
    seconds = data.summary.get("stage_seconds")
    if not seconds:
        return ""
    rows = "".join(
        f'<tr><td>{escape(str(name))}</td><td class="number">{value:,.1f} s</td></tr>'
        for name, value in seconds.items()
    )
    return f'<h2>Where the time went</h2><div class="card"><table>{rows}</table></div>'
