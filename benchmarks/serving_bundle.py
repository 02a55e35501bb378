"""Bundles with random weights of the demonstration's size, or of any: what was learned costs nothing to ask."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from serving.bundle.writer import write_bundle
from serving.engine.acceptance import examine
from setrec.data.catalog import TRAIN, Catalog, Histories
from setrec.models.item_tokens import ItemFeatures, unit_rows
from setrec.models.setrec_model import SetRecModel
from setrec.models.settings import LegSettings, ModelSettings
from setrec.ragged import Ragged
from setrec.scoring.hybrid import HybridWeights, build_components
from setrec.scoring.registry import Sources
from setrec.scoring.text_similarity import TextFeatures
from setrec.text.lexical import LexicalEncoder

ITEMS, USERS = 1682, 943  # MovieLens-100K
WEIGHTS = {"transitions_near": 8.0, "text_similarity": 8.0}


def make_bundle(
    folder: Path,
    name: str = "bundle",
    seed: int = 0,
    *,
    items: int = ITEMS,
    hybrid: bool = True,
    max_items: int = 50,
    leg: bool = True,
) -> Path:
    """Write ``folder/name``: ``items``, users with 20 to 100 interactions, a tiny backbone with two semantic tokens and
    320-wide codes that reads ``max_items`` items; with components of both kinds, if ``hybrid``, a collaborative
    leg, if ``leg``."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    words = rng.integers(0, 2000, (items, 6))
    texts = [" ".join(f"w{word}" for word in line) for line in words]
    sentences = rng.normal(size=(items, 384)).astype(np.float32)
    features = ItemFeatures(
        trained=np.ones(items, bool), collaborative=rng.normal(size=(items, 64)).astype(np.float32), text=sentences
    )
    settings = ModelSettings(semantic_tokens=2, max_items=max_items, collaborative_leg=LegSettings() if leg else None)
    model = SetRecModel.build(settings, features).eval()
    model.save_pretrained(folder / f"model-{seed}")
    rows = Ragged.of([rng.permutation(items)[: rng.integers(20, 100)] for _ in range(USERS)])
    similar = TextFeatures(LexicalEncoder.fit(texts, width=8).rows(texts), unit_rows(sentences))
    scorer = HybridWeights(slots=dict.fromkeys(model.kinds, 1.0), components=WEIGHTS if hybrid else {})
    ids = [str(item) for item in range(items)]
    write_bundle(
        folder / name,
        model_dir=folder / f"model-{seed}",
        catalog=Catalog(ids, [f"Film {item}" for item in ids], texts, {"class": [["Drama"]] * items}),
        histories=Histories([str(user) for user in range(USERS)], rows, np.full(len(rows.values), TRAIN, np.int8)),
        item_codes=model.item_codes().numpy(),
        scorer=scorer,
        components=build_components(scorer.used, Sources(rows, items, similar)),
        examine=examine,
    )
    return folder / name
