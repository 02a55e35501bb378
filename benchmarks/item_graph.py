"""A graph of the items of a shop, to be classified by their category, as tables of ``setrec graph``.

``--data DIR`` holds ``items`` (``item_id``, ``title``, ``categories`` from general to special) and ``interactions``.
Two items are joined if at least two users had one right after the other. A class is a second category of at least
``--least`` items; its description lists its most frequent third categories. Of each class 20 nodes are for training,
30 for validation, and the others for testing.
"""

from __future__ import annotations

import argparse
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd


def main() -> None:
    """Write ``nodes``, ``edges`` and ``classes`` to ``--out``."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--out", type=Path, required=True)
    options.add_argument("--least", type=int, default=150)
    asked = options.parse_args()
    items = pd.read_parquet(asked.data / "items.parquet").query("title != ''").set_index("item_id")
    path = items["categories"].map(list)
    label = path.str[1].fillna("")
    label = label.where(label.map(label.value_counts()) >= asked.least, "")
    third = path.str[2].fillna("")
    described = {
        name: f"{name} , {' , '.join(islice((t for t in third[label == name].value_counts().index if t), 6))}"
        for name in sorted(set(label) - {""})
    }
    rank = pd.Series(np.random.default_rng(0).permutation(len(items)), items.index).groupby(label).rank()
    split = np.where(label == "", "", np.where(rank <= 20, "train", np.where(rank <= 50, "valid", "test")))
    had = pd.read_parquet(asked.data / "interactions.parquet").sort_values(["user_id", "position"])
    had = had[had["item_id"].isin(items.index)]
    after = had.groupby("user_id")["item_id"].shift(-1)
    pairs = pd.DataFrame(np.sort(had[["item_id"]].assign(after=after).dropna().to_numpy(), axis=1)).value_counts()
    joined = pairs[pairs >= 2].reset_index()
    joined = joined[joined[0] != joined[1]]
    asked.out.mkdir(parents=True, exist_ok=True)
    nodes = {"node_id": items.index, "text": items["title"], "label": label, "split": split}
    pd.DataFrame(nodes).to_parquet(asked.out / "nodes.parquet", index=False)
    edges = {"source": joined[0], "target": joined[1]}
    pd.DataFrame(edges).to_parquet(asked.out / "edges.parquet", index=False)
    classes = {"label": list(described), "description": list(described.values())}
    pd.DataFrame(classes).to_parquet(asked.out / "classes.parquet", index=False)
    print(f"{len(items)} nodes, {len(joined)} edges, {len(described)} classes, {(split == 'test').sum()} test nodes")


if __name__ == "__main__":
    main()
