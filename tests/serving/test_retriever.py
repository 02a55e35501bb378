import faiss
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from serving_helpers import codes

from serving.retrieval import recall_audit
from serving.retrieval.policy import EXACT_BYTES, candidates
from serving.retrieval.retriever import Retriever, RetrieverSettings
from setrec.errors import BundleError

KINDS = ["exact", "ivf", "ivf_sq8", "ivf_pq"]
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


CENTRES = np.random.default_rng(9).normal(size=(40, 32))


class Clustered:
    """5,000 codes around 40 centres, with log-normal norms, queries of the same kind, and an index tuned on others."""

    def __init__(self, kind, heavy=None):
        self.kind, self.table = kind, self._draw(5000, seed=0)
        if heavy is not None:
            self.table[heavy] *= 20 * np.linalg.norm(self.table, axis=1).max() / np.linalg.norm(self.table[heavy])
        self.queries = self._draw(60, seed=2)
        chosen = RetrieverSettings(kind=kind, recall_target=0.98, tune_queries=200)
        self.retriever = Retriever.build(self.table, chosen, self._draw(400, seed=1))
        self.scores = self.queries.astype(np.float64) @ self.table.T.astype(np.float64)

    @staticmethod
    def _draw(count, seed):
        rng = np.random.default_rng(seed)
        rows = CENTRES[rng.integers(40, size=count)] + 0.5 * rng.normal(size=(count, 32))
        return (rows * np.exp(0.3 * rng.normal(size=(count, 1)))).astype(np.float32)

    def recall(self, k=10, excluded=None, allowed=None, retriever=None):
        """Share of the best by a float64 product of matrices that was found; all else that holds is asserted."""
        shares = []
        for b, hits in enumerate((retriever or self.retriever).search(self.queries, k, excluded, allowed)):
            left = np.ones(len(self.table), bool) if allowed is None or allowed[b] is None else allowed[b].copy()
            if excluded is not None:
                left[excluded[b]] = False
            number = min(k, int(left.sum()))
            assert len(hits.rows) == len(set(hits.rows.tolist())) == number
            assert left[hits.rows].all()
            np.testing.assert_allclose(hits.scores, self.scores[b, hits.rows], rtol=1e-12, atol=1e-12)
            assert (np.diff(hits.scores) <= 0).all()
            if number:
                true = np.lexsort((np.arange(len(left)), np.where(left, -self.scores[b], np.inf)))[:number]
                shares.append(np.isin(true, hits.rows).mean())
        return float(np.mean(shares)) if shares else 1.0

    def clusters(self):
        """The centre that each item points to most, int (I,)."""
        directions = CENTRES / np.linalg.norm(CENTRES, axis=1, keepdims=True)
        return (self.table @ directions.T).argmax(axis=1)

    def enough(self):
        return 1.0 if self.kind == "exact" else 0.95


@pytest.fixture(scope="module", params=KINDS)
def clustered(request):
    return Clustered(request.param)


