"""With the cache of users every answer is that of an engine without one, whatever happens to histories and items."""

import numpy as np
import pytest
from serving_helpers import SLOTS, catalog, histories
from small_models import ITEMS, small_model

from serving.bundle.reader import Bundle
from serving.bundle.writer import write_bundle
from serving.engine import user_codes
from serving.engine.acceptance import examine
from serving.engine.engine import Engine, Request
from serving.runtime import edits
from serving.runtime.models import Live, Loader, Model
from serving.runtime.settings import ServingSettings
from serving.stores import Event, open_store
from serving.stores.item_changes import ItemFields
from serving.telemetry import metrics
from setrec.models.item_tokens import ItemFeatures
from setrec.scoring.hybrid import HybridWeights

MOST, AMPLE = 8, 1 << 24


class Texts:
    """Vectors of 32 numbers from texts."""

    identity = "vectors"

    def encode(self, texts):
        return np.stack([np.random.default_rng(list(text.encode())).normal(size=32) for text in texts]).astype("f4")


def bundle_of(folder, family="qwen3", **changes):
    """A bundle of a small model that reads ``MOST`` items."""
    rng = np.random.default_rng(0)
    vectors = [rng.normal(size=(ITEMS, width)).astype(np.float32) for width in (64, 32)]
    features = ItemFeatures(trained=np.ones(ITEMS, bool), collaborative=vectors[0], text=vectors[1])
    options = {"max_items": MOST, "query_mode": "auto", "history_skip": (0.0, 0.8), "repeat_bias": True}
    model = small_model(features, family, "fused", **(options | changes))
    model.save_pretrained(folder / "model")
    codes, scorer = model.item_codes().numpy(), HybridWeights(slots=SLOTS)
    parts = {"catalog": catalog(ITEMS), "histories": histories(ITEMS), "item_codes": codes, "scorer": scorer}
    write_bundle(folder / "b", model_dir=folder / "model", examine=examine, **parts)
    return Bundle.open(folder / "b")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return bundle_of(tmp_path_factory.mktemp("cached"))


class Pair:
    """An engine with a cache and one without, over one store."""

    def __init__(self, bundle, store, cache=AMPLE):
        self.store = store
        make = {"store": store, "max_k": ITEMS, "encode": Texts()}
        self.cached, self.plain = Engine(bundle, user_cache_bytes=cache, **make), Engine(bundle, **make)
        self.time = 0.0

    def meet(self, user, *rows, at=None, type=""):
        for row in rows:
            self.time += 1
            item = row if isinstance(row, str) else f"item-{row}"
            self.store.append([Event(user, item, self.time if at is None else at, type=type)])

    def ask(self, *users):
        """Compare the answers of both engines in one batch; return how many histories were read on from the cache."""
        requests = [u if isinstance(u, Request) else Request(user_id=u, k=ITEMS - 15) for u in users]
        self.plain.catch_up()
        before = hits()
        for one, other in zip(self.cached.recommend(requests), self.plain.recommend(requests), strict=True):
            assert [item.item_id for item in one.items] == [item.item_id for item in other.items]
            np.testing.assert_allclose(
                [i.score for i in one.items], [i.score for i in other.items], rtol=1e-4, atol=1e-5
            )
        return hits() - before


def hits():
    return metrics.USER_CACHE.labels("hit")._value.get()


def size():
    return metrics.USER_CACHE_BYTES._value.get()


@pytest.fixture
def pair(bundle, tmp_path):
    store = open_store(str(tmp_path / "live.db"))
    pair = Pair(bundle, store)
    yield pair
    pair.cached.retire()
    store.close()


def test_after_an_event_the_rest_of_the_history_is_not_read_again(pair):
    pair.meet("u", 1, 2, 3, 4)
    assert pair.ask("u") == 0
    for row in (5, 6):
        pair.meet("u", row)
        assert pair.ask("u") == 1
    assert pair.ask("u") == 1


def test_a_batch_mixes_users_known_and_not_and_histories_of_no_user(pair):
    for user, rows in {"u": (1, 2, 3, 4), "v": (5, 6), "w": (7, 8, 9)}.items():
        pair.meet(user, *rows)
    pair.ask("u", "v")
    pair.meet("u", 10)
    pair.meet("v", 11)
    spelled_out = Request(history=("item-1", "item-2"))
    assert pair.ask("w", "u", "nobody", spelled_out, "v", "u", "user-1", Request(user_id="v", live=False)) == 3


def test_a_history_of_no_user_and_the_bundles_part_of_one_are_not_cached(pair):
    before = size()
    pair.ask(Request(history=("item-1", "item-2")), Request(user_id="user-1", live=False))
    assert size() == before


