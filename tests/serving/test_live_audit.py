"""The recall of live answers, measured beside the requests, against the definition worked out by hand."""

import threading
import time

import numpy as np
import pytest
from serving_helpers import FakeText, catalog, codes, fake_bundle, histories, load_fake
from starlette.testclient import TestClient

from serving.api.application import create_app
from serving.bundle.reader import Bundle
from serving.engine.engine import Engine, Request
from serving.engine.live_audit import Answered, Auditor
from serving.retrieval.retriever import RetrieverSettings
from serving.runtime import edits
from serving.runtime.models import Live, Model
from serving.runtime.replica import open_live
from serving.runtime.settings import ServingSettings
from serving.stores import open_store
from serving.stores.item_changes import ItemFields
from serving.telemetry import metrics

ITEMS, K = 600, 5
POOR = RetrieverSettings(kind="ivf", nlist=16, nprobe=1, oversample=1)


def opened(out, settings):
    fake_bundle(out, settings, catalog=catalog(ITEMS), histories=histories(ITEMS), item_codes=codes(ITEMS))
    return Bundle.open(out, load_fake)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audit")
    return {"poor": opened(folder / "poor", POOR), "exact": opened(folder / "exact", RetrieverSettings(kind="exact"))}


@pytest.fixture
def live_of(bundles):
    made = []

    def live_of(name, **more):
        made.append(Live(Engine(bundles[name]), audit_share=1.0, **more))
        return made[-1]

    yield live_of
    for live in made:
        live.close()


def compared():
    return metrics.AUDITS.labels("compared")._value.get()


def wait_for(reached):
    began = time.monotonic()
    while not reached():
        assert time.monotonic() - began < 60
        time.sleep(0.01)


def share_found(items, history, mask):
    """Of the K best that the mask and the history leave, in float64, the share that was answered."""
    table = codes(ITEMS).astype(np.float64)
    scores = table @ (table[history[-5:]].mean(axis=0) * np.r_[np.full(6, 1.0), np.full(8, 0.5)])
    scores[~mask] = -np.inf
    scores[history] = -np.inf
    best = np.argsort(-scores)[:K]
    return len({f"item-{row}" for row in best} & {item["item_id"] for item in items}) / K


def test_the_recall_of_a_poor_index_is_that_of_its_answers_filtered_or_not(live_of):
    client = TestClient(create_app(live_of("poor"), ServingSettings(auth="off")))
    before, rng, shares = compared(), np.random.default_rng(0), []
    for number in range(30):
        history = rng.permutation(ITEMS)[:3]
        body = {"history": [f"item-{row}" for row in history], "k": K}
        mask = np.ones(ITEMS, dtype=bool)
        if number % 2:
            body["filter"], mask = {"attribute": "genre", "equals": "b"}, np.arange(ITEMS) % 2 == 0
        shares.append(share_found(client.post("/v1/recommend", json=body).json()["items"], history, mask))
        wait_for(lambda number=number: compared() == before + number + 1)
    assert 0 < np.mean(shares) < 0.95
    assert metrics.RECALL._value.get() == pytest.approx(np.mean(shares))
    assert f"\nsetrec_recall {metrics.RECALL._value.get()}\n" in client.get("/metrics").text


def test_exact_search_has_recall_1_from_the_start_and_nothing_is_audited(live_of):
    metrics.RECALL.set(0.5)
    live = live_of("exact")
    before = compared()
    live.engine.recommend([Request(history=("item-1",))] * 5, live.auditor)
    assert metrics.RECALL._value.get() == 1
    assert live.auditor._thread is None
    assert compared() == before


def test_a_model_in_use_starts_from_what_was_found_when_its_index_was_built(live_of, bundles):
    live = live_of("exact")
    poor = Engine(bundles["poor"])
    before = live.swap(Model(poor))
    built = bundles["poor"].manifest.agreement.recall
    assert metrics.RECALL._value.get() == built < 1
    audited = compared()
    poor.recommend([Request(history=("item-1",), k=K)], live.auditor)
    wait_for(lambda: compared() == audited + 1)
    live.swap(before)
    assert metrics.RECALL._value.get() == 1
    poor.recommend([Request(history=("item-1",), k=K)], live.auditor)  # a batch that began before the change
    assert live.auditor._waiting.empty()
    assert metrics.RECALL._value.get() == 1


def test_items_that_came_and_went_since_are_part_of_the_audit(tmp_path):
    everything = opened(tmp_path / "b", POOR.model_copy(update={"nprobe": 16}))
    store = open_store(str(tmp_path / "live.db"))
    engine = Engine(everything, store=store, encode=FakeText())
    for number in range(30):
        edits.put_item(engine, f"new-{number}", ItemFields(title="t", text=f"text {number}"))
        edits.remove_item(engine, f"item-{number}")
    live, before = Live(engine, store, audit_share=1.0), compared()
    engine.recommend([Request(history=(f"item-{row}",), k=K) for row in range(40, 50)], live.auditor)
    edits.remove_item(engine, "item-60")
    edits.put_item(engine, "newer", ItemFields(title="t", text="text 1"))
    wait_for(lambda: compared() == before + 10)
    assert metrics.RECALL._value.get() == 1
    live.close()


def test_a_full_queue_drops_what_comes_and_never_blocks(bundles):
    gate, scores = threading.Event(), np.arange(K, 0, -1.0)

    def best():
        assert gate.wait(100)
        return scores

    auditor = Auditor(1.0, room=3)
    auditor.begin(bundles["poor"])
    dropped, before = metrics.AUDITS.labels("dropped")._value.get(), compared()
    for _ in range(50):  # would wait for the gate if a full queue blocked
        auditor.offer(Answered(bundles["poor"], best, scores))
    kept = 50 - (metrics.AUDITS.labels("dropped")._value.get() - dropped)
    assert 3 <= kept <= 4  # three wait, one may be looked at
    gate.set()
    wait_for(lambda: compared() == before + kept)
    assert metrics.RECALL._value.get() == 1
    auditor.close()


def test_about_the_share_that_the_settings_ask_for_is_drawn(bundles):
    for share, low, high in ((0.0, 0, 0), (0.1, 800, 1200), (1.0, 10_000, 10_000)):
        live = open_live(bundles["poor"].path, ServingSettings(auth="off", audit_share=share), load_fake)
        assert low <= sum(live.auditor.draws(live.engine.bundle) for _ in range(10_000)) <= high
        live.close()


def test_an_audit_that_fails_ends_neither_the_thread_nor_the_figure(bundles):
    auditor, before, best = Auditor(1.0), compared(), np.arange(K, 0, -1.0)
    auditor.begin(bundles["poor"])

    def fails():
        raise ValueError("no")

    auditor.offer(Answered(bundles["poor"], fails, best))
    auditor.offer(Answered(bundles["poor"], lambda: best, best[:3]))
    wait_for(lambda: compared() == before + 1)
    assert metrics.RECALL._value.get() == 3 / K
    auditor.close()
