"""Inspection and comparison of bundles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from serving.bundle.manifest import Manifest, verify
from setrec.data.catalog import Catalog
from setrec.errors import BundleError, DataError
from setrec.mapped import mapped


def inspect(path: Path) -> dict[str, Any]:
    """Return a summary of a bundle after verifying every file against the manifest; no model is loaded.

    Raises:
        BundleError: it cannot be used.
    """
    manifest, counts = verify(path), mapped(path / "popularity.safetensors", "counts", np.int64)
    sizes: dict[str, int] = {}
    for name, entry in manifest.files.items():
        part = name.partition("/")[0]
        sizes[part] = sizes.get(part, 0) + entry.bytes
    return {
        "model_version": manifest.model_version,
        "format_version": manifest.format_version,
        "created": manifest.created.isoformat(),
        "counts": dict(manifest.counts) | {"new_items": int(np.count_nonzero(counts == 0))},
        "weights": manifest.scorer.model_dump(mode="json"),
        "reranker": None if manifest.reranker is None else manifest.reranker.model_dump(mode="json"),
        "recall": None if manifest.agreement is None else manifest.agreement.model_dump(mode="json"),
        "libraries": dict(manifest.libraries),
        "encodes_new_items": manifest.encoder is not None or any(n.startswith("lexical/") for n in manifest.files),
        "graph": any(name.startswith("graph/") for name in manifest.files),
        "bytes": dict(sorted(sizes.items(), key=lambda pair: -pair[1])),
    }


def difference(before: Path, after: Path) -> dict[str, Any]:
    """Return the changes from bundle ``before`` to ``after``: items, training interactions, weights and files.

    Raises:
        BundleError: one of them cannot be used.
    """
    one, other = verify(before), verify(after)
    try:
        catalogues = [Catalog.load(path / "items.parquet") for path in (before, after)]
    except DataError as error:
        raise BundleError(str(error)) from error
    old, new = (set(catalogue.item_ids) for catalogue in catalogues)
    described = [dict(zip(c.item_ids, zip(c.titles, c.texts, strict=True), strict=True)) for c in catalogues]
    return {
        "model_version": [one.model_version, other.model_version],
        "counts": {name: [one.counts.get(name), other.counts.get(name)] for name in {**one.counts, **other.counts}},
        "items_added": sorted(new - old),
        "items_removed": sorted(old - new),
        "items_described_anew": sorted(item for item in old & new if described[0][item] != described[1][item]),
        "weights": _changed(_flat(one), _flat(other)),
        "recall": [None if m.agreement is None else m.agreement.recall for m in (one, other)],
        "files_changed": sorted(
            name
            for name in {**one.files, **other.files}
            if (a := one.files.get(name)) is None or (b := other.files.get(name)) is None or a.sha256 != b.sha256
        ),
    }


def _flat(manifest: Manifest) -> dict[str, float]:
    """Return every weight by a dotted name."""
    weights: dict[str, float] = {}

    def add(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                add(f"{prefix}.{name}" if prefix else name, inner)
        else:
            weights[prefix] = value

    add("", manifest.scorer.model_dump(mode="json"))
    return weights


def _changed(before: dict[str, float], after: dict[str, float]) -> dict[str, list[float | None]]:
    names = sorted({**before, **after})
    return {name: [before.get(name), after.get(name)] for name in names if before.get(name) != after.get(name)}
