"""Charts one over the other as an SVG file that needs nothing else, in the style of the reports."""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.reports.charts import WIDTH, Series, _mark, lines, shape_of

_COLOURS = ("#2563eb", "#c2410c", "#15803d", "#7e22ce", "#0e7490")


def stacked(charts: Sequence[tuple[str, Sequence[Series]]], x: str) -> str:
    """A chart of lines for each title, its legend beside the title; ``x`` is what runs along, in words.

    Values are decimal logarithms already: both axes are labelled so.
    """
    parts, tall = [], 290
    for at, (title, series) in enumerate(charts):
        chart = str(lines(f"{title} by {x}, decimal logarithms", series, f"log10 of the {x}"))
        chart = chart[: chart.index("</svg>") + 6].replace("<svg ", f'<svg y="{at * tall + 40}" height="240" ', 1)
        step = min(110, 350 // max(1, len(series)))
        keys = "".join(
            f'<g class="series s{i}" transform="translate({WIDTH - 10 - step * (len(series) - i)}, 0)">'
            f'{_mark(shape_of(i), 0, -5, 4.5)}<text x="10">{s.name}</text></g>'
            for i, s in enumerate(series)
        )
        head = f'<text x="12" font-weight="600">log10 of {title}</text>'
        parts.append(f'<g transform="translate(0, {at * tall + 26})">{head}{keys}</g>{chart}')
    style = "text{font:13px sans-serif;fill:#1f2937}.tick{font-size:12px;fill:#4b5563}.grid{stroke:#e5e7eb}" + "".join(
        f".s{i} polyline{{fill:none;stroke:{c};stroke-width:2}}.s{i} .mark{{fill:{c}}}" for i, c in enumerate(_COLOURS)
    )
    height = tall * len(charts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}">'
        f'<style>{style}</style><rect width="{WIDTH}" height="{height}" fill="#ffffff"/>{"".join(parts)}</svg>\n'
    )
