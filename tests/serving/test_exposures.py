"""The exposure log, feedback, and an experiment between two bundles, up to its report."""

import numpy as np
import pandas as pd
import pytest
from serving_helpers import codes, fake_bundle, load_fake
from starlette.testclient import TestClient

from serving.api.application import create_app
from serving.engine.requests import Request
from serving.runtime.experiments.click_report import read, report
from serving.runtime.replica import open_live
from serving.runtime.settings import ExperimentSettings, ServingSettings
from setrec.errors import DataError

SPLIT = ExperimentSettings(name="autumn", bundle="other", share=0.25)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exposures")
    (folder / "releases").mkdir()
    fake_bundle(folder / "first", model_version="first")
    fake_bundle(folder / "releases" / "other", model_version="other", item_codes=codes(seed=5))
    return folder


@pytest.fixture
def started(place, tmp_path):
    """What starts an application with the settings given; all are closed at the end."""
    lives = []

    def start(**more):
        settings = ServingSettings(auth="off", releases=place / "releases", **more)
        lives.append(open_live(place / "first", settings, load_fake))
        return TestClient(create_app(lives[-1], settings)), lives[-1]

    yield start
    for live in lives:
        live.close()


def test_what_was_answered_is_logged_row_by_row_and_what_became_of_it_beside_it(started, tmp_path):
    client, live = started(exposures=tmp_path / "log")
    answers = [client.post("/v1/recommend", json={"user_id": f"user-{n}", "k": 3}).json() for n in (1, 2)]
    assert len({answer["answer_id"] for answer in answers}) == 2
    first = answers[0]
    events = [{"type": "impression", "item_id": item["item_id"]} for item in first["items"]]
    events += 2 * [{"type": "click", "item_id": first["items"][1]["item_id"]}]
    sent = client.post("/v1/feedback", json={"answer_id": first["answer_id"], "events": events})
    assert sent.json() == {"accepted": 5}
    live.exposures.flush()
    logged = pd.concat(map(pd.read_parquet, (tmp_path / "log").glob("answers-*.parquet")))
    for answer in answers:
        own = logged[logged["answer_id"] == answer["answer_id"]]
        assert own["item_id"].tolist() == [item["item_id"] for item in answer["items"]]
        np.testing.assert_allclose(own["score"], [item["score"] for item in answer["items"]])
        assert own["position"].tolist() == [1, 2, 3]
        assert set(own["model_version"]) == {"first"}
        assert set(own["propensity"]) == {1.0}
    assert not any("user" in str(value) for value in logged.to_numpy().ravel())
    found = read(tmp_path / "log").set_index("answer_id")
    assert found.loc[first["answer_id"], ["impressions", "clicks"]].tolist() == [3, 1]  # a click counts once
    assert found.loc[answers[1]["answer_id"], ["impressions", "clicks"]].tolist() == [0, 0]


def test_without_a_log_feedback_is_refused_and_answers_have_ids_all_the_same(started):
    client, _ = started()
    answer = client.post("/v1/recommend", json={"user_id": "user-1"}).json()
    body = {"answer_id": answer["answer_id"], "events": [{"type": "click", "item_id": "item-1"}]}
    refused = client.post("/v1/feedback", json=body)
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "no_exposure_log")


def test_a_share_of_the_users_is_answered_by_the_other_bundle_the_same_ones_every_time(started):
    client, _ = started(experiment=SPLIT)
    versions = {}
    for _ in range(2):
        for n in range(400):
            found = client.post("/v1/recommend", json={"user_id": f"visitor-{n}", "k": 1}).json()["model_version"]
            assert versions.setdefault(n, found) == found
    share = np.mean([version == "other" for version in versions.values()])
    assert abs(share - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 400)
    assert client.post("/v1/recommend", json={"history": ["item-1"]}).json()["model_version"] == "first"


def test_each_arm_of_an_experiment_answers_as_its_bundle_alone(started):
    split, (plain, _) = started(experiment=SPLIT), started()
    treated = next(f"user-{n}" for n in range(8) if split[1].arm(f"user-{n}").name == "treatment")
    control = next(f"user-{n}" for n in range(8) if split[1].arm(f"user-{n}").name == "control")
    assert (
        plain.post("/v1/recommend", json={"user_id": control}).json()["items"]
        == (split[0].post("/v1/recommend", json={"user_id": control}).json()["items"])
    )
    asked = split[1].experiment.engine
    expected = [item.item_id for item in asked.recommend_one(Request(user_id=treated)).items]
    found = split[0].post("/v1/recommend", json={"user_id": treated}).json()["items"]
    assert [item["item_id"] for item in found] == expected


def test_live_changes_reach_the_engine_of_an_experiment_too(started, tmp_path):
    client, live = started(experiment=SPLIT, store=str(tmp_path / "live.db"))
    assert client.delete("/v1/items/item-9").status_code == 200
    assert live.follower.wait_until(live.engine.applied, 60)
    assert all(engine.state.items.find("item-9") is None for engine in live.engines)


def test_an_experiment_needs_a_folder_of_releases():
    with pytest.raises(ValueError, match="`releases`, which is not set"):
        ServingSettings(experiment=SPLIT)


def test_the_report_finds_the_click_rates_that_were_simulated(started, tmp_path):
    client, live = started(experiment=SPLIT, exposures=tmp_path / "log")
    rng, rates = np.random.default_rng(0), {"first": 0.1, "other": 0.3}
    for n in range(600):
        answer = client.post("/v1/recommend", json={"user_id": f"visitor-{n}", "k": 5}).json()
        shown = [item["item_id"] for item in answer["items"]]
        clicked = [item for item in shown if rng.random() < rates[answer["model_version"]]]
        events = [{"type": "impression", "item_id": item} for item in shown]
        events += [{"type": "click", "item_id": item} for item in clicked]
        client.post("/v1/feedback", json={"answer_id": answer["answer_id"], "events": events})
    live.exposures.flush()
    found = report(tmp_path / "log", "autumn")
    for arm, rate in (("control", 0.1), ("treatment", 0.3)):
        one = found["arms"][arm]
        assert one["low"] <= one["click_rate"] <= one["high"]
        assert one["low"] - 0.02 < rate < one["high"] + 0.02
        assert one["impressions"] == 5 * one["answers"]
        assert one["snips"] == pytest.approx(one["clicks"] / one["answers"])  # propensities are equal in an arm
        assert one["ips"] == pytest.approx(5 * rate, rel=0.3)
    assert found["difference"]["low"] > 0.1
    with pytest.raises(DataError, match="no exposures of the experiment 'spring'"):
        report(tmp_path / "log", "spring")
    with pytest.raises(DataError, match="holds no exposures"):
        read(tmp_path)
