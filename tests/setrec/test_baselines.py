"""Popularity and ItemKNN: what they compute, and the quality they must reach on data of known structure."""

import numpy as np
import pytest

from setrec.data.catalog import TEST, TRAIN, VALID, Histories
from setrec.data.splits import leave_one_out
from setrec.evaluation import ranking
from setrec.ragged import Ragged
from setrec.scoring import baselines

ITEMS = 40


def communities(users: int = 200, groups: int = 4, seed: int = 0) -> Histories:
    """Each user takes 8 of the 10 items of one community, in random order: co-occurrence tells all."""
    rng = np.random.default_rng(seed)
    size = ITEMS // groups
    rows = [rng.integers(groups) * size + rng.permutation(size)[:8] for _ in range(users)]
    items = Ragged.of(rows)
    return Histories([str(u) for u in range(users)], items, leave_one_out(items.offsets))


def tangled(seed: int = 1) -> Histories:
    """Random histories with repetitions, the last two held out."""
    rng = np.random.default_rng(seed)
    items = Ragged.of([rng.integers(0, ITEMS, rng.integers(3, 12)) for _ in range(60)])
    return Histories([str(u) for u in range(60)], items, leave_one_out(items.offsets))


def by_definition(histories: Histories, history: np.ndarray, s: baselines.ItemKnnSettings) -> np.ndarray:
    """ItemKNN's scores item by item, in loops over sets."""
    baskets = [set(row.tolist()) for row in histories.upto(TRAIN)]
    count = [sum(i in basket for basket in baskets) for i in range(ITEMS)]
    similar = np.zeros((ITEMS, ITEMS))
    for i in range(ITEMS):
        for j in range(ITEMS):
            if i != j:
                together = sum(i in basket and j in basket for basket in baskets)
                similar[i, j] = together / ((count[i] ** 0.5 + s.shrink) * (count[j] ** 0.5 + s.shrink))
        similar[i, np.argsort(-similar[i], kind="stable")[s.neighbours :]] = 0
    recent = history[::-1][: s.last]
    return sum((s.decay**age * similar[item] for age, item in enumerate(recent)), np.zeros(ITEMS))


def test_popularity_counts_training_interactions_alone():
    items = Ragged.of([[0, 1, 2], [1, 2, 3]])
    histories = Histories(["a", "b"], items, np.array([TRAIN, TRAIN, TEST, TRAIN, VALID, TEST], dtype=np.int8))
    scores = baselines.Popularity(histories.train_counts(5))(Ragged.of([[4], [0], []]))
    assert scores.dtype == np.float32
    assert scores.tolist() == [[1, 2, 0, 0, 0]] * 3


@pytest.mark.parametrize("neighbours", [3, ITEMS])
@pytest.mark.parametrize(("shrink", "decay", "last"), [(0.0, 1.0, 50), (3.0, 0.6, 4)])
def test_sparse_products_equal_the_definition(neighbours, shrink, decay, last):
    histories = tangled()
    s = baselines.ItemKnnSettings(neighbours=neighbours, shrink=shrink, decay=decay, last=last)
    model, history = baselines.ItemKnn(histories, ITEMS, s), histories.upto(VALID)
    if neighbours < ITEMS:
        # Ties at the border of the neighbourhood may fall either way: compare where there are none.
        scores = model(history)
        assert (np.diff(model.similar.indptr) <= neighbours).all()
        full = baselines.ItemKnn(histories, ITEMS, s.model_copy(update={"neighbours": ITEMS}))
        assert (scores <= full(history) + 1e-6).all()
        np.testing.assert_allclose(
            np.sort(model.similar.toarray(), axis=1)[:, -neighbours:],
            np.sort(full.similar.toarray(), axis=1)[:, -neighbours:],
            rtol=1e-6,
        )
    else:
        expected = [by_definition(histories, row, s) for row in history]
        np.testing.assert_allclose(model(history), expected, rtol=1e-4, atol=1e-6)


def test_a_batch_scores_as_its_users_one_by_one():
    histories = tangled()
    model, history = baselines.ItemKnn(histories, ITEMS, baselines.ItemKnnSettings()), histories.upto(VALID)
    alone = np.concatenate([model(Ragged.of([row])) for row in history])
    np.testing.assert_allclose(model(history), alone, rtol=1e-6)


def test_held_out_interactions_do_not_change_the_neighbours():
    histories = tangled()
    train_only = Histories(
        histories.user_ids, histories.upto(TRAIN), np.zeros(len(histories.upto(TRAIN).values), np.int8)
    )
    models = [baselines.ItemKnn(h, ITEMS, baselines.ItemKnnSettings()) for h in (histories, train_only)]
    assert (models[0].similar != models[1].similar).nnz == 0


def test_on_communities_item_knn_is_as_good_as_knowing_them_and_popularity_is_not():
    histories = communities()
    cases = ranking.Cases.of(histories, TEST)
    knn, tried = baselines.tune_item_knn(histories, ITEMS)
    # Three items of the community are left to the guess: recall@5 is 1, the rank is uniform over 3.
    found = ranking.evaluate(knn, cases, ranking.warm_cold_groups(np.ones(ITEMS, bool)), ks=(5, 10))
    chance = np.mean([1 / np.log2(place + 2) for place in range(3)])
    assert found.mean("recall@5") == 1.0
    assert 0.9 * chance < found.mean("ndcg@10") < 1.1 * chance
    popular = ranking.mean_metric(baselines.Popularity(histories.train_counts(ITEMS)), cases)
    assert popular < 0.4 * found.mean("ndcg@10")
    assert len(tried) == np.prod([len(values) for values in baselines.GRID.values()])


def test_tuning_takes_the_best_of_the_grid_on_validation_and_never_looks_at_the_test_items():
    histories = tangled()
    model, tried = baselines.tune_item_knn(histories, ITEMS)
    best = max(tried, key=lambda row: row["ndcg@10"])
    assert model.settings.model_dump() == {k: v for k, v in best.items() if k != "ndcg@10"}
    assert ranking.mean_metric(model, ranking.Cases.of(histories, VALID)) == pytest.approx(best["ndcg@10"])
    blind = Histories(
        histories.user_ids, histories.items.where(histories.splits != TEST), histories.splits[histories.splits != TEST]
    )
    assert baselines.tune_item_knn(blind, ITEMS)[1] == tried


def test_without_validation_items_tuning_returns_the_defaults():
    items = Ragged.of([[0, 1, 2], [1, 2]])
    model, tried = baselines.tune_item_knn(Histories(["a", "b"], items, np.zeros(5, np.int8)), 3)
    assert model.settings == baselines.ItemKnnSettings()
    assert tried == []
