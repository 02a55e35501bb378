"""An index in shards answers like one index, whether its shards are searched here or in other processes."""

import httpx
import numpy as np
import pytest
import serving_helpers
from serving_helpers import catalog, codes, fake_bundle, histories, load_fake
from test_endpoint import free_port

from pipelines.common.cluster import ray_session
from serving.bundle.reader import Bundle, open_shard
from serving.deployment import ray_app
from serving.deployment.shards import RemoteShard
from serving.engine.engine import Engine, Request
from serving.retrieval import shards
from serving.retrieval.retriever import Retriever, RetrieverSettings
from serving.retrieval.shards import LocalShard
from serving.runtime.settings import ServingSettings

ITEMS = 900
TABLE, QUERIES = codes(ITEMS, 14), codes(30, 14, seed=1)


def same(one, other):
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a.rows, b.rows)
        np.testing.assert_array_equal(a.scores, b.scores)


@pytest.fixture(params=["exact", "ivf"])
def settings(request):
    return RetrieverSettings(kind=request.param, shards=3, nlist=8, nprobe=8, oversample=60)


@pytest.mark.parametrize("left", [ITEMS, 500, 20, 4, 0])
def test_the_answer_is_that_of_one_index_whatever_is_excluded_and_allowed(tmp_path, settings, left):
    built = shards.build(TABLE, settings, QUERIES, tmp_path)
    whole, rng = Retriever.build(TABLE, RetrieverSettings(kind="exact")), np.random.default_rng(left)
    banned = [rng.permutation(ITEMS)[left:] for _ in QUERIES]
    masks = [None if b % 2 else rng.random(ITEMS) < 0.5 for b in range(len(QUERIES))]
    ks = [1 + b % 12 for b in range(len(QUERIES))]
    for retriever in (built, shards.load(tmp_path, TABLE)):
        same(retriever.search(QUERIES, ks, banned, masks), whole.search(QUERIES, ks, banned, masks))
        assert retriever.built_audit.recall == 1


@pytest.fixture
def ray_here():
    import ray

    with ray_session(cpus=1):
        yield ray


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    parts = {"catalog": catalog(ITEMS), "histories": histories(ITEMS), "item_codes": codes(ITEMS)}
    settings = RetrieverSettings(kind="ivf", nlist=8, nprobe=8, oversample=60, tune_queries=10)
    found = {}
    for count in (1, 2):
        found[count] = tmp_path_factory.mktemp("shards") / f"bundle-{count}"
        fake_bundle(found[count], settings.model_copy(update={"shards": count}), **parts)
    return found


REQUESTS = [Request(history=(f"item-{r}", f"item-{r + 7}"), k=10) for r in range(20)]


def items(engine):
    return [[(i.item_id, i.score) for i in answer.items] for answer in engine.recommend(REQUESTS)]


def test_a_bundle_in_shards_is_served_like_one_in_a_whole_also_after_an_item_was_added(bundles):
    one, two = (Engine(Bundle.open(path, load_fake)) for path in bundles.values())
    opened = []

    def opener(path, number):
        opened.append(number)
        return LocalShard(open_shard(path, number))

    apart = Engine(Bundle.open(bundles[2], load_fake, opener))
    assert opened == [0, 1]
    assert items(one) == items(two) == items(apart)
    for engine in (one, apart):
        for code in codes(2100, 14, seed=5):  # beyond what is searched exactly beside an index
            engine.state.index.add(code)
    same(apart.state.index.search(QUERIES, 10), one.state.index.search(QUERIES, 10))


def test_a_shard_in_another_process_answers_like_one_here_though_it_dies(bundles, ray_here):
    remote, here = RemoteShard(bundles[2], 1), LocalShard(open_shard(bundles[2], 1))
    arguments = QUERIES, [10] * 30, [np.arange(5)] * 30, [None] * 30
    same(remote.start(*arguments)(), here.start(*arguments)())
    ray_here.kill(remote.actor, no_restart=False)
    same(remote.start(*arguments)(), here.start(*arguments)())


@pytest.mark.slow
def test_the_endpoint_searches_shards_in_processes_of_their_own(bundles):
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(serving_helpers)  # replicas cannot import what lies among the tests
    try:
        settings = ServingSettings(port=free_port(), auth="off", shard_processes=True)
        url = ray_app.start(bundles[2], settings, load_encoder=load_fake)
        expected = items(Engine(Bundle.open(bundles[1], load_fake)))
        for request, answer in zip(REQUESTS, expected, strict=True):
            body = {"history": list(request.history), "k": 10}
            found = httpx.post(f"{url}/v1/recommend", json=body, timeout=30, trust_env=False).json()["items"]
            assert [item["item_id"] for item in found] == [item_id for item_id, _ in answer]
    finally:
        ray_app.stop()
        cloudpickle.unregister_pickle_by_value(serving_helpers)
