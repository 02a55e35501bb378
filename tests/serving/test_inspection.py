import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from prometheus_client.metrics import MetricWrapperBase
from serving_helpers import SLOTS, catalog, codes, fake_bundle, histories, hybrid_parts

from serving.bundle.inspection import difference, inspect
from serving.telemetry import metrics
from setrec.data.catalog import Catalog
from setrec.errors import BundleError
from setrec.scoring.hybrid import HybridWeights

DEPLOY = Path(__file__).parents[2] / "deploy"


def test_a_bundle_is_described_after_its_files_were_checked(tmp_path):
    fake_bundle(tmp_path / "b", **hybrid_parts(HybridWeights(slots=SLOTS, components={"transitions_near": 3.0})))
    found = inspect(tmp_path / "b")
    assert found["counts"]["items"] == 60
    assert found["counts"]["new_items"] == int(np.count_nonzero(histories().train_counts(60) == 0))
    assert found["weights"]["components"] == {"transitions_near": 3.0}
    assert sum(found["bytes"].values()) == sum(
        file.stat().st_size for file in (tmp_path / "b").rglob("*") if file.is_file() and file.name != "manifest.json"
    )
    (tmp_path / "b" / "items.parquet").write_bytes(b"other")
    with pytest.raises(BundleError, match=r"items\.parquet"):
        inspect(tmp_path / "b")


def test_a_difference_names_the_items_weights_and_files_that_change(tmp_path):
    fake_bundle(tmp_path / "one", model_version="one")
    assert difference(tmp_path / "one", tmp_path / "one")["files_changed"] == []
    films = catalog()
    films = Catalog(
        ["item-new", *films.item_ids[1:]], films.titles, ["text 9", *films.texts[1:-1], "other"], films.attributes
    )
    slots = HybridWeights(slots=SLOTS | {"semantic": 0.75})
    fake_bundle(tmp_path / "two", model_version="two", catalog=films, scorer=slots, item_codes=codes(seed=1))
    found = difference(tmp_path / "one", tmp_path / "two")
    assert found["model_version"] == ["one", "two"]
    assert (found["items_added"], found["items_removed"]) == (["item-new"], ["item-0"])
    assert found["items_described_anew"] == ["item-59"]
    assert found["weights"] == {"slots.semantic": [0.5, 0.75]}
    assert {"codes.safetensors", "items.parquet"} <= set(found["files_changed"])
    assert "popularity.safetensors" not in found["files_changed"]


@pytest.mark.parametrize("file", ["grafana-dashboard.json", "alerts.yaml"])
def test_what_is_deployed_to_watch_the_endpoint_asks_for_metrics_that_there_are(file):
    known = {
        f"{family.name}{suffix}"
        for metric in vars(metrics).values()
        if isinstance(metric, MetricWrapperBase)
        for family in metric.describe()
        for suffix in ("", "_total", "_bucket", "_sum", "_count")
    }
    text = (DEPLOY / file).read_text()
    assert yaml.safe_load(text)
    asked = set(re.findall(r"setrec_[a-z_]+", text))
    assert len(asked) > 5
    assert asked <= known
