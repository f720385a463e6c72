"""The plots of a report, drawn with matplotlib without any display.

Each title says what is seen, each axis has its unit, and every plot comes in a light and a dark
theme so that the page can follow the reader's setting.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from deploy.report_data import HeldOut, ReportData
from deploy.run_analysis import series

_SIZE_INCHES = (6.6, 4.1)
_PNG_DPI = 160
_MAX_MARKS = 40
"""More points than this are drawn as a bare line."""
_SAME = 0.005

Points = Sequence[tuple[int, float]]


@dataclass(frozen=True, slots=True)
class Theme:
    """Colours of one theme; the four series colours are told apart by lightness too."""

    name: str
    background: str
    text: str
    muted: str
    grid: str
    series: tuple[str, str, str, str]


LIGHT = Theme(
    "light",
    "#ffffff",
    "#1c2530",
    "#5c6773",
    "#e4e8ec",
    ("#0f62a8", "#d9622b", "#2a8f6d", "#8a5fb0"),
)
DARK = Theme(
    "dark", "#161b22", "#e6eaef", "#9aa5b1", "#2b333d", ("#62aef0", "#f39a6b", "#5cc9a3", "#c29be6")
)


@dataclass(frozen=True, slots=True)
class Plot:
    """One plot: file name, text for readers who cannot see it, and how it is drawn."""

    name: str
    description: str
    draw: Callable[[Axes, Theme], None]


def report_plots(data: ReportData) -> list[Plot]:
    """The plots that ``data`` has values for, in the order of the page."""
    candidates = (
        (bool(_rewards(data)), "reward", "Mean reward of each training batch", _draw_reward),
        (bool(_accuracies(data)), "pass-at-1", "Share of right answers by step", _draw_pass),
        (bool(_lengths(data)), "response-length", "Mean response length by step", _draw_length),
        (bool(data.lags), "policy-lag", "Trained tokens by policy lag", _draw_lag),
        (len(data.rates) > 1, "tokens-per-second", "Tokens sampled a second", _draw_rate),
        (bool(data.times), "idle-share", "Time each role worked and waited", _draw_idle),
    )
    return [
        Plot(name, description, _with(draw, data))
        for has_values, name, description, draw in candidates
        if has_values
    ]


def render_svg(plot: Plot, theme: Theme) -> bytes:
    """``plot`` as SVG with its text as paths, the same bytes for the same values."""
    return _render(plot, theme, "svg")


def render_png(plot: Plot, theme: Theme = LIGHT) -> bytes:
    """``plot`` as PNG."""
    return _render(plot, theme, "png")


def _with(
    draw: Callable[[Axes, Theme, ReportData], None], data: ReportData
) -> Callable[[Axes, Theme], None]:
    return lambda axes, theme: draw(axes, theme, data)


def _render(plot: Plot, theme: Theme, kind: str) -> bytes:
    with mpl.rc_context({"font.size": 12, "svg.hashsalt": plot.name, "svg.fonttype": "path"}):
        figure = Figure(figsize=_SIZE_INCHES, facecolor=theme.background)
        figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.1)
        axes = figure.add_subplot()
        _style(axes, theme)
        plot.draw(axes, theme)
        buffer = io.BytesIO()
        metadata = {"Date": None} if kind == "svg" else {}
        figure.savefig(buffer, format=kind, dpi=_PNG_DPI, metadata=metadata)
    return buffer.getvalue()


def _style(axes: Axes, theme: Theme) -> None:
    axes.set_facecolor(theme.background)
    axes.grid(axis="y", color=theme.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=theme.muted, length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(theme.grid)
    axes.xaxis.label.set_color(theme.muted)
    axes.yaxis.label.set_color(theme.muted)


def _title(axes: Axes, theme: Theme, seen: str) -> None:
    axes.set_title(seen, loc="left", color=theme.text, fontsize=13.5, fontweight="bold", pad=12)


def _legend(axes: Axes, theme: Theme, location: str = "best") -> None:
    axes.legend(loc=location, frameon=False, labelcolor=theme.text, fontsize=11)


def _step_axis(axes: Axes) -> None:
    axes.set_xlabel("training step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _rewards(data: ReportData) -> Points:
    return series(data.steps, lambda step: step.reward_mean)


def _accuracies(data: ReportData) -> Points:
    return series(data.steps, lambda step: step.accuracy_mean)


def _lengths(data: ReportData) -> Points:
    return series(data.steps, lambda step: step.response_length_mean)


def _line(
    axes: Axes, theme: Theme, points: Points, label: str, colour: int, *, dashed: bool = False
) -> None:
    """Draw ``points``, with a mark on each while they are few; no points draw nothing."""
    if not points:
        return
    axes.plot(
        [x for x, _ in points],
        [y for _, y in points],
        color=theme.series[colour],
        label=label,
        linewidth=1.6 if dashed else 2.0,
        linestyle=(0, (4, 2)) if dashed else "-",
        marker="o" if len(points) <= _MAX_MARKS and not dashed else "",
        markersize=3.5,
    )


def _draw_reward(axes: Axes, theme: Theme, data: ReportData) -> None:
    rewards = _rewards(data)
    _line(axes, theme, rewards, "reward", 0)
    _line(axes, theme, _accuracies(data), "accuracy part", 2)
    _line(axes, theme, series(data.steps, lambda step: step.format_mean), "format part", 3)
    first, last = rewards[0][1], rewards[-1][1]
    _title(axes, theme, f"Reward {_moves(first, last)} from {first:.2f} to {last:.2f}")
    axes.set_ylabel("mean of the batch")
    axes.set_ylim(bottom=min(0.0, *(value for _, value in rewards)))
    _step_axis(axes)
    _legend(axes, theme)


def _draw_pass(axes: Axes, theme: Theme, data: ReportData) -> None:
    accuracy = _accuracies(data)
    _line(axes, theme, accuracy, "training batches", 0)
    for position, (x, point) in enumerate(_held_out_points(data)):
        label = "held-out problems, 95 % interval" if position == 0 else None
        _error_bar(axes, theme, x, point, label)
    subject, first, last = "pass@1 in training", accuracy[0][1], accuracy[-1][1]
    if data.before and data.after:
        subject = "Held-out pass@1"
        first, last = data.before.pass_at_1, data.after.pass_at_1
    _title(axes, theme, f"{subject} {_moves(first, last)} from {first:.0%} to {last:.0%}")
    axes.set_ylabel("share of right answers")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_ylim(0, 1.03)
    _step_axis(axes)
    _legend(axes, theme, "lower right")


def _held_out_points(data: ReportData) -> list[tuple[float, HeldOut]]:
    """Held-out results at the policy steps they belong to: the first, and one past the last."""
    points: list[tuple[float, HeldOut]] = []
    if data.before is not None:
        points.append((data.steps[0].policy_step, data.before))
    if data.after is not None:
        points.append((data.steps[-1].policy_step + 1, data.after))
    return points


def _error_bar(axes: Axes, theme: Theme, x: float, point: HeldOut, label: str | None) -> None:
    low, high = point.ci95
    axes.errorbar(
        [x],
        [point.pass_at_1],
        yerr=[[max(0.0, point.pass_at_1 - low)], [max(0.0, high - point.pass_at_1)]],
        fmt="D",
        color=theme.series[1],
        markersize=7,
        capsize=4,
        linewidth=2,
        zorder=5,
        label=label,
    )


def _draw_length(axes: Axes, theme: Theme, data: ReportData) -> None:
    lengths = _lengths(data)
    finished = series(data.steps, lambda step: step.response_length_finished_mean)
    _line(axes, theme, lengths, "all answers", 0)
    _line(axes, theme, finished, "answers that ended by themselves", 1, dashed=True)
    first, last = lengths[0][1], lengths[-1][1]
    change = "grow" if last >= first else "shrink"
    _title(axes, theme, f"Answers {change} from {first:.0f} to {last:.0f} tokens")
    axes.set_ylabel("mean response length (tokens)")
    axes.set_ylim(bottom=0)
    _step_axis(axes)
    _legend(axes, theme, "lower right")


def _draw_lag(axes: Axes, theme: Theme, data: ReportData) -> None:
    total = max(1, sum(data.lags.values()))
    highest = max(*data.lags, data.max_policy_lag or 0)
    shares = [data.lags.get(lag, 0) / total for lag in range(highest + 1)]
    bars = axes.bar(range(highest + 1), shares, color=theme.series[0], width=0.62)
    labels = [f"{share:.0%}" if share >= 0.005 or not share else "<1%" for share in shares]
    axes.bar_label(bars, labels, padding=3, color=theme.text)
    mean = sum(lag * count for lag, count in data.lags.items()) / total
    seen = f"No trained token is older than {max(data.lags)} steps"
    _title(axes, theme, f"{seen} (mean {mean:.2f})")
    if data.max_policy_lag is not None:
        axes.axvline(
            data.max_policy_lag + 0.5, color=theme.series[1], linewidth=1.6, linestyle="--"
        )
        axes.text(
            data.max_policy_lag + 0.46,
            0.97,
            f"bound {data.max_policy_lag} ",
            color=theme.series[1],
            ha="right",
            va="top",
            transform=axes.get_xaxis_transform(),
        )
    axes.set_xlabel("policy lag (training steps)")
    axes.set_ylabel("share of trained tokens")
    axes.set_xlim(-0.6, highest + 0.75)
    axes.set_ylim(0, max(shares) * 1.18)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def _draw_rate(axes: Axes, theme: Theme, data: ReportData) -> None:
    times = [time for time, _ in data.rates]
    rates = [rate for _, rate in data.rates]
    axes.fill_between(times, rates, color=theme.series[0], alpha=0.18, linewidth=0)
    axes.plot(times, rates, color=theme.series[0], linewidth=2)
    mean = data.tokens_per_second
    axes.axhline(mean, color=theme.series[1], linewidth=1.4, linestyle="--", label="mean")
    _title(axes, theme, f"Actors sample {mean:,.0f} tokens a second")
    axes.set_xlabel("time since training began (s)")
    axes.set_ylabel("completion tokens per second")
    axes.set_xlim(left=min(times))
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    _legend(axes, theme, "lower right")


def _draw_idle(axes: Axes, theme: Theme, data: ReportData) -> None:
    times: Mapping[str, float] = {
        role: time.busy_ratio
        for role, time in sorted(data.times.items(), key=lambda item: item[1].busy_ratio)
    }
    roles = list(times)
    busy = list(times.values())
    axes.barh(roles, busy, color=theme.series[0], height=0.58)
    idle = [1.0 - share for share in busy]
    axes.barh(roles, idle, left=busy, color=theme.grid, height=0.58)
    for position, share in enumerate(busy):
        axes.text(1.02, position, f"{1 - share:.0%} idle", color=theme.text, va="center")
    busiest = roles[-1]
    _title(axes, theme, f"The {busiest} is busiest: idle {1 - times[busiest]:.0%} of the time")
    axes.set_xlabel("share of training time: working (coloured), waiting (grey)")
    axes.set_xlim(0, 1.2)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1.0])
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.grid(visible=False)
    axes.tick_params(axis="y", colors=theme.text)


def _moves(first: float, last: float) -> str:
    """``rises``, ``falls`` or ``stays`` between two values."""
    if abs(last - first) < _SAME:
        return "stays"
    return "rises" if last > first else "falls"
