"""The synthetic world has the traits that it says it has."""

import numpy as np
import pandas as pd
import pytest
from interactions import EXPONENT, World, blocks, write

WORLD = World(users=4000, items=2000, topics=20)


@pytest.fixture(scope="module")
def drawn():
    users, items, times = (np.concatenate(parts) for parts in zip(*blocks(WORLD), strict=True))
    return pd.DataFrame({"user": users, "item": items, "time": times})


def test_the_same_world_is_the_same_files_and_the_files_are_the_world(drawn, tmp_path):
    for name in ("a", "b"):
        write(WORLD, tmp_path / name)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.parquet"))
    assert len(files) == 13
    assert all((tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes() for file in files)
    found = pd.read_parquet(tmp_path / "a" / "interactions").sort_values(["user_id", "timestamp", "item_id"])
    expected = pd.DataFrame(
        {
            "user_id": "u" + drawn["user"].astype(str),
            "item_id": "i" + drawn["item"].astype(str),
            "timestamp": drawn["time"],
        }
    ).sort_values(["user_id", "timestamp", "item_id"])
    assert found.to_numpy().tolist() == expected.to_numpy().tolist()
    assert pd.read_parquet(tmp_path / "a" / "items")["item_id"].tolist() == [f"i{i}" for i in range(2000)]


def test_histories_have_the_length_asked_for_and_go_forward_in_time(drawn):
    lengths = drawn.groupby("user").size()
    assert len(lengths) == 4000
    assert lengths.min() >= 3
    assert lengths.mean() == pytest.approx(10, abs=0.3)
    assert (drawn["time"].diff()[drawn["user"].diff() == 0] >= 0).all()


def test_popularity_within_a_topic_falls_as_stated(drawn):
    ranks = drawn["item"] // WORLD.topics
    counts = ranks.value_counts().sort_index().to_numpy()[1:80]
    slope = np.polyfit(np.log(np.arange(2, 81) + 0.5), np.log(counts), 1)[0]
    assert slope == pytest.approx(-EXPONENT, abs=0.1)


def test_sessions_stay_with_a_topic_and_users_with_theirs(drawn):
    same_user = drawn["user"].diff() == 0
    topic = drawn["item"] % WORLD.topics
    close = same_user & (drawn["time"].diff() < 600)
    apart = same_user & (drawn["time"].diff() > 3600)
    within = (topic == topic.shift())[close].mean()
    assert within > 0.75 > 0.55 > (topic == topic.shift())[apart].mean() > 0.25
