import numpy as np
import pandas as pd
import pytest
from circles import write_world

from pipelines.benchmark.base import problem
from setrec.data.catalog import TEST, TRAIN, VALID
from setrec.errors import DataError
from setrec.evaluation import ranking
from setrec.text.lexical import LexicalEncoder


def test_a_published_split_is_taken_as_it_is(world, prepared):
    given = problem.load(prepared)
    told = pd.read_parquet(world / "setrec_split.parquet")
    assert len(given.histories) == told["user"].nunique()
    assert given.items == told["item_id"].nunique()
    cold = set(told["item_id"]) - set(told.loc[told["split"] == "train", "item_id"])
    assert {given.catalog.item_ids[row] for row in np.flatnonzero(~given.trained)} == cold
    for split, name in ((TRAIN, "train"), (VALID, "valid"), (TEST, "test")):
        own = told[(told["split"] == name) & (told["user"] == 3)].sort_values("position")["item_id"].tolist()
        row = given.histories.row("3")
        assert [given.catalog.item_ids[i] for i in given.histories.of(split)[row]] == own


def test_all_test_items_of_a_user_are_to_be_found_and_the_history_holds_what_came_before(prepared):
    given = problem.load(prepared)
    for case in range(len(given.test)):
        user = given.test.users[case]
        assert len(given.test.truth[case]) == len(set(given.histories.of(TEST)[user]))
        assert given.test.history[case].tolist() == given.histories.upto(VALID)[user].tolist()


def test_without_a_published_split_the_rule_is_applied_to_timestamps(tmp_path):
    folder, out = write_world(tmp_path / "w"), tmp_path / "p"
    problem.prepare(folder, "setrec", out, None)
    given = problem.load(out)
    times = pd.read_parquet(folder / "interactions.parquet")["timestamp"].sort_values(ascending=False)
    share = (given.histories.splits == TEST).mean()
    assert 0.17 <= share < 0.25, "ties at the cut go to the later part"
    assert times.iloc[int(0.17 * len(times))] > 0
    assert (given.train.lengths >= 2).all()


def test_positions_alone_do_not_make_a_global_split(tmp_path):
    folder = write_world(tmp_path / "w")
    table = pd.read_parquet(folder / "interactions.parquet").rename(columns={"timestamp": "position"})
    table.to_parquet(folder / "interactions.parquet")
    with pytest.raises(DataError, match=r"timestamp, or setrec_split.parquet"):
        problem.prepare(folder, "setrec", tmp_path / "p", None)


def test_leave_one_out_asks_for_the_last_item_of_every_user(world, tmp_path):
    problem.prepare(world, "leave-one-out", tmp_path / "p", None)
    given = problem.load(tmp_path / "p")
    assert len(given.test) == len(given.histories) == len(given.valid)
    assert (given.test.truth.lengths == 1).all()
    assert given.goal == "removed"


def test_item_rows_do_not_go_with_ids(prepared):
    given = problem.load(prepared)
    order = np.argsort(given.catalog.item_ids)
    assert abs(np.corrcoef(order, np.arange(len(order)))[0, 1]) < 0.5


def test_only_columns_of_words_become_texts(prepared):
    given = problem.load(prepared)
    shelf = int(given.catalog.item_ids[0][1:]) // 8
    assert given.catalog.texts[0].startswith(f"thing of shelf {shelf}")
    assert not any("setrec" in text.lower() for text in given.catalog.texts)


def test_the_hash_tells_data_and_protocols_apart(world, prepared):
    assert problem.load(prepared).hash == problem.hash_of(world, "setrec")
    assert problem.hash_of(world, "setrec") != problem.hash_of(world, "leave-one-out")


def test_a_table_that_is_missing_is_named(tmp_path):
    with pytest.raises(DataError, match=r"interactions.parquet"):
        problem.prepare(tmp_path, "leave-one-out", tmp_path / "p", None)


def test_items_without_texts_have_no_vectors(tmp_path):
    folder = write_world(tmp_path / "w", texts=False)
    problem.prepare(folder, "leave-one-out", tmp_path / "p", None)
    assert problem.load(tmp_path / "p").text is None


def test_word_vectors_bring_texts_of_shared_rare_words_together():
    texts = ["red lacquer opi", "blue lacquer opi", "green soap lush", "white soap lush", ""]
    vectors = LexicalEncoder.fit(texts, width=4).vectors(texts)
    assert vectors.shape == (5, 4)
    assert vectors[0] @ vectors[1] > 0.9 > 0.1 > vectors[0] @ vectors[2]
    np.testing.assert_array_equal(vectors[4], 0)
    np.testing.assert_allclose(vectors, LexicalEncoder.fit(texts, width=4).vectors(texts), atol=1e-6)


def test_cold_items_are_ranked_among_themselves(prepared):
    given = problem.load(prepared)
    found = ranking.evaluate(
        lambda history: np.zeros((len(history), given.items), np.float32),
        given.test, ranking.warm_cold_groups(given.trained), ks=(10,),
    )  # fmt: skip
    assert found.mean("recall@10", "cold", "kept") == 1.0
