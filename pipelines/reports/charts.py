"""Small charts as inline SVG: no script, no font, no request; colours follow the page, shapes tell series apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH = 640
LETTER = 7.5  # a letter's width at the most, on average, in the report's font
SHAPES = ("circle", "square", "diamond", "triangle", "pentagon")


def shape_of(i: int) -> str:
    """The shape of the marks of a series; beyond the last they begin again."""
    return SHAPES[i % len(SHAPES)]


@dataclass(frozen=True)
class Interval:
    """A value with its 95% interval."""

    label: str
    value: float
    low: float
    high: float
    emphasised: bool = False


@dataclass(frozen=True)
class Series:
    """A named line of points."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


def intervals(title: str, rows: Sequence[Interval]) -> Markup:
    """Dots with whiskers, one row each."""
    right, line = 70, 30
    left = max(150.0, 24 + LETTER * max((len(r.label) for r in rows), default=0))
    height = line * len(rows) + 44
    top = max((r.high for r in rows), default=1.0) * 1.05 or 1.0
    scale = (WIDTH - left - right) / top
    parts = []
    for tick in _ticks(top):
        x = left + tick * scale
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="12" y2="{height - 28}"/>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{height - 10}" text-anchor="middle">{tick:g}</text>')
    for i, r in enumerate(rows):
        y, kind = 28 + i * line, "ours" if r.emphasised else "other"
        said = f"{r.label}: {r.value:.4f}, 95% interval {r.low:.4f} to {r.high:.4f}"
        parts.append(
            f'<g class="{kind}"><title>{escape(said)}</title>'
            f'<text x="{left - 12}" y="{y + 5}" text-anchor="end">{escape(r.label)}</text>'
            f'<line class="whisker" x1="{left + r.low * scale:.1f}" x2="{left + r.high * scale:.1f}" '
            f'y1="{y}" y2="{y}"/>'
            f"{_mark('diamond' if r.emphasised else 'circle', left + r.value * scale, y)}"
            f'<text class="value" x="{WIDTH - right + 8}" y="{y + 5}">{r.value:.4f}</text></g>'
        )
    return _svg(title, height, parts)


def lines(title: str, series: Sequence[Series], x_label: str) -> Markup:
    """Lines over a shared x axis, told apart by shape and dash as well as by colour."""
    left, right, height = 56, 20, 240
    xs, ys = [v for s in series for v in s.x], [v for s in series for v in s.y]
    if not xs:
        return Markup("")
    (x0, x1), (y0, y1) = (min(xs), max(max(xs), min(xs) + 1)), (min(ys), max(ys))
    y0 = 0.0 if y0 > 0 and y0 < 0.5 * y1 else y0
    y1 = y1 if y1 > y0 else y0 + 1
    fx = lambda v: left + (v - x0) / (x1 - x0) * (WIDTH - left - right)  # noqa: E731
    fy = lambda v: height - 44 - (v - y0) / (y1 - y0) * (height - 64)  # noqa: E731
    parts = [f'<text class="tick" x="{WIDTH - right}" y="{height - 8}" text-anchor="end">{escape(x_label)}</text>']
    for tick in _ticks(y1, y0):
        parts.append(f'<line class="grid" x1="{left}" x2="{WIDTH - right}" y1="{fy(tick):.1f}" y2="{fy(tick):.1f}"/>')
        parts.append(f'<text class="tick" x="{left - 8}" y="{fy(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in _ticks(x1, x0):
        if tick == int(tick):
            parts.append(
                f'<text class="tick" x="{fx(tick):.1f}" y="{height - 24}" text-anchor="middle">{tick:g}</text>'
            )
    for i, s in enumerate(series):
        path = " ".join(f"{fx(x):.1f},{fy(y):.1f}" for x, y in zip(s.x, s.y, strict=True))
        marks = "".join(_mark(shape_of(i), fx(x), fy(y), 3.5) for x, y in zip(s.x, s.y, strict=True))
        parts.append(f'<g class="series s{i}"><title>{escape(s.name)}</title><polyline points="{path}"/>{marks}</g>')
    return _svg(title, height, parts) + legend([s.name for s in series])


def bars(title: str, groups: Sequence[str], series: Sequence[tuple[str, Sequence[float]]]) -> Markup:
    """Bars side by side in groups."""
    left, height = 56, 240
    top = max((v for _, values in series for v in values), default=1.0) or 1.0
    parts = []
    for tick in _ticks(top):
        y = height - 34 - tick / top * (height - 54)
        parts.append(f'<line class="grid" x1="{left}" x2="{WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    span = (WIDTH - left) / max(1, len(groups))
    thick = span * 0.8 / max(1, len(series))
    for g, group in enumerate(groups):
        parts.append(
            f'<text class="tick" x="{left + (g + 0.5) * span:.1f}" y="{height - 12}" text-anchor="middle">'
            f"{escape(group)}</text>"
        )
        for i, (name, values) in enumerate(series):
            tall = values[g] / top * (height - 54)
            x = left + g * span + span * 0.1 + i * thick
            said = f"{name}, {group}: {values[g]:.4f}"
            parts.append(
                f'<g class="series s{i}"><title>{escape(said)}</title><rect x="{x:.1f}" y="{height - 34 - tall:.1f}" '
                f'width="{thick - 3:.1f}" height="{tall:.1f}" rx="2"/></g>'
            )
    return _svg(title, height, parts) + legend([name for name, _ in series])


def legend(names: Sequence[str]) -> Markup:
    """Names beside their marks."""
    keys = "".join(
        f'<span class="key"><svg width="14" height="14" aria-hidden="true"><g class="series s{i}">'
        f"{_mark(shape_of(i), 7, 7, 4.5)}</g></svg>{escape(name)}</span>"
        for i, name in enumerate(names)
    )
    return Markup(f'<p class="legend">{keys}</p>')


def _svg(title: str, height: int, parts: Sequence[str]) -> Markup:
    body = "".join(parts)
    return Markup(
        f'<svg class="chart" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">{body}</svg>'
    )


def _mark(shape: str, x: float, y: float, r: float = 5.5) -> str:
    if shape == "circle":
        return f'<circle class="mark" cx="{x:.1f}" cy="{y:.1f}" r="{r}"/>'
    if shape == "square":
        return f'<rect class="mark" x="{x - r:.1f}" y="{y - r:.1f}" width="{2 * r}" height="{2 * r}"/>'
    corners = {
        "diamond": ((0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)),
        "triangle": ((0, -1.2), (1.1, 0.9), (-1.1, 0.9)),
        "pentagon": ((0, -1.15), (1.1, -0.35), (0.68, 0.95), (-0.68, 0.95), (-1.1, -0.35)),
    }[shape]
    points = " ".join(f"{x + a * r:.1f},{y + b * r:.1f}" for a, b in corners)
    return f'<polygon class="mark" points="{points}"/>'


def _ticks(high: float, low: float = 0.0, count: int = 5) -> list[float]:
    """Round numbers from low to high, about ``count`` of them."""
    raw = (high - low) / count
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 5, 10) if raw <= m * magnitude)
    first = -(-low // step)
    return [round((first + i) * step, 10) for i in range(int((high - first * step) / step) + 1)]