class TestAgainstAProductOfMatrices:
    """Recall at the target, and under filters of every width."""

    def test_the_best_are_found(self, clustered):
        assert clustered.retriever.kind == clustered.kind
        assert clustered.recall() >= clustered.enough()
        assert clustered.recall(k=50) >= clustered.enough()

    def test_recall_is_what_the_audit_says(self, clustered):
        audit = clustered.retriever.audit(clustered.queries, 10)
        assert audit.recall == pytest.approx(clustered.recall())
        assert clustered.retriever.built_audit.low <= clustered.recall()

    @pytest.mark.parametrize("share", [1, 0.5, 0.25, 0.1, 0.01, 0.001])
    def test_under_a_filter_too(self, clustered, share, monkeypatch):
        # Otherwise lists are never worth their fixed cost for so few rows, and everything is searched exactly.
        monkeypatch.setattr("serving.retrieval.ivf._FIXED", 0)
        rng = np.random.default_rng(5)
        allowed = [rng.random(5000) < share for _ in clustered.queries]
        excluded = [rng.permutation(5000)[:50] for _ in clustered.queries]
        assert clustered.recall(allowed=allowed) >= clustered.enough()
        assert clustered.recall(allowed=allowed, excluded=excluded) >= clustered.enough()

    @pytest.mark.parametrize(("kept", "bound"), [(4, 0.95), (13, 0.9), (26, 0.7)])
    def test_under_a_filter_that_goes_with_the_codes_less_is_found(self, clustered, kept, bound, monkeypatch):
        """As genres do: some of the 40 clusters, drawn for each query, and never the one that it scores highest.

        Efforts are tuned on random filters, so the wider of these miss the target of 0.98: at 26 clusters, lists find
        0.87 to 0.89.
        """
        monkeypatch.setattr("serving.retrieval.ivf._FIXED", 0)
        rng, of_item = np.random.default_rng(7), clustered.clusters()
        own = of_item[clustered.scores.argmax(axis=1)]
        allowed = [np.isin(of_item, rng.permutation(np.delete(np.arange(40), mine))[:kept]) for mine in own]
        assert clustered.recall(allowed=allowed) >= (1.0 if clustered.kind == "exact" else bound)

    def test_one_item_allowed_is_found_and_none_gives_none(self, clustered):
        one, none = np.arange(5000) == 1234, np.zeros(5000, bool)
        for hits in clustered.retriever.search(clustered.queries, 10, None, [one] * 60):
            assert hits.rows.tolist() == [1234]
        assert clustered.recall(allowed=[one, none, None] * 20) >= clustered.enough()
        assert clustered.recall(allowed=[one] * 60, excluded=[np.array([1234])] * 60) == 1.0

    def test_a_filter_of_everything_is_no_filter(self, clustered):
        allowed = [np.ones(5000, bool)] * 60
        assert clustered.recall(allowed=allowed) >= clustered.recall() - 0.01

    def test_saved_and_loaded_it_gives_the_same_answers(self, clustered, tmp_path):
        clustered.retriever.save(tmp_path)
        loaded = Retriever.load(tmp_path, clustered.table)
        assert (loaded.plan, loaded.built_audit) == (clustered.retriever.plan, clustered.retriever.built_audit)
        rng = np.random.default_rng(6)
        excluded = [rng.permutation(5000)[:50] for _ in clustered.queries]
        for allowed in (None, [rng.random(5000) < 0.5 for _ in clustered.queries]):
            asked = (clustered.queries, 10, excluded, allowed)
            for a, b in zip(clustered.retriever.search(*asked), loaded.search(*asked), strict=True):
                np.testing.assert_array_equal(a.rows, b.rows)
                np.testing.assert_array_equal(a.scores, b.scores)

    def test_built_again_it_is_the_same_index(self, clustered):
        again = Clustered(clustered.kind).retriever
        assert again.plan == clustered.retriever.plan
        for a, b in zip(
            again.search(clustered.queries, 10), clustered.retriever.search(clustered.queries, 10), strict=True
        ):
            np.testing.assert_array_equal(a.rows, b.rows)


@pytest.mark.parametrize("kind", KINDS)
def test_one_item_of_twenty_times_the_norm_does_not_hide_the_others(kind):
    heavy = Clustered(kind, heavy=77)
    assert heavy.recall() >= heavy.enough()
    # Queries that score it highest find it first.
    towards = heavy.scores[:, 77] >= heavy.scores.max(axis=1)
    assert towards.any()
    for hits, first in zip(heavy.retriever.search(heavy.queries, 1), towards, strict=True):
        if first:
            assert hits.rows.tolist() == [77]


@pytest.mark.parametrize("kind", ["ivf", "ivf_sq8", "ivf_pq"])
def test_lists_answer_filtered_queries_themselves(kind, monkeypatch):
    """Were everything searched exactly, the recall of filtered searches would say nothing."""
    monkeypatch.setattr("serving.retrieval.ivf._FIXED", 0)
    some = Clustered(kind)
    monkeypatch.setattr(some.retriever.exact, "best", None)
    allowed = [np.random.default_rng(5).random(5000) < 0.5] * 60
    for hits in some.retriever.search(some.queries, 10, None, allowed):
        assert len(hits.rows) == 10


