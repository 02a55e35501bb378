"""Checks of a bundle before it is released: its files, its stored requests, and the recall of its index."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipelines.nightly.steps import HeldBackError
from serving.bundle.reader import Bundle
from serving.engine.acceptance import accept
from serving.engine.engine import Engine
from setrec.errors import BundleError


def audit(bundle: Path) -> dict[str, Any]:
    """Open a bundle as serving does, repeat its stored requests, compare its recall with the target.

    The recall was measured when the index was built, on queries of the model not used for tuning. The target is missed
    if the whole 95% interval lies below it, because an index is tuned to just reach it and samples vary.

    Raises:
        HeldBackError: a file does not match the manifest, an answer differs, or the recall is too low.
    """
    try:
        opened = Bundle.open(bundle)
        accept(Engine(opened))
    except BundleError as error:
        raise HeldBackError(f"held back: {error}") from error
    retriever = opened.retriever
    found, target = retriever.built_audit, retriever.settings.recall_target
    if found is None or found.high < target:
        said = "is unknown" if found is None else f"is {found.recall:.4f} [{found.low:.4f}, {found.high:.4f}]"
        raise HeldBackError(f"held back: recall of the index {said}, the target is {target}")
    return {
        "model_version": opened.model_version, "requests": len(opened.checks), "index": retriever.kind,
        "recall": found.recall, "low": found.low, "high": found.high, "target": target,
    }  # fmt: skip
