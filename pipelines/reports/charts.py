"""Charts of the reports, drawn by matplotlib as inline SVG: no script, no request, text as text.

Text and axes take the colours of the page, which may be light or dark. Marks show their values on hover, and series
differ in shape as well as in colour.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup, escape

Row = Mapping[str, Any]
"""``system``, ``metric``, ``group``, ``value``, ``low`` and ``high`` (ends of a 95% interval), ``users``."""
COLOURS = ("#2f6fb0", "#c2255c", "#2b8a3e", "#d9730d", "#7048c8", "#0c8599", "#8a5a44", "#b7791f", "#5c940d", "#7a8594")
MARKERS = "osD^pvhXP*"
OURS, OTHER, INK, GRID = COLOURS[1], COLOURS[-1], "#010203", "#010204"
"""``INK`` and ``GRID`` stand for the colours of the page."""
POINTS = 4000
"""Number of points drawn at most, unless there are more marked points."""
NAMED = 8
"""Number of groups with a colour of their own at most."""
REST = "other"
_STYLE: Any = {
    "svg.fonttype": "none", "svg.hashsalt": "charts", "font.sans-serif": ["DejaVu Sans"], "font.size": 9,
    "text.color": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK, "axes.edgecolor": GRID,
    "axes.grid": True, "grid.color": GRID, "axes.axisbelow": True, "axes.spines.top": False,
    "axes.spines.right": False, "legend.frameon": False, "path.simplify": False, "text.parse_math": False,
}  # fmt: skip


@dataclass(frozen=True)
class Series:
    """A named line of points, with an interval around each ``y`` where ``low`` and ``high`` are given."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


def intervals(title: str, rows: Sequence[Row], *, ours: str | None = None) -> Markup:
    """Draw values with 95% intervals: a line for each system, a panel with its own scale for each metric."""
    systems, metrics = ([*dict.fromkeys(row[key] for row in rows)] for key in ("system", "metric"))
    with _chart(title, height=0.7 + 0.24 * len(systems), columns=max(1, len(metrics))) as (svg, axes):
        for ax, metric in zip(axes, metrics, strict=False):
            ax.set_title(metric_name(metric), fontsize=9)
            ax.grid(axis="y", visible=False)
            for row in (row for row in rows if row["metric"] == metric):
                own = row["system"] == ours
                style = {"color": OURS, "marker": "D"} if own else {"color": OTHER, "marker": "o"}
                _point(
                    ax, svg, row["value"], systems.index(row["system"]), row, row["system"], horizontal=True, **style
                )
        for ax in axes:
            ax.set_ylim(max(1, len(systems)) - 0.5, -0.5)
            ax.set_yticks(range(len(systems)), [""] * len(systems))
        axes[0].set_yticks(range(len(systems)), [_short(system) for system in systems])
        for label, system in zip(axes[0].get_yticklabels(), systems, strict=True):
            label.set_fontweight("bold" if system == ours else "normal")
    return svg.markup


def grouped(title: str, rows: Sequence[Row], names: Mapping[str, str]) -> Markup:
    """Draw values with 95% intervals by group, systems side by side; ``names`` are the groups' labels, in order."""
    systems, groups = [*dict.fromkeys(row["system"] for row in rows)], list(names)
    with _chart(title, height=3.0) as (svg, (ax,)):
        for row in rows:
            at = systems.index(row["system"])
            x = groups.index(row["group"]) + 0.76 * ((at + 0.5) / len(systems) - 0.5)
            _point(ax, svg, x, row["value"], row, f"{row['system']}, {names[row['group']]}", **_look(at, row["system"]))
        ax.set_xticks(range(len(groups)), [names[group] for group in groups])
        ax.grid(axis="x", visible=False)
        ax.set_ylim(bottom=0)
        _legend(ax)
    return svg.markup