class TestPolicy:
    """Which kind a catalogue gets when nobody says."""

    def test_small_catalogues_are_searched_exactly(self):
        retriever = Retriever.build(codes(2000, 32), RetrieverSettings())
        assert retriever.kind == "exact"
        assert "are read at once" in retriever.plan.reason
        assert retriever.built_audit.recall == 1.0

    def test_so_are_large_ones_where_everything_is_to_be_found(self):
        assert candidates(RetrieverSettings(recall_target=1), 10**8, 192)[0][0] == "exact"

    @pytest.mark.parametrize(
        ("size", "kinds"),
        [
            (EXACT_BYTES, ["exact"]),
            (EXACT_BYTES + 400, ["ivf_pq", "ivf_sq8", "ivf", "exact"]),
        ],
    )
    def test_the_kinds_to_try_go_by_size(self, size, kinds):
        assert [kind for kind, _ in candidates(RetrieverSettings(), size // 400, 100)] == kinds

    def test_what_is_asked_for_is_taken(self):
        assert [kind for kind, _ in candidates(RetrieverSettings(kind="ivf_sq8"), 10, 4)] == ["ivf_sq8"]

    def test_beyond_the_bound_a_measured_index_is_taken_if_it_suffices(self, monkeypatch):
        monkeypatch.setattr("serving.retrieval.policy.EXACT_BYTES", 0)
        plain = Clustered("auto")
        assert plain.retriever.kind == "ivf_pq"
        assert plain.recall() >= 0.95

    def test_and_exact_search_if_none_does(self, monkeypatch):
        monkeypatch.setattr("serving.retrieval.policy.EXACT_BYTES", 0)
        rng = np.random.default_rng(0)
        table, queries = rng.normal(size=(2000, 64)).astype(np.float32), rng.normal(size=(100, 64)).astype(np.float32)
        retriever = Retriever.build(table, RetrieverSettings(tune_queries=50), queries)
        assert (retriever.kind, retriever.plan.reason) == (
            "exact",
            "no index reached the target by scanning less than a third",
        )


def test_codes_of_few_directions_are_kept_in_fewer_numbers():
    """10 directions of 48 numbers: a third of the numbers, in 4 bits each, and the target is still reached."""
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(10, 48)).astype(np.float32)
    table, queries = (
        (rng.normal(size=(rows, 10)).astype(np.float32) @ mixing + 0.01 * rng.normal(size=(rows, 48))).astype("f")
        for rows in (5000, 400)
    )
    retriever = Retriever.build(table, RetrieverSettings(kind="ivf_pq"), queries)
    assert retriever._index._lists.code_size == 8
    assert retriever.built_audit.recall >= 0.98


@pytest.mark.parametrize("kind", ["ivf", "ivf_sq8", "ivf_pq"])
def test_codes_in_a_file_are_indexed_in_batches_to_the_same_index(kind, tmp_path, monkeypatch):
    np.save(tmp_path / "codes.npy", TABLE)
    settings = RetrieverSettings(kind=kind, nprobe=5)
    whole = Retriever.build(TABLE, settings)
    monkeypatch.setattr("serving.retrieval.ivf._BATCH", 64)
    monkeypatch.setattr("serving.retrieval.recall_audit._GATHERED", 64)
    parts = Retriever.build(np.load(tmp_path / "codes.npy", mmap_mode="r"), settings)
    assert parts.plan == whole.plan
    for a, b in zip(whole.search(QUERIES, 10), parts.search(QUERIES, 10), strict=True):
        np.testing.assert_array_equal(a.rows, b.rows)


def test_true_items_under_a_filter_are_the_same_from_parts(monkeypatch):
    mask = np.random.default_rng(1).random(len(TABLE)) < 0.5
    monkeypatch.setattr("serving.retrieval.recall_audit._GATHERED", 37)
    plain, filtered = recall_audit.truth(TABLE, QUERIES, 10, [None, mask])
    for query, all_rows, allowed in zip(QUERIES, plain, filtered, strict=True):
        assert all_rows.tolist() == best(TABLE, query, 10)
        assert allowed.tolist() == best(TABLE, query, 10, np.flatnonzero(~mask))
