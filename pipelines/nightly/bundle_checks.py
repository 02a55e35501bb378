"""What a bundle must show before it is released: whole, answering as it did, and finding what it should."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipelines.nightly.steps import HeldBackError
from serving.bundle.reader import Bundle
from serving.engine.acceptance import accept
from serving.engine.engine import Engine
from setrec.errors import BundleError


def audit(bundle: Path) -> dict[str, Any]:
    """Open a bundle as serving does, ask its stored requests, compare its recall with the target.

    The recall is that of its index when it was built, on queries of the model that it was not tuned with. The target is
    missed where the whole 95% interval lies below it: an index is tuned to just reach it, and a sample wavers.

    Raises:
        HeldBackError: a file is not what the manifest says, an answer is another one, or the recall is too low.
    """
    try:
        opened = Bundle.open(bundle)
        accept(Engine(opened))
    except BundleError as error:
        raise HeldBackError(f"held back: {error}") from error
    retriever = opened.retriever
    found, target = retriever.built_audit, retriever.settings.recall_target
    if found is None or found.high < target:
        said = "is not known" if found is None else f"is {found.recall:.4f} [{found.low:.4f}, {found.high:.4f}]"
        raise HeldBackError(f"held back: recall of the index {said}, the target is {target}")
    return {
        "model_version": opened.model_version, "requests": len(opened.checks), "index": retriever.kind,
        "recall": found.recall, "low": found.low, "high": found.high, "target": target,
    }  # fmt: skip
