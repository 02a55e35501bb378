"""Published results, shown next to measured ones.

Protocol setrec: arXiv 2502.10833, the T5 table, history kept. Leave-one-out: the repository of arXiv 2508.06450 (SASRec
with sampled softmax, eSASRec) and, as quoted there, TIGER.
"""

from __future__ import annotations

Row = tuple[str, str, str, float, float]
"""System, history protocol, group, recall@10, NDCG@10."""

TABLES: dict[tuple[str, str], list[Row]] = {
    ("amazon-beauty", "setrec"): [
        ("SETRec", "kept", "all", 0.0161, 0.0103),
        ("SETRec", "kept", "warm", 0.0212, 0.0134),
        ("SETRec", "kept", "cold", 0.0761, 0.0413),
        ("TIGER", "kept", "all", 0.0098, 0.0062),
        ("LETTER", "kept", "all", 0.0103, 0.0070),
        ("SemID", "kept", "all", 0.0131, 0.0078),
    ],
    ("amazon-toys", "setrec"): [
        ("SETRec", "kept", "all", 0.0189, 0.0118),
        ("SETRec", "kept", "warm", 0.0236, 0.0147),
        ("SETRec", "kept", "cold", 0.0812, 0.0445),
        ("TIGER", "kept", "all", 0.0106, 0.0076),
        ("LETTER", "kept", "all", 0.0117, 0.0077),
        ("SemID", "kept", "all", 0.0108, 0.0074),
    ],
    ("amazon-beauty", "leave-one-out"): [
        ("SASRec, sampled softmax", "removed", "all", 0.0921, 0.0531),
        ("eSASRec", "removed", "all", 0.0928, 0.0523),
        ("TIGER", "removed", "all", 0.0648, 0.0384),
    ],
    ("amazon-toys", "leave-one-out"): [
        ("SASRec, sampled softmax", "removed", "all", 0.0970, 0.0580),
        ("eSASRec", "removed", "all", 0.0939, 0.0538),
        ("TIGER", "removed", "all", 0.0712, 0.0432),
    ],
}


def rows(data: str, protocol: str) -> list[dict[str, object]]:
    """Return the published rows of a data set under a protocol."""
    names = ("system", "history", "group", "recall@10", "ndcg@10")
    return [dict(zip(names, row, strict=True)) for row in TABLES.get((data, protocol), [])]


TIES = {"amazon-beauty": 0.712, "amazon-toys": 0.752}
"""Share of users whose last item has a greater id than the one before, where half would be neutral: times are days, and
inside a day the rows of these files are in the order of ids. Systems can exploit what correlates with that order."""
