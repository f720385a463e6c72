"""How the plots of a report look, and how one is drawn without any display.

Every plot comes in a light and a dark theme, so that the page can follow the reader's setting.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

_SIZE_INCHES = (6.6, 4.1)
_PNG_DPI = 160
_MAX_MARKS = 40
"""More points than this are drawn as a bare line."""

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


def render_svg(plot: Plot, theme: Theme) -> bytes:
    """``plot`` as SVG with its text as paths, the same bytes for the same values."""
    return _render(plot, theme, "svg")


def render_png(plot: Plot, theme: Theme = LIGHT) -> bytes:
    """``plot`` as PNG."""
    return _render(plot, theme, "png")


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


def title(axes: Axes, theme: Theme, seen: str) -> None:
    """Say above the plot what is seen in it."""
    axes.set_title(seen, loc="left", color=theme.text, fontsize=13.5, fontweight="bold", pad=12)


def legend(axes: Axes, theme: Theme, location: str = "best") -> None:
    """Name the series, without a frame."""
    axes.legend(loc=location, frameon=False, labelcolor=theme.text, fontsize=11)


def step_axis(axes: Axes) -> None:
    """Policy steps along the bottom, whole numbers only."""
    axes.set_xlabel("training step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def line(
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
