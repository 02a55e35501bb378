import faiss
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from serving_helpers import codes

from serving.retriever import Retriever, RetrieverSettings
from setrec.errors import BundleError

KINDS = ["exact", "hnsw", "ivf"]
TABLE = codes(500, 24)
QUERIES = codes(40, 24, seed=1)


@pytest.fixture(scope="module", params=KINDS)
def retriever(request):
    return Retriever.build(TABLE, RetrieverSettings(kind=request.param, nprobe=40))


def best(table, query, k, excluded=()):
    """The definition: all scores, in full, sorted by score and then by row."""
    scores = table.astype(np.float64) @ query.astype(np.float64)
    rows = [r for r in np.lexsort((np.arange(len(table)), -scores)) if r not in set(map(int, excluded))]
    return rows[:k]


class TestEveryKind:
    """What holds whichever index proposes the candidates."""

    def test_scores_are_exact_and_in_order(self, retriever):
        for query, hits in zip(QUERIES, retriever.search(QUERIES, 10), strict=True):
            np.testing.assert_allclose(hits.scores, TABLE[hits.rows] @ query, rtol=1e-4, atol=1e-4)
            assert (np.diff(hits.scores) <= 0).all()

    def test_finds_nearly_all_of_the_best(self, retriever):
        audit = retriever.audit(QUERIES, 10)
        assert audit.recall > 0.9
        assert 0 <= audit.low <= audit.recall <= audit.high <= 1
        assert (audit.queries, audit.k) == (40, 10)

    @pytest.mark.parametrize("left", [500, 400, 12, 3, 1, 0])
    def test_gives_k_items_whenever_k_are_left_whatever_is_excluded(self, retriever, left):
        rng = np.random.default_rng(left)
        excluded = [rng.permutation(500)[left:] for _ in QUERIES]
        for banned, hits in zip(excluded, retriever.search(QUERIES, 10, excluded), strict=True):
            assert len(hits.rows) == min(10, left)
            assert not np.isin(hits.rows, banned).any()

    def test_excluding_the_best_gives_the_next(self, retriever):
        first = retriever.search(QUERIES, 20)
        rest = retriever.search(QUERIES, 10, [hits.rows[:10] for hits in first])
        overlap = [np.isin(a.rows[10:], b.rows).mean() for a, b in zip(first, rest, strict=True)]
        assert np.mean(overlap) > 0.9

    def test_a_query_gets_the_same_beside_others_as_alone(self, retriever):
        ks = [1 + b % 17 for b in range(len(QUERIES))]
        excluded = [np.arange(b) for b in range(len(QUERIES))]
        for b, hits in enumerate(retriever.search(QUERIES, ks, excluded)):
            (alone,) = retriever.search(QUERIES[b : b + 1], ks[b], excluded[b : b + 1])
            np.testing.assert_array_equal(hits.rows, alone.rows)
            np.testing.assert_array_equal(hits.scores, alone.scores)

    def test_saved_is_loaded(self, retriever, tmp_path):
        retriever.save(tmp_path)
        loaded = Retriever.load(tmp_path, TABLE)
        assert loaded.settings == retriever.settings
        for a, b in zip(retriever.search(QUERIES, 10), loaded.search(QUERIES, 10), strict=True):
            np.testing.assert_array_equal(a.rows, b.rows)

    def test_an_index_of_other_codes_is_refused(self, retriever, tmp_path):
        retriever.save(tmp_path)
        for wrong in (TABLE[:-1], TABLE[:, :-1]):
            with pytest.raises(BundleError, match="the codes need"):
                Retriever.load(tmp_path, wrong)

    def test_a_damaged_index_is_refused(self, retriever, tmp_path):
        retriever.save(tmp_path)
        for name in sorted(file.name for file in tmp_path.iterdir()):
            whole = (tmp_path / name).read_bytes()
            (tmp_path / name).write_bytes(whole[: len(whole) // 2])
            with pytest.raises(BundleError, match="no readable index"):
                Retriever.load(tmp_path, TABLE)
            (tmp_path / name).write_bytes(whole)

    def test_a_catalogue_of_one_item_is_a_catalogue(self, retriever):
        one = Retriever.build(TABLE[:1], retriever.settings)
        assert one.search(QUERIES[:1], 10)[0].rows.tolist() == [0]


def test_exact_search_is_torchs_exact_search():
    table, queries = torch.from_numpy(TABLE), torch.from_numpy(QUERIES)
    expected = (queries @ table.T).topk(10)
    for b, hits in enumerate(Retriever.build(TABLE, RetrieverSettings()).search(QUERIES, 10)):
        assert hits.rows.tolist() == expected.indices[b].tolist()
        np.testing.assert_allclose(hits.scores, expected.values[b], rtol=1e-4, atol=1e-4)


@given(seed=st.integers(0, 2**32 - 1), items=st.integers(1, 40), k=st.integers(1, 12), share=st.floats(0, 1))
def test_exact_search_is_the_definition_even_where_nearly_everything_ties(seed, items, k, share):
    rng = np.random.default_rng(seed)
    table = rng.integers(-1, 2, size=(items, 3)).astype(np.float32)
    queries = rng.integers(-1, 2, size=(3, 3)).astype(np.float32)
    excluded = [np.flatnonzero(rng.random(items) < share) for _ in queries]
    retriever = Retriever.build(table, RetrieverSettings(oversample=1))
    for query, banned, hits in zip(queries, excluded, retriever.search(queries, k, excluded), strict=True):
        assert hits.rows.tolist() == best(table, query, k, banned)


def test_items_of_unequal_norm_are_found_by_inner_product_not_by_distance():
    rng = np.random.default_rng(3)
    table = rng.normal(size=(2000, 16)) * np.exp(rng.normal(size=(2000, 1)))
    queries = rng.normal(size=(50, 16)).astype(np.float32)
    for kind in KINDS:
        audit = Retriever.build(table.astype(np.float32), RetrieverSettings(kind=kind, nprobe=64)).audit(queries, 10)
        assert audit.recall > 0.9, kind


def test_faiss_and_torch_take_turns_in_one_process():
    retriever = Retriever.build(TABLE, RetrieverSettings(kind="ivf"))
    layer = torch.nn.Linear(24, 24)
    for _ in range(5):
        with torch.inference_mode():
            queries = layer(torch.from_numpy(QUERIES)).numpy()
        assert len(retriever.search(queries, 5)) == len(QUERIES)
    assert faiss.omp_get_max_threads() == 1
