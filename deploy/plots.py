"""The plots of a report: what each shows and what its title says about it.

Each title says what is seen, each axis has its unit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from deploy.plot_style import Plot, Points, Theme, legend, line, step_axis, title
from deploy.report_data import HeldOut, ReportData
from deploy.run_analysis import series

_SAME = 0.005
"""A smaller change is none."""


def report_plots(data: ReportData) -> list[Plot]:
    """The plots that ``data`` has values for, in the order of the page."""
    candidates = (
        (bool(_rewards(data)), "reward", "Mean reward of each training batch", _draw_reward),
        (bool(_accuracies(data)), "pass-at-1", "Share of right answers by step", _draw_pass),
        (bool(_lengths(data)), "response-length", "Mean response length by step", _draw_length),
        (bool(_entropies(data)), "entropy", "Mean token entropy by step", _draw_entropy),
        (bool(_sampler_kl(data)), "sampler-kl", "Policy against sampler by step", _draw_sampler_kl),
        (bool(data.lags), "policy-lag", "Trained tokens by policy lag", _draw_lag),
        (len(data.rates) > 1, "tokens-per-second", "Tokens sampled a second", _draw_rate),
        (bool(data.times), "idle-share", "Time each role worked and waited", _draw_idle),
    )
    return [
        Plot(name, description, _with(draw, data))
        for has_values, name, description, draw in candidates
        if has_values
    ]


def _with(
    draw: Callable[[Axes, Theme, ReportData], None], data: ReportData
) -> Callable[[Axes, Theme], None]:
    return lambda axes, theme: draw(axes, theme, data)


def _rewards(data: ReportData) -> Points:
    return series(data.steps, lambda step: step.reward_mean)


def _accuracies(data: ReportData) -> Points:
    return series(data.steps, lambda step: step.accuracy_mean)


def _lengths(data: ReportData) -> Points:
    return series(data.steps, lambda step: step.response_length_mean)


def _entropies(data: ReportData) -> Points:
    return series(data.steps, lambda step: step.entropy)


def _sampler_kl(data: ReportData) -> Points:
    return series(data.steps, lambda step: step.kl_behavior)


def _draw_reward(axes: Axes, theme: Theme, data: ReportData) -> None:
    rewards = _rewards(data)
    line(axes, theme, rewards, "reward", 0)
    line(axes, theme, _accuracies(data), "accuracy part", 2)
    line(axes, theme, series(data.steps, lambda step: step.format_mean), "format part", 3)
    first, last = rewards[0][1], rewards[-1][1]
    title(axes, theme, f"Reward {_moves(first, last)} from {first:.2f} to {last:.2f}")
    axes.set_ylabel("mean of the batch")
    axes.set_ylim(bottom=min(0.0, *(value for _, value in rewards)))
    step_axis(axes)
    legend(axes, theme)


def _draw_pass(axes: Axes, theme: Theme, data: ReportData) -> None:
    accuracy = _accuracies(data)
    line(axes, theme, accuracy, "training batches", 0)
    for position, (x, point) in enumerate(_held_out_points(data)):
        label = "held-out problems, 95 % interval" if position == 0 else None
        _error_bar(axes, theme, x, point, label)
    subject, first, last = "pass@1 in training", accuracy[0][1], accuracy[-1][1]
    if data.before and data.after:
        subject = "Held-out pass@1"
        first, last = data.before.pass_at_1, data.after.pass_at_1
    title(axes, theme, f"{subject} {_moves(first, last)} from {first:.0%} to {last:.0%}")
    axes.set_ylabel("share of right answers")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_ylim(0, 1.03)
    step_axis(axes)
    legend(axes, theme, "lower right")


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
    line(axes, theme, lengths, "all answers", 0)
    line(axes, theme, finished, "answers that ended by themselves", 1, dashed=True)
    first, last = lengths[0][1], lengths[-1][1]
    change = "grow" if last >= first else "shrink"
    title(axes, theme, f"Answers {change} from {first:.0f} to {last:.0f} tokens")
    axes.set_ylabel("mean response length (tokens)")
    axes.set_ylim(bottom=0)
    step_axis(axes)
    legend(axes, theme, "lower right")


def _draw_entropy(axes: Axes, theme: Theme, data: ReportData) -> None:
    entropies = _entropies(data)
    line(axes, theme, entropies, "entropy", 0)
    first, last = entropies[0][1], entropies[-1][1]
    title(axes, theme, f"Entropy {_moves(first, last)} from {first:.2f} to {last:.2f} nats")
    axes.set_ylabel("mean token entropy (nats)")
    axes.set_ylim(bottom=0)
    step_axis(axes)


def _draw_sampler_kl(axes: Axes, theme: Theme, data: ReportData) -> None:
    everywhere = _sampler_kl(data)
    fresh = series(data.steps, lambda step: step.kl_behavior_lag0)
    line(axes, theme, everywhere, "all trained tokens", 0)
    line(axes, theme, fresh, "tokens of the newest policy", 1, dashed=True)
    highest = max(value for _, value in everywhere)
    title(axes, theme, f"Policy and sampler stay within {highest:.2g} nats")
    axes.set_ylabel("k3 KL, sampler against policy (nats)")
    axes.set_ylim(bottom=0)
    step_axis(axes)
    legend(axes, theme)


def _draw_lag(axes: Axes, theme: Theme, data: ReportData) -> None:
    total = max(1, sum(data.lags.values()))
    highest = max(*data.lags, data.max_policy_lag or 0)
    shares = [data.lags.get(lag, 0) / total for lag in range(highest + 1)]
    bars = axes.bar(range(highest + 1), shares, color=theme.series[0], width=0.62)
    labels = [f"{share:.0%}" if share >= 0.005 or not share else "<1%" for share in shares]
    axes.bar_label(bars, labels, padding=3, color=theme.text)
    mean = sum(lag * count for lag, count in data.lags.items()) / total
    seen = f"No trained token is older than {max(data.lags)} steps"
    title(axes, theme, f"{seen} (mean {mean:.2f})")
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
    colour = theme.series[1]
    axes.axhline(mean, color=colour, linewidth=1.4, linestyle="--")
    across = axes.get_yaxis_transform()
    axes.text(1.0, mean, "mean ", color=colour, ha="right", va="bottom", transform=across)
    title(axes, theme, f"Actors sample {mean:,.0f} tokens a second")
    axes.set_xlabel("time since training began (s)")
    axes.set_ylabel("completion tokens per second")
    axes.set_xlim(left=min(times))
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")


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
    title(axes, theme, f"The {busiest} is busiest: idle {1 - times[busiest]:.0%} of the time")
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
