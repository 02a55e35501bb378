"""A bundle of the demonstration's size with random weights: what was learned costs nothing to ask."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from setrec.walk import Walk, WalkSettings
from setrec.walk_choice import SHAPES

from serving.bundle_writer import write_bundle
from setrec.catalog import TRAIN, Catalog, Histories
from setrec.model import ModelSettings, SetRecModel
from setrec.ragged import Ragged
from setrec.tokens import ItemFeatures

ITEMS, USERS = 1682, 943  # MovieLens-100K


def make_bundle(folder: Path, name: str = "bundle", seed: int = 0, *, walk: bool = True) -> Path:
    """Write ``folder/name``: items, users with 20 to 100 interactions, a tiny backbone with two semantic tokens; with
    transitions, if ``walk``."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    features = ItemFeatures(
        trained=np.ones(ITEMS, bool),
        collaborative=rng.normal(size=(ITEMS, 64)).astype(np.float32),
        text=rng.normal(size=(ITEMS, 384)).astype(np.float32),
    )
    model = SetRecModel.build(ModelSettings(semantic_tokens=2), features).eval()
    model.save_pretrained(folder / f"model-{seed}")
    rows = [rng.permutation(ITEMS)[: rng.integers(20, 100)] for _ in range(USERS)]
    users = [str(user) for user in range(USERS)]
    items = [str(item) for item in range(ITEMS)]
    write_bundle(
        folder / name,
        model_dir=folder / f"model-{seed}",
        catalog=Catalog(items, [f"Film {item}" for item in items], items, {"class": [["Drama"]] * ITEMS}),
        histories=Histories(users, Ragged.of(rows), Ragged.of([[TRAIN] * len(row) for row in rows], np.int8).values),
        item_codes=model.item_codes().numpy(),
        weights=dict.fromkeys(model.kinds, 1.0),
        walk=Walk.of(Ragged.of(rows), ITEMS, WalkSettings(**SHAPES[0].model_dump(), weight=1.0)) if walk else None,
    )
    return folder / name
