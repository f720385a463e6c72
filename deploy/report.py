"""``headrace report DIR``: one static, self-contained page about a run or a demo."""

from __future__ import annotations

from pathlib import Path

import click

from common.files import write_atomically


@click.command("report")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, exists=True))
def report(folder: Path) -> None:
    """Write report.html and plots/*.png into the folder of a run or of a demo."""
    click.echo(write_report(folder))


def write_report(folder: Path) -> Path:
    """Write the report of ``folder`` into it and return the page's path.

    Raises :class:`common.errors.FatalError` when ``folder`` holds no training step.
    """
    from deploy.plot_style import DARK, LIGHT, render_png, render_svg
    from deploy.plots import report_plots
    from deploy.report_data import read_report
    from deploy.report_page import FigureImages, report_page

    data = read_report(folder)
    plots = report_plots(data)
    (folder / "plots").mkdir(exist_ok=True)
    for plot in plots:
        write_atomically(folder / "plots" / f"{plot.name}.png", render_png(plot))
    figures = [
        FigureImages(plot.description, render_svg(plot, LIGHT), render_svg(plot, DARK))
        for plot in plots
    ]
    page = folder / "report.html"
    write_atomically(page, report_page(data, figures).encode())
    return page
