"""The smallest inputs go through every command with a right answer, or one line that says what is missing."""

import json

import pandas as pd
import pytest

CONFIG = """
data: {{interactions: {folder}/interactions.csv, {items}columns: {{position: position{split}}}{more}}}
sasrec: {{epochs: 1, layers: 1, width: 16, heads: 1}}
model: {{max_items: 4, hidden: [16, 8], dropout: 0.0, id_dropout: 0.0, backbone: {{dropout: 0.0}}}}
training: {{epochs: 2, patience: 2, targets_per_batch: 64, precision: float32}}
cluster: {{threads: 1}}
evaluation: {{resamples: 20, examples: 1, opponents: [popularity, item_knn]}}
"""


def walks(users, steps, items):
    return [(f"u{u}", f"i{(u + step) % items}", step) for u in range(users) for step in range(steps)]


def parts(*words):
    """Three users whose rows are of these parts of the split."""
    return [(f"u{u}", f"i{(u + step) % 4}", step, word) for u in range(3) for step, word in enumerate(words)]


# Rows, titles of items (None: no table), and what ends the way through all commands early, if anything does.
INPUTS = {
    "one interaction": (walks(1, 1, 1), None, "validation"),
    "one user of two items": (walks(1, 2, 2), None, "validation"),
    "one user of three items": (walks(1, 3, 3), None, ""),
    "one user, with titles": (walks(1, 3, 3), ["A", "B", "C"], ""),
    "two users": (walks(2, 3, 3), ["A", "", "C"], ""),
    "two users of two items": (walks(2, 2, 2), None, "validation"),
    "nine items": (walks(9, 3, 9), [f"Film {n}" for n in range(9)], ""),
    "every title the same": (walks(5, 4, 5), ["Film"] * 5, ""),
    "no word in any title": (walks(5, 4, 5), ["!", "?", "", ".", "-"], ""),
    "no test part": (parts("train", "train", "valid"), ["A", "B", "C", "D"], "nothing to evaluate on"),
    "no validation part": (parts("train", "train", "test"), ["A", "B", "C", "D"], "validation"),
    "no training part": (parts("valid", "test"), ["A", "B", "C", "D"], "train"),
    "items that nobody met": (walks(3, 3, 3), [f"Film {n}" for n in range(6)], ""),
}


def written(folder, rows, titles):
    split = len(rows[0]) == 4
    columns = ["user_id", "item_id", "position", *(["split"] if split else [])]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "interactions.csv", index=False)
    if titles is not None:
        table = pd.DataFrame({"item_id": [f"i{n}" for n in range(len(titles))], "title": titles})
        table.to_csv(folder / "items.csv", index=False)
    text = CONFIG.format(
        folder=folder,
        items="" if titles is None else f"items: {folder}/items.csv, ",
        split=", split: split" if split else "",
        more=", split: {kind: column}" if split else "",
    )
    (folder / "config.yaml").write_text(text)


def commands(folder):
    run = folder / "run"
    pd.DataFrame({"user_id": ["u0", "nobody"]}).to_parquet(folder / "asked.parquet")
    return [
        ("check", folder / "config.yaml"),
        ("prepare", "--config", folder / "config.yaml", "--run", run),
        ("train", "--run", run),
        ("evaluate", "--run", run),
        ("export", "--run", run),
        ("recommend", "--bundle", run / "bundle", "--history", "i0", "--json"),
        ("recommend", "--bundle", run / "bundle", "--history", "i0", "--keep-history"),
        ("recommend", "--bundle", run / "bundle", "--user", "u0", "-k", "1"),
    ]


ALL_THE_WAY = [name for name, (*_, refused) in INPUTS.items() if refused in ("", "nothing to evaluate on")]
CASES = [pytest.param(name, marks=pytest.mark.slow if name in ALL_THE_WAY else ()) for name in INPUTS]


@pytest.mark.parametrize("name", CASES)
def test_the_smallest_inputs_go_all_the_way_or_are_refused_in_one_line(name, tmp_path, commanded, without_ray_train):
    rows, titles, refused = INPUTS[name]
    written(tmp_path, rows, titles)
    said = {}
    for command in commands(tmp_path):
        code, text = commanded(*command)
        said[command[0]] = text
        assert "Traceback" not in text, text
        assert "nan" not in text.lower().split(), text
        if command[0] == "check":
            continue
        if code:
            assert code == 2, text
            last = text.strip().splitlines()[-1]
            assert last.startswith("setrec: "), text
            assert refused, last
            assert refused in last, last
            return
    assert not refused, said
    for row in json.loads((tmp_path / "run" / "metrics.json").read_text()):
        assert (row["value"] is None) == (row["users"] == 0)
        assert row["value"] is None or 0 <= row["low"] <= row["value"] <= row["high"] <= 1
