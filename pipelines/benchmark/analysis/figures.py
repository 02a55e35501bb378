"""Charts of a benchmark as SVG in the way of ``pipelines.reports.charts``: no script, no font, colours from the page.

Each chart is one ``<svg>`` with its legend inside. It is coloured by the classes of the page it stands in;
:func:`alone` makes a file of it that needs no page. Series are told apart by shape, dash and place as well as by
colour, and every mark says its value when pointed at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from markupsafe import Markup, escape

from pipelines.reports.charts import WIDTH, _mark, _svg, _ticks, shape_of

Row = Mapping[str, Any]
"""A row of ``metrics.json`` or of :mod:`pipelines.benchmark.analysis.analysis`."""
COLOURS = ("#7a8594", "#b7791f", "#2f6fb0", "#c2255c", "#2b8a3e", "#7048c8", "#0c8599", "#d9730d", "#8a5a44", "#5c940d")
DASHES = ("none", "6 4", "2 3", "10 3 2 3")
LEFT, RIGHT, LINE = 56, 20, 20


@dataclass(frozen=True)
class _Scale:
    """From values between ``low`` and ``high`` to places between ``start`` and ``end``."""

    low: float
    high: float
    start: float
    end: float

    @classmethod
    def over(cls, values: Sequence[float], start: float, end: float, *, zero: bool = False) -> _Scale:
        """A scale that holds all ``values`` with a little room, and 0 where it is near or asked for."""
        low, high = min(values, default=0.0), max(values, default=1.0)
        low = min(0.0, low) if zero or 0 < low < 0.5 * high else low
        room = 0.04 * (high - low) or abs(high) or 1.0
        return cls(low if low == 0 else low - room, high + room, start, end)

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    @property
    def ticks(self) -> list[float]:
        """Round values along it."""
        return _ticks(self.high, self.low, 5 if abs(self.end - self.start) > 200 else 2)


def learning_curves(
    curves: Mapping[str, Sequence[Row]], x: Literal["seconds", "epoch"] = "seconds", metric: str = "ndcg@10"
) -> Markup:
    """Validation by time or epoch: by system the records of ``Fitted.curve``; systems without any are left out."""
    kept = {name: [r for r in records if metric in r and x in r] for name, records in curves.items()}
    kept = {name: records for name, records in kept.items() if records}
    top, legend = _legend(list(kept))
    bottom = top + 220
    every = [record for records in kept.values() for record in records]
    across = _Scale.over([float(r[x]) for r in every], LEFT, WIDTH - RIGHT, zero=True)
    up = _Scale.over([float(r[metric]) for r in every], bottom, top)
    parts = [legend, *_grid(across, up), _below(x, bottom)]
    for i, (name, records) in enumerate(kept.items()):
        places = [(across(r[x]), up(r[metric])) for r in records]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
        marks = "".join(
            _said(_mark(shape_of(i), *place, 3), f"{name}, {x} {r[x]:g}: {r[metric]:.4f}")
            for place, r in zip(places, records, strict=True)
        )
        dash = f' style="stroke-dasharray:{DASHES[i // 4 % 4]}"'
        parts.append(f'<g class="{_series(i)}"><polyline points="{path}"{dash}/>{marks}</g>')
    return _svg(f"{_label(metric)} on validation by {x}", bottom + 40, parts)


def dots(
    rows: Sequence[Row], metrics: Sequence[str], *, history: str, group: str = "all", ours: str | None = None
) -> Markup:
    """A line for each system, a panel with a scale of its own for each metric, 95% intervals as whiskers."""
    shown = [r for r in rows if (r["history"], r["group"]) == (history, group) and r["metric"] in metrics]
    systems = list(dict.fromkeys(r["system"] for r in shown))
    left, top = 12 + 8 * max((len(name) for name in systems), default=0), 28
    bottom, wide = top + LINE * len(systems), (WIDTH - RIGHT - left) / max(1, len(metrics))
    parts = [
        f'<g class="{_kind(name, ours)}"><text x="{left - 10}" y="{top + LINE * (i + 0.5) + 5}" text-anchor="end">'
        f"{escape(name)}</text></g>"
        for i, name in enumerate(systems)
    ]
    for at, metric in enumerate(metrics):
        mine = [r for r in shown if r["metric"] == metric]
        start = left + at * wide
        across = _Scale.over([r[end] for r in mine for end in ("low", "high")], start, start + wide - 14)
        parts.append(f'<text x="{start + (wide - 14) / 2:.1f}" y="16" text-anchor="middle">{_label(metric)}</text>')
        parts += _across(across, top, bottom)
        for r in mine:
            y = top + LINE * (systems.index(r["system"]) + 0.5)
            shape = "diamond" if r["system"] == ours else "circle"
            parts.append(f'<g class="{_kind(r["system"], ours)}">{_whisker(r, across, y, shape, r["system"])}</g>')
    return _svg(f"{', '.join(map(_label, metrics))}, {group} items, history {history}", bottom + 30, parts)


def reliability(rows: Sequence[Row]) -> Markup:
    """Share of truths at the top against the probability that the top was given, on both axes from 0; on the diagonal a
    system means what it says. From the rows of :func:`pipelines.benchmark.analysis.analysis.calibration` of any
    systems."""
    bins = [r for r in rows if r["metric"] == "accuracy" and "confidence" in r]
    systems = list(dict.fromkeys(r["system"] for r in bins))
    top, legend = _legend(systems)
    bottom = top + 320
    across = _Scale.over([r["confidence"] for r in bins], LEFT, WIDTH - RIGHT, zero=True)
    up = _Scale.over([r["high"] for r in bins], bottom, top, zero=True)
    most = min(across.high, up.high)
    parts = [legend, *_grid(across, up), _below("probability of the top item", bottom)]
    parts.append(
        f'<line stroke="#8b95a1" stroke-dasharray="4 4" x1="{across(0):.1f}" y1="{up(0):.1f}" x2="{across(most):.1f}" '
        f'y2="{up(most):.1f}"/>'
    )
    for r in bins:
        i = systems.index(r["system"])
        told = f"{r['system']}, {r['group']}: probability {r['confidence']:.4f}"
        parts.append(_upright(r, across(r["confidence"]), up, i, told))
    return _svg("Accuracy of the top item by its probability", bottom + 40, parts)


def grouped_dots(rows: Sequence[Row], metric: str, *, history: str, prefix: str = "") -> Markup:
    """A metric by group, the systems side by side in each; ``prefix`` ("popularity:", "length:" or "truths:") picks
    groups and is left out of their names."""
    mine = [r for r in rows if (r["history"], r["metric"]) == (history, metric) and r["group"].startswith(prefix)]
    groups = list(dict.fromkeys(r["group"] for r in mine))
    systems = list(dict.fromkeys(r["system"] for r in mine))
    top, legend = _legend(systems)
    bottom = top + 220
    up = _Scale.over([r["high"] for r in mine], bottom, top, zero=True)
    parts, span = [legend, *_up(up)], (WIDTH - LEFT - RIGHT) / max(1, len(groups))
    for g, group in enumerate(groups):
        users = max(r["users"] for r in mine if r["group"] == group)
        named = f"{group.removeprefix(prefix)} ({users} users)"
        parts.append(_tick(LEFT + (g + 0.5) * span, bottom + 18, named))
    for r in mine:
        i = systems.index(r["system"])
        x = LEFT + (groups.index(r["group"]) + 0.12 + 0.76 * (i + 0.5) / len(systems)) * span
        told = f"{r['system']}, {r['group'].removeprefix(prefix)}"
        parts.append(_upright(r, x, up, i, told))
    return _svg(f"{_label(metric)} by {prefix.rstrip(':') or 'group'}, history {history}", bottom + 30, parts)


def alone(chart: str) -> str:
    """A chart as the text of a file of its own, on white."""
    style = (
        "text{font:13px sans-serif;fill:#1f2937}.tick{font-size:11.5px;fill:#4b5563}.grid{stroke:#e5e7eb}"
        ".series polyline{fill:none;stroke-width:2}.whisker{stroke-width:2}.other .whisker{stroke:#7a8594}"
        ".other .mark{fill:#7a8594}.ours .whisker{stroke:#c2255c}.ours .mark{fill:#c2255c}.ours text{font-weight:700}"
    ) + "".join(f".s{i} polyline{{stroke:{colour}}}.s{i} .mark{{fill:{colour}}}" for i, colour in enumerate(COLOURS))
    head, _, body = str(chart).partition(">")  # Markup would escape what is put in
    head = head.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    return f'{head}><style>{style}</style><rect width="100%" height="100%" fill="#ffffff"/>{body}\n'


def _label(metric: str) -> str:
    name, at, k = metric.partition("@")
    return f"{'NDCG' if name == 'ndcg' else 'MRR' if name == 'mrr' else name.capitalize()}{at}{k}"


def _kind(system: str, ours: str | None) -> str:
    return "ours" if system == ours else "other"


def _series(i: int) -> str:
    """The class of a series, for as many as there are colours; then they begin again, with another shape."""
    return f"series s{i % len(COLOURS)}"


def _legend(names: Sequence[str]) -> tuple[int, str]:
    """Keys in as many lines as they need; and where the chart below them begins."""
    x, y, keys = 12, 14, []
    for i, name in enumerate(names):
        wide = 34 + 7 * len(name)
        if x > 12 and x + wide > WIDTH:
            x, y = 12, y + LINE
        mark = _mark(shape_of(i), x + 5, y - 4, 4.5)
        keys.append(f'<g class="{_series(i)}">{mark}<text x="{x + 16}" y="{y}">{escape(name)}</text></g>')
        x += wide
    return y + 18, "".join(keys)


def _grid(across: _Scale, up: _Scale) -> list[str]:
    ticks = [_tick(across(tick), up.start + 18, f"{tick:g}") for tick in across.ticks]
    return _up(up) + ticks


def _up(up: _Scale) -> list[str]:
    """Lines across at round values, named on the left."""
    parts = []
    for tick in up.ticks:
        y = up(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    return parts


def _across(across: _Scale, top: float, bottom: float) -> list[str]:
    """Lines down at round values, named below."""
    parts = []
    for tick in across.ticks:
        x = across(tick)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}"/>')
        parts.append(_tick(x, bottom + 16, f"{tick:g}"))
    return parts


def _tick(x: float, y: float, text: str) -> str:
    return f'<text class="tick" x="{x:.1f}" y="{y:.1f}" text-anchor="middle">{escape(text)}</text>'


def _below(text: str, bottom: float) -> str:
    return f'<text class="tick" x="{WIDTH - RIGHT}" y="{bottom + 34:.1f}" text-anchor="end">{escape(text)}</text>'


def _said(mark: str, text: str) -> str:
    return f"<g><title>{escape(text)}</title>{mark}</g>"


def _whisker(r: Row, across: _Scale, y: float, shape: str, name: str) -> str:
    line = f'<line class="whisker" x1="{across(r["low"]):.1f}" x2="{across(r["high"]):.1f}" y1="{y}" y2="{y}"/>'
    return _said(line + _mark(shape, across(r["value"]), y, 4.5), f"{name}: {_value(r)}")


def _upright(r: Row, x: float, up: _Scale, i: int, name: str) -> str:
    # Pages colour marks and lines of a series, but not its whiskers.
    drawn = f'stroke="{COLOURS[i % len(COLOURS)]}" x1="{x:.1f}" x2="{x:.1f}"'
    line = f'<line class="whisker" {drawn} y1="{up(r["low"]):.1f}" y2="{up(r["high"]):.1f}"/>'
    mark = _mark(shape_of(i), x, up(r["value"]), 4.5)
    return f'<g class="{_series(i)}">{_said(line + mark, f"{name}: {_value(r)}")}</g>'


def _value(r: Row) -> str:
    return f"{r['value']:.4f}, 95% interval {r['low']:.4f} to {r['high']:.4f}"
