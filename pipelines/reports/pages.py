"""Self-contained HTML pages from the templates of this package."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, PackageLoader

from setrec.atomic import atomic_file


def templates() -> Environment:
    """Return the environment of the package's templates, which escapes values."""
    return Environment(loader=PackageLoader("pipelines.reports"), autoescape=True, trim_blocks=True, lstrip_blocks=True)


def write_page(path: Path, html: str) -> Path:
    """Write a page atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return path
