"""Charts one over the other as an SVG file, both axes logarithmic."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

from matplotlib import rc_context
from matplotlib.figure import Figure

from pipelines.reports.charts import COLOURS, MARKERS


def stacked(x: Sequence[float], charts: Mapping[str, Mapping[str, Sequence[float]]], x_label: str) -> str:
    """Return the SVG of a chart for each title: its series by name over the shared ``x``."""
    figure = Figure(figsize=(7, 3 * len(charts)), layout="constrained")
    for ax, (title, series) in zip(figure.subplots(len(charts), squeeze=False)[:, 0], charts.items(), strict=True):
        for (name, y), colour, marker in zip(series.items(), COLOURS, MARKERS, strict=False):
            ax.loglog(x, y, color=colour, marker=marker, label=name)
        ax.set(title=title, xlabel=x_label)
        ax.grid(alpha=0.4)
        ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    out = io.StringIO()
    with rc_context({"svg.fonttype": "none"}):  # text, not the outline of each letter, which is twenty times as long
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()
