"""Reports as HTML pages that need nothing else, from the templates of this package."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, PackageLoader

from setrec.atomic import atomic_file


def templates() -> Environment:
    """The package's templates; what is put into them is escaped."""
    return Environment(loader=PackageLoader("pipelines.reports"), autoescape=True, trim_blocks=True, lstrip_blocks=True)


def write_page(path: Path, html: str) -> Path:
    """Write a page as a whole or not at all."""
    with atomic_file(path) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return path