def test_once_the_window_slides_a_history_is_read_whole_unless_it_is_the_same(pair):
    pair.meet("u", *range(MOST))
    pair.ask("u")
    pair.meet("u", 20)
    assert pair.ask("u") == 0
    assert pair.ask("u") == 1


def test_a_history_changed_in_an_early_place_is_read_whole_and_in_a_late_one_from_there(pair):
    pair.meet("u", 1, 2, 3, 4, 5, 6)
    pair.ask("u")
    pair.meet("u", 20, at=0.5)
    assert pair.ask("u") == 0
    pair.meet("u", 6, type="dislike")
    assert pair.ask("u") == 1


def test_an_item_put_again_is_read_with_its_new_text_also_when_rows_are_numbered_anew(pair, monkeypatch):
    def put(text):
        edits.put_item(pair.cached, "new", ItemFields(title="t", text=text, attributes={}))

    put("one")
    pair.meet("u", "new", 1, 2, 3)
    pair.ask("u")
    put("two")
    assert pair.ask("u") == 0
    monkeypatch.setattr("serving.engine.state._SPARE_ROWS", -2)
    put("three")
    put("four")
    assert (pair.cached.state.items.find("new"), pair.ask("u")) == (ITEMS, 0)
    put("five")  # in the row of the fourth
    assert (pair.cached.state.items.find("new"), pair.ask("u")) == (ITEMS, 0)


def test_an_erased_user_leaves_the_cache_and_is_not_cached_again(pair):
    before = size()
    pair.meet("u", 1, 2, 3)
    pair.ask("u")
    assert size() > before
    edits.erase_user(pair.cached, "u")
    assert size() == before
    pair.meet("u", 1, 2, 3)
    assert pair.ask("u", "u") == 0
    assert size() == before


def test_the_least_recently_used_users_make_room_within_the_bytes_given(bundle, tmp_path, pair):
    empty = size()
    pair.meet("u", 1, 2, 3)
    pair.ask("u")
    one = size() - empty
    small = Pair(bundle, pair.store, cache=int(2.5 * one))
    for user in ("v", "w"):
        small.meet(user, 4, 5, 6)
    before = size()
    for users, found in (("u", 0), ("v", 0), ("u", 1), ("w", 0), ("u", 1), ("v", 0)):
        assert small.ask(users) == found
        assert size() - before <= small.cached.user_codes._limit
    small.meet("x", *range(MOST))
    assert Pair(bundle, pair.store, cache=one).ask("x", "x") == 0
    small.cached.retire()
    assert size() == before


def test_a_release_frees_the_cache_of_the_model_before(bundle):
    loader = Loader(ServingSettings(auth="off", user_cache_bytes=AMPLE))
    live, before = Live(loader.load(bundle.path).engine), size()
    live.recommend([Request(user_id="user-1")])
    assert size() > before
    old = live.swap(Model(loader.load(bundle.path, tested=True).engine))
    assert size() == before
    old.engine.recommend([Request(user_id="user-1")])
    assert size() == before


@pytest.mark.parametrize("family", ["qwen3", "t5"])
def test_behind_learned_queries_and_behind_an_encoder_nothing_is_cached(tmp_path, family):
    store = open_store(str(tmp_path / "live.db"))
    pair = Pair(bundle_of(tmp_path, family, query_mode="learned"), store)
    pair.meet("u", 1, 2, 3)
    pair.ask("u")
    pair.meet("u", 4)
    assert pair.ask("u") == 0
    pair.cached.retire()
    store.close()


def test_answers_are_the_same_whether_the_inputs_of_items_are_held_or_computed(bundle, tmp_path, monkeypatch):
    """Also for histories with an item that was added live, and after the added rows have new numbers."""
    held = Engine(bundle, store=open_store(str(tmp_path / "live.db")), max_k=ITEMS, encode=Texts())
    monkeypatch.setattr(user_codes, "_INPUT_BYTES", 0)
    computed = Engine(bundle, store=held.store, max_k=ITEMS, encode=Texts())
    assert held.user_codes._inputs is not None
    assert computed.user_codes._inputs is None
    requests = [Request(user_id=user, k=10) for user in ("user-1", "user-2")]
    requests += [Request(history=rows, k=10) for rows in (("item-3",), ("item-9", "item-4", "item-9"))]
    edits.put_item(held, "fresh", ItemFields(title="A new one", text="its words", attributes={}))
    for engine in (held, computed):
        engine.catch_up()
    requests.append(Request(history=("item-3", "fresh", "item-5"), k=10))
    for some in (requests, requests[:-1], requests[-1:], requests[2:3]):
        for one, other in zip(held.recommend(some), computed.recommend(some), strict=True):
            assert [item.item_id for item in one.items] == [item.item_id for item in other.items]
            np.testing.assert_allclose([i.score for i in one.items], [i.score for i in other.items], rtol=1e-4)