def lines(title: str, series: Sequence[Series], x_label: str, *, diagonal: bool = False) -> Markup:
    """Draw lines over a shared x axis, or points with intervals; ``diagonal`` adds the line y = x.

    Returns an empty text without points.
    """
    series = [one for one in series if len(one.x)]
    if not series:
        return Markup("")
    with _chart(title, height=3.0 if not diagonal else 4.2) as (svg, (ax,)):
        for at, one in enumerate(series):
            look = _look(at, one.name)
            if one.low is None or one.high is None:
                style = {"markersize": 3.5 if len(one.x) <= 50 else 0, "linestyle": ("-", "--")[at % 2]}
                (line,) = ax.plot(one.x, one.y, linewidth=1.5, **style, **look)
                svg.title(line, f"{one.name}: {one.y[-1]:.4f} at {x_label} {one.x[-1]:g}")
                continue
            for x, y, low, high in zip(one.x, one.y, one.low, one.high, strict=True):
                _point(ax, svg, x, y, {"value": y, "low": low, "high": high}, f"{one.name}, {x_label} {x:.4f}", **look)
        if diagonal:
            ax.axline((0, 0), slope=1, color=OTHER, linestyle=":", linewidth=1, gid="diagonal")
            ax.set_xlim(left=0)
            ax.set_ylim(bottom=0)
        whole = all(float(x).is_integer() for one in series for x in one.x)
        ax.xaxis.get_major_locator().set_params(integer=whole)
        ax.set_xlabel(x_label)
        _legend(ax)
    return svg.markup


def scatter(title: str, x: np.ndarray, y: np.ndarray, groups: Sequence[str], marked: np.ndarray) -> Markup:
    """Draw points of a plane coloured by group, the ``marked`` ones (anchors) on top as outlined diamonds.

    The largest eight groups keep their names, all others become one. Of more than :data:`POINTS` points a sample is
    drawn, the same each time, which keeps every marked point. Both axes have the same scale.

    Raises:
        ValueError: ``x``, ``y``, ``groups`` and ``marked`` differ in length, or a coordinate is not finite.
    """
    plane, marked = np.stack([np.asarray(x, float), np.asarray(y, float)], axis=1), np.asarray(marked, bool)
    if not len(plane) == len(groups) == len(marked):
        raise ValueError(f"{len(plane)} points, {len(groups)} groups and {len(marked)} marks")
    if not np.isfinite(plane).all():
        raise ValueError("a coordinate is not finite")
    if not len(plane):
        return Markup("")
    names, member = _named(groups)
    drawn = _sample(marked)
    with _chart(title, height=5.0) as (svg, (ax,)):
        for at in np.argsort(-np.bincount(member), kind="stable"):  # the largest group is drawn first
            colour, label = COLOURS[at] if names[at] != REST else "#a9b2bd", _short(names[at])
            label = f"{label} ({np.count_nonzero(member == at):,})"
            some = drawn[(member[drawn] == at) & ~marked[drawn]]
            svg.title(ax.scatter(*plane[some].T, s=9, color=colour, linewidths=0, label=label), label)
            if (anchors := np.flatnonzero((member == at) & marked)).size:
                style = {"marker": "D", "s": 22, "facecolors": colour, "edgecolors": INK, "linewidths": 0.8}
                svg.title(ax.scatter(*plane[anchors].T, zorder=3, **style), f"{len(anchors):,} anchors: {label}")
        ax.set_aspect("equal", adjustable="datalim")
        ax.set_axis_off()
        _legend(ax, order=[*map(_short, names)])
    rest = Markup('<p class="soft">{:,} of {:,} points are drawn.</p>').format(len(drawn), len(plane))
    return svg.markup + (rest if len(drawn) < len(plane) else "")


def metric_name(metric: str) -> str:
    """Return a metric in its usual spelling: ``ndcg@10`` as NDCG@10."""
    name, at, k = metric.partition("@")
    return f"{name.upper() if name in ('ndcg', 'mrr') else name[:1].upper() + name[1:]}{at}{k}"


def project(positions: np.ndarray) -> np.ndarray:
    """Return the first two principal components, float (V, 2), of ``positions`` (V, K); missing ones are zero."""
    from sklearn.decomposition import PCA

    components, count = np.zeros((len(positions), 2)), min(2, *positions.shape)
    if count and np.ptp(positions, axis=0).any():
        solver = "covariance_eigh" if len(positions) > positions.shape[1] else "full"
        components[:, :count] = PCA(count, svd_solver=solver).fit_transform(positions)
    return components


def degree_groups(degree: np.ndarray, count: int = 4) -> list[str]:
    """Return a name such as "degree 1-2" for each node: at most ``count`` groups of about the same size, equal degrees
    in one group."""
    degree = np.asarray(degree)
    if not len(degree):
        return []
    edges = np.unique(np.quantile(degree, np.arange(1, count) / count, method="lower"))
    member = np.searchsorted(edges, degree, side="left")
    ends = {g: (degree[member == g].min(), degree[member == g].max()) for g in np.unique(member)}
    names = {g: f"degree {low}" if low == high else f"degree {low}-{high}" for g, (low, high) in ends.items()}
    return [names[g] for g in member]


