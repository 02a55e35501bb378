"""Ingest in plain Python, for small tables of text: what the engine must leave, without an engine."""

import math
from collections import Counter

import numpy as np

from setrec.data.interactions import chronological
from setrec.data.splits import held_out_items


def checked(rows):
    """(row, user, item, time, rating, split) of the rows that can be used; and (row, column) of the others."""
    good, bad = [], []
    for number, row in enumerate(rows, start=1):
        found = [
            name
            for name in ("user_id", "item_id", "timestamp", "rating", "part")
            if not row[name].strip()
            or (name in ("timestamp", "rating") and not is_number(row[name]))
            or (name == "part" and row[name] not in ("train", "valid", "test"))
        ]
        if found:
            bad.append((number, found[0]))
        else:
            time = float(row["timestamp"])
            good.append((number, row["user_id"], row["item_id"], time, float(row["rating"]), row["part"]))
    return good, bad


def is_number(text):
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def ingest(rows, items, config):
    """Histories as {user: [(item, label)]}, the catalogue's item ids in order, rejected rows, dropped counts."""
    good, bad = checked(rows)
    catalogue = list(items) if items is not None else list(dict.fromkeys(row[2] for row in good))
    dropped = Counter()
    if config.min_rating is not None:
        kept = [row for row in good if row[4] >= config.min_rating]
        dropped["rating_below_minimum"], good = len(good) - len(kept), kept
    users = list(dict.fromkeys(row[1] for row in good))
    unknown = [row for row in good if row[2] not in catalogue]
    if config.unknown_items == "refuse":
        bad += [(row[0], "item_id") for row in unknown]
    else:
        dropped["unknown_item"] = len(unknown)
    good = [row for row in good if row[2] in catalogue]
    codes = np.array([users.index(row[1]) for row in good], dtype=np.int64)
    times, numbers = np.array([row[3] for row in good]), np.array([row[0] for row in good], dtype=np.int64)
    good = [good[at] for at in chronological(codes, times, config.ties, config.seed, numbers)]
    kept = list(repeats_dropped(good, config.deduplicate))
    dropped["repeated"], good = len(good) - len(kept), kept
    kept = k_core(good, config.user_min_count, config.item_min_count)
    dropped["below_minimum_count"], good = len(good) - len(kept), kept
    labels = labelled(good, config.split)
    counts = Counter(row[2] for row in good)
    kept_items = [item for item in catalogue if counts[item] >= config.item_min_count]
    order = np.random.default_rng(config.seed).permutation(len(kept_items))
    if config.cold_share:
        trained = {row[2] for row, label in zip(good, labels, strict=True) if label == 0}
        cold = held_out_items(np.array([item in trained for item in catalogue]), config.cold_share, config.seed)
        kept = [(r, x) for r, x in zip(good, labels, strict=True) if x or not cold[catalogue.index(r[2])]]
        dropped["held_out_item"] = len(good) - len(kept)
        good, labels = [row for row, _ in kept], [label for _, label in kept]
    histories = {}
    for row, label in zip(good, labels, strict=True):
        histories.setdefault(row[1], []).append((row[2], label))
    return histories, [kept_items[at] for at in order], sorted(bad), dropped


def repeats_dropped(rows, keep):
    groups = {}
    for row in rows:
        groups.setdefault((row[1], row[2]), []).append(row)
    choose = {
        "first": lambda group: group[:1],
        "last": lambda group: group[-1:],
        "all": lambda group: group,
        "strongest": lambda group: [max(group, key=lambda row: row[4])],
    }[keep]
    kept = {row[0] for group in groups.values() for row in choose(group)}
    return (row for row in rows if row[0] in kept)


def k_core(rows, user_min, item_min):
    while True:
        users, items = Counter(row[1] for row in rows), Counter(row[2] for row in rows)
        kept = [row for row in rows if users[row[1]] >= user_min and items[row[2]] >= item_min]
        if len(kept) == len(rows):
            return rows
        rows = kept


def labelled(rows, split):
    if split.kind == "column":
        return [("train", "valid", "test").index(row[5]) for row in rows]
    if split.kind == "global_time":
        if not rows:
            return []
        times, total = sorted(row[3] for row in rows), len(rows)
        test = times[total - math.ceil(total * split.test - 1e-9)]
        valid = times[total - math.ceil(total * (split.valid + split.test) - 1e-9)]
        return [2 if row[3] >= test else 1 if row[3] >= valid else 0 for row in rows]
    left = Counter(row[1] for row in rows)
    held = {user for user, count in left.items() if count >= split.min_history + 2}
    labels = []
    for row in rows:
        left[row[1]] -= 1
        labels.append({0: 2, 1: 1}.get(left[row[1]], 0) if row[1] in held else 0)
    return labels
