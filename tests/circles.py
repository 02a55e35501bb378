"""A small world for benchmarks: users walk in circles, and a tenth of the items come late."""

from pathlib import Path

import numpy as np
import pandas as pd

ITEMS, USERS = 40, 120


def write_world(folder: Path, *, texts: bool = True, split: bool = False) -> Path:
    """Tables in the form that benchmarks read: user u begins at a place of its own and goes from item to item."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, rows = np.random.default_rng(0), []
    for user in range(USERS):
        at = int(rng.integers(ITEMS))
        for position in range(8):
            rows.append((f"u{user}", f"i{at:02d}", 10 * position + user % 7, position))
            at = (at + int(rng.choice([1, 1, 1, 2]))) % ITEMS
    table = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp", "position"])
    table.drop(columns="position").to_parquet(folder / "interactions.parquet")
    items = pd.DataFrame({"item_id": [f"i{i:02d}" for i in range(ITEMS)], "setrec_id": range(ITEMS)})
    if texts:
        items["title"] = [f"thing of shelf {i // 8} corner {i // 4}" for i in range(ITEMS)]
        items["categories"] = [[f"Shelf {i // 8}", f"Corner {i // 4}"] for i in range(ITEMS)]
    items.to_parquet(folder / "items.parquet")
    if split:
        parts = np.select([table["position"] < 5, table["position"] < 6], ["train", "valid"], "test")
        held = table["item_id"].isin(["i07", "i23"]) & (parts == "train")
        named = table.assign(user=table["user_id"].str[1:].astype(int), split=parts)[~held]
        named[["user", "item_id", "position", "split"]].to_parquet(folder / "setrec_split.parquet")
    return folder