class _Svg:
    """A chart being drawn: the titles of its marks, and its markup once it is complete."""

    def __init__(self) -> None:
        self.titles: list[str] = []
        self.markup = Markup("")

    def title(self, artist: Any, text: str) -> None:
        """Show ``text`` on hover over ``artist``."""
        artist.set_gid(f"title-{len(self.titles)}")
        self.titles.append(text)


@contextmanager
def _chart(title: str, height: float, columns: int = 1) -> Iterator[tuple[_Svg, Any]]:
    """Yield the axes of a figure 6.7 inches wide and ``height`` high; on exit the markup is complete."""
    import matplotlib
    from matplotlib.figure import Figure

    svg = _Svg()
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(6.7, height), layout="constrained")
        yield svg, figure.subplots(1, columns, squeeze=False)[0]
        out = io.StringIO()
        none = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(out, format="svg", transparent=True, metadata=none)
    text = re.sub(r'(?<=[xy]=")(-?\d+\.\d\d)\d*', r"\1", out.getvalue())
    text = re.sub(r'<g id="title-(\d+)">', lambda m: f"<g><title>{escape(svg.titles[int(m[1])])}</title>", text)
    text = re.sub(r' id="[A-Za-z0-9.]+_\d+"', "", text[text.index("<svg") :])
    text = text.replace(INK, "currentColor").replace(GRID, "var(--line, #dfe3e8)")
    text = re.sub(r'<svg ([^>]*?)width="\S+" height="\S+"|<svg ', r"<svg \1", text, count=1)
    svg.markup = Markup(text.replace("<svg ", f'<svg class="chart" role="img" aria-label="{escape(title)}" ', 1))


def _look(at: int, name: str) -> dict[str, Any]:
    """Return colour, marker and label of a series."""
    return {"color": COLOURS[at % len(COLOURS)], "marker": MARKERS[at % len(MARKERS)], "label": name}


def _point(ax: Any, svg: _Svg, x: float, y: float, row: Row, name: str, horizontal: bool = False, **look: Any) -> None:
    """Draw a mark with its interval and title; a legend names a series once."""
    if look.get("label") in ax.get_legend_handles_labels()[1]:
        look["label"] = None
    ends = [[row["low"]], [row["high"]]]
    drawn = ax.hlines([y], *ends, color=look["color"]) if horizontal else ax.vlines([x], *ends, color=look["color"])
    drawn.set_linewidth(1.5)
    (mark,) = ax.plot([x], [y], linestyle="", markersize=5, **look)
    svg.title(mark, f"{name}: {row['value']:.4f}, 95% interval {row['low']:.4f} to {row['high']:.4f}")


def _legend(ax: Any, order: Sequence[str] = ()) -> None:
    """Place the names of the series below the chart."""
    handles, labels = ax.get_legend_handles_labels()
    pairs = sorted(zip(handles, labels, strict=True), key=lambda pair: _place(pair[1], order))
    if pairs:
        columns = max(1, min(4, len(pairs), 100 // max(len(label) + 6 for label in labels)))
        ax.figure.legend(*zip(*pairs, strict=True), loc="outside lower center", ncols=columns, fontsize=8)


def _place(label: str, order: Sequence[str]) -> int:
    return next((at for at, name in enumerate(order) if label.rpartition(" (")[0] == name), 0)


def _named(groups: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Return the names of the largest groups in natural order, then ``REST``, and the number of each point's name."""
    own, counts = np.unique(np.asarray(groups, dtype=str), return_counts=True)
    named = own != REST
    largest = sorted(zip(-counts[named], own[named].tolist(), strict=True))[:NAMED]
    kept = sorted((name for _, name in largest), key=_natural)
    index = {name: at for at, name in enumerate(kept)}
    member = np.array([index.get(group, len(kept)) for group in groups])
    return [*kept, *([REST] if len(kept) < len(own) else [])], member


def _natural(name: str) -> list[tuple[int, str]]:
    """Return a key that sorts "degree 3" before "degree 12"."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _sample(marked: np.ndarray) -> np.ndarray:
    """Return the rows to draw, ascending: every marked one, and as many of the others as there is room for."""
    plain = np.flatnonzero(~marked)
    room = max(0, POINTS - int(marked.sum()))
    if len(plain) > room:
        plain = np.random.default_rng(0).choice(plain, room, replace=False)
    return np.sort(np.concatenate([np.flatnonzero(marked), plain]))


def _short(name: str, longest: int = 44) -> str:
    return name if len(name) <= longest else f"{name[: longest - 1]}…"
