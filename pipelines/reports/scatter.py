"""A plane of points as inline SVG, in the manner of the other charts, and positions brought down to two dimensions."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup, escape

from pipelines.reports.charts import WIDTH

POINTS = 4000
"""At most this many points are drawn, unless more than these are marked."""
SINGLE = 1500
"""Up to this many marked points each say which node they are; more say it together, group by group."""
NAMED = 8
"""At most this many groups have a colour of their own."""
REST = "other"

_EDGE, _LOWEST, _TALLEST, _BLOCK, _LONGEST = 14, 260, 480, 65_536, 60


def scatter(title: str, x: np.ndarray, y: np.ndarray, groups: Sequence[str], marked: np.ndarray) -> Markup:
    """Points of a plane coloured by group, the ``marked`` ones (anchors) on top as outlined diamonds; with a legend.

    The largest eight groups keep their names, all others are one. Of more than :data:`POINTS` points a sample is
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
    names, sizes, member = _named(groups)
    drawn = _sample(marked)
    at, height = _fitted(plane)
    parts = []
    for g in np.argsort([-size for size in sizes], kind="stable"):  # the largest group lies lowest
        spots = "".join(f"M{at[i, 0]:.1f} {at[i, 1]:.1f}h0" for i in drawn if member[i] == g and not marked[i])
        if spots:
            said = f"<title>{escape(_short(names[g]))}</title>"
            parts.append(f'<path class="{_colour(g, names)}" d="{spots}">{said}</path>')
    anchors = np.flatnonzero(marked)
    each = len(anchors) <= SINGLE
    for some in anchors[:, None] if each else [anchors[member[anchors] == g] for g in range(len(names))]:
        if len(some):
            said = f"anchor, node {some[0]}" if each else f"{len(some):,} anchors"
            diamonds = "".join(f"M{at[i, 0]:.1f} {at[i, 1] - 6:.1f}l6 6l-6 6l-6-6z" for i in some)
            parts.append(
                f'<path class="anchor {_colour(member[some[0]], names)}" d="{diamonds}">'
                f"<title>{said}: {escape(_short(names[member[some[0]]]))}</title></path>"
            )
    svg = (
        f'<svg class="chart plane" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">'
        f"{''.join(parts)}</svg>"
    )
    return Markup(svg) + _legend(names, sizes, int(marked.sum()), len(drawn), len(plane))


def project(positions: np.ndarray) -> np.ndarray:
    """The first two principal components (V, 2) of ``positions`` (V, K): as they lie, however the nodes are numbered.

    With more nodes than columns only the K by K covariance is decomposed, gathered block by block. The sign of a
    component is that which makes the largest of its loadings positive. Missing components are zero.
    """
    nodes, width = positions.shape
    if not nodes or not width:
        return np.zeros((nodes, 2))
    blocks = [slice(i, i + _BLOCK) for i in range(0, nodes, _BLOCK)]
    mean = positions.mean(axis=0, dtype=np.float64)
    if nodes > width:
        covariance = np.zeros((width, width))
        for block in blocks:
            centred = positions[block] - mean
            covariance += centred.T @ centred
        axes = np.linalg.eigh(covariance)[1][:, ::-1][:, :2]
    else:
        axes = np.linalg.svd(positions - mean, full_matrices=False)[2][:2].T
    # The first of the loadings that are largest but for rounding decides, so that rounding does not flip the sign.
    largest = np.argmax(np.abs(axes) >= (1 - 1e-6) * np.abs(axes).max(axis=0), axis=0)
    axes = axes * np.where(np.take_along_axis(axes, largest[None], axis=0) < 0, -1.0, 1.0)
    found = np.zeros((nodes, 2))
    for block in blocks:
        found[block, : axes.shape[1]] = (positions[block] - mean) @ axes
    return found


def degree_groups(degree: np.ndarray, count: int = 4) -> list[str]:
    """A name such as "degree 1-2" for each node: at most ``count`` groups of about the same size, equal degrees
    together."""
    degree = np.asarray(degree)
    if not len(degree):
        return []
    edges = np.unique(np.quantile(degree, np.arange(1, count) / count, method="lower"))
    member = np.searchsorted(edges, degree, side="left")
    names = {}
    for g in np.unique(member):
        low, high = int(degree[member == g].min()), int(degree[member == g].max())
        names[int(g)] = f"degree {low}" if low == high else f"degree {low}-{high}"
    return [names[g] for g in member.tolist()]


def _named(groups: Sequence[str]) -> tuple[list[str], list[int], np.ndarray]:
    """Names, their numbers of points and each point's name; the largest groups in natural order, then the rest."""
    counts = Counter(groups)
    own = [g for g in counts if g != REST]
    kept = sorted(sorted(own, key=lambda g: (-counts[g], g))[:NAMED], key=_natural)
    index = {name: i for i, name in enumerate(kept)}
    member = np.fromiter((index.get(g, len(kept)) for g in groups), dtype=np.int64, count=len(groups))
    names = kept if len(kept) == len(counts) else [*kept, REST]
    return names, np.bincount(member, minlength=len(names)).tolist(), member


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts "degree 3" before "degree 12"."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _sample(marked: np.ndarray) -> np.ndarray:
    """Rows to draw, ascending: every marked one, and of the others as many as there is room for."""
    plain = np.flatnonzero(~marked)
    room = max(0, POINTS - int(marked.sum()))
    if len(plain) > room:
        plain = np.random.default_rng(0).choice(plain, room, replace=False)
    return np.sort(np.concatenate([np.flatnonzero(marked), plain]))


def _fitted(plane: np.ndarray) -> tuple[np.ndarray, int]:
    """Places on the page in one scale for both axes, y upwards, and the height they need."""
    low, span = plane.min(axis=0), np.ptp(plane, axis=0)
    wide = WIDTH - 2 * _EDGE
    tall = float(np.clip(wide * span[1] / span[0] if span[0] else _TALLEST, _LOWEST, _TALLEST))
    scale = min((room / s for room, s in zip((wide, tall), span, strict=True) if s > 0), default=1.0)
    centred = (plane - low - span / 2) * scale * np.array([1.0, -1.0])
    return centred + np.array([WIDTH / 2, _EDGE + tall / 2]), round(tall + 2 * _EDGE)


def _colour(group: int, names: Sequence[str]) -> str:
    return "rest" if names[group] == REST else f"g{group}"


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"


def _legend(names: Sequence[str], sizes: Sequence[int], marked: int, drawn: int, points: int) -> Markup:
    shapes = [
        (f'<path class="{_colour(g, names)}" d="M7 7h0"/>', f"{_short(name)} ({sizes[g]:,})")
        for g, name in enumerate(names)
    ]
    if marked:
        shapes.append(('<path class="anchor" d="M7 1l6 6l-6 6l-6-6z"/>', f"anchor ({marked:,})"))
    keys = "".join(
        f'<span class="key"><svg class="plane" width="14" height="14" aria-hidden="true">{shape}</svg>'
        f"{escape(said)}</span>"
        for shape, said in shapes
    )
    note = f'<p class="soft">{drawn:,} of {points:,} points are drawn.</p>' if drawn < points else ""
    return Markup(f'<p class="legend">{keys}</p>{note}')
