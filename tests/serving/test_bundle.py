import json
import shutil

import numpy as np
import pytest
from serving_helpers import (
    SLOTS,
    FakeEncoder,
    FakeText,
    catalog,
    codes,
    fake_bundle,
    histories,
    hybrid_parts,
    load_fake,
    texts_of,
)

from serving.bundle.manifest import Manifest
from serving.bundle.reader import FORMAT_VERSION, Bundle
from serving.bundle.texts import TextRule
from serving.engine.engine import Engine, Request
from serving.retrieval.retriever import RetrieverSettings
from setrec.data.catalog import Catalog
from setrec.data.item_texts import compose
from setrec.errors import BundleError
from setrec.scoring.hybrid import HybridWeights, NewItemWeights
from setrec.scoring.text_features import TextFeaturizer
from setrec.text.encoder import TextEncoder

SCORER = HybridWeights(
    slots=SLOTS, components={"transitions_near": 1.0, "text_similarity": 2.0}, new_items=NewItemWeights(level=0.5)
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("bundle") / "b"
    fake_bundle(out)
    return out


@pytest.fixture
def bundle(made, tmp_path):
    return shutil.copytree(made, tmp_path / "b")


def refusal(path, load=load_fake):
    with pytest.raises(BundleError) as refused:
        Bundle.open(path, load)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def edit(path, **changes):
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | changes))


def test_what_was_written_is_what_is_opened(bundle):
    opened = Bundle.open(bundle, load_fake)
    np.testing.assert_array_equal(opened.codes, codes())
    assert opened.catalog == catalog()
    assert opened.histories.user_ids == histories().user_ids
    np.testing.assert_array_equal(opened.histories.items.values, histories().items.values)
    np.testing.assert_array_equal(opened.popularity, histories().train_counts(len(catalog())))
    assert opened.manifest.scorer == HybridWeights(slots=SLOTS)
    assert opened.manifest.counts == {"items": 60, "users": 9, "interactions": len(histories().items.values)}
    assert opened.manifest.created.utcoffset().total_seconds() == 0
    assert "torch" in opened.manifest.libraries


def test_the_model_version_depends_on_content_alone(tmp_path):
    versions = [fake_bundle(tmp_path / name).model_version for name in "ab"]
    other = fake_bundle(tmp_path / "c", scorer=HybridWeights(slots=SLOTS | {"semantic": 0.4})).model_version
    named = fake_bundle(tmp_path / "d", model_version="monday").model_version
    assert versions[0] == versions[1] != other
    assert named == "monday"


@pytest.mark.parametrize(
    "name", ["model/config.json", "codes.safetensors", "items.parquet", "histories.parquet", "retriever.json"]
)
def test_a_file_that_is_missing_truncated_or_altered_is_refused_by_name(bundle, name):
    whole = (bundle / name).read_bytes()
    (bundle / name).write_bytes(whole[:-1])
    assert name in refusal(bundle)
    assert "truncated" in refusal(bundle)
    (bundle / name).write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    assert name in refusal(bundle)
    assert "sha256" in refusal(bundle)
    (bundle / name).unlink()
    assert refusal(bundle) == f"{bundle / name}: missing"


@pytest.mark.parametrize("name", ["extra.bin", "model/pytorch_model.bin", ".hidden"])
def test_a_file_the_manifest_does_not_list_is_refused_by_name(bundle, name):
    (bundle / name).write_bytes(b"x")
    assert refusal(bundle) == f"{bundle / name}: not listed in the manifest"


def test_a_link_is_refused_even_to_the_right_content(bundle, tmp_path):
    (bundle / "items.parquet").rename(tmp_path / "elsewhere")
    (bundle / "items.parquet").symlink_to(tmp_path / "elsewhere")
    assert "not a regular file" in refusal(bundle)


def test_a_newer_format_is_refused_before_anything_else_is_read(bundle):
    (bundle / "manifest.json").write_text(json.dumps({"format_version": FORMAT_VERSION + 1, "shape": "unknown"}))
    assert "newer" in refusal(bundle)


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "model/../../x", "model\\x.json", "a//b", "./a"])
def test_a_manifest_cannot_name_files_outside_the_bundle(bundle, name):
    edit(bundle, files={name: {"sha256": "0" * 64, "bytes": 1}})
    assert "is not a path inside the bundle" in refusal(bundle)


def test_a_manifest_cannot_smuggle_in_a_pickle(bundle):
    edit(bundle, files={"model/pytorch_model.bin": {"sha256": "0" * 64, "bytes": 1}})
    assert "pytorch_model.bin" in refusal(bundle)


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"format_version": 1}', b'{"format_version": "1"}'],
)
def test_a_damaged_manifest_is_refused_in_one_line(bundle, text):
    (bundle / "manifest.json").write_bytes(text)
    assert "manifest.json" in refusal(bundle)


def test_what_is_no_bundle_is_refused(tmp_path):
    assert "not a bundle" in refusal(tmp_path)
    assert "not a bundle" in refusal(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    assert "not a bundle" in refusal(tmp_path / "file")


def test_a_model_of_other_slots_is_refused(bundle):
    class Other(FakeEncoder):
        kinds = ("semantic",)

    assert "slots" in refusal(bundle, lambda path: Other())


def test_a_model_that_cannot_be_loaded_is_refused_in_one_line(bundle):
    def broken(path):
        raise RuntimeError("size mismatch\nfor x")

    assert "size mismatch for x" in refusal(bundle, broken)


@pytest.mark.parametrize(
    "changes",
    [
        {"item_codes": codes(59)},
        {"item_codes": codes(width=15)},
        {"scorer": HybridWeights(slots={"collaborative": 1.0})},
        {"scorer": SCORER},
        {"scorer": SCORER, "components": hybrid_parts(SCORER, 59)["components"]},
        {"histories": histories(80), "item_codes": codes(), "catalog": catalog()},
    ],
)
def test_parts_that_do_not_fit_together_leave_the_earlier_bundle_in_place(bundle, changes):
    with pytest.raises((BundleError, ValueError)):
        fake_bundle(bundle, **changes)
    assert Bundle.open(bundle, load_fake).codes.shape == (60, 14)
    assert {p.name for p in bundle.parent.iterdir()} == {"b", "trained"}


def test_a_bundle_is_replaced_as_a_whole_but_nothing_else_is(bundle, tmp_path):
    fake_bundle(bundle, RetrieverSettings(kind="ivf"))
    assert Bundle.open(bundle, load_fake).retriever.settings.kind == "ivf"
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "thesis").write_text("years")
    with pytest.raises(BundleError, match="not a bundle; not replaced"):
        fake_bundle(tmp_path / "papers")
    assert (tmp_path / "papers" / "thesis").read_text() == "years"


def test_the_stored_requests_are_answered_as_they_were_when_the_bundle_was_written(bundle):
    opened = Bundle.open(bundle, load_fake)
    assert len(opened.checks) == 8  # every user with a history
    answers = Engine(opened).recommend([Request(**request) for request, _, _ in opened.checks])
    for (_, item_ids, scores), answer in zip(opened.checks, answers, strict=True):
        assert tuple(item.item_id for item in answer.items) == item_ids
        np.testing.assert_allclose([item.score for item in answer.items], scores, rtol=1e-5)


def test_components_with_a_weight_go_along_and_no_others(bundle, tmp_path):
    parts = hybrid_parts(SCORER)
    fake_bundle(tmp_path / "more", **parts)
    opened = Bundle.open(tmp_path / "more", load_fake)
    assert Bundle.open(bundle, load_fake).components == {}
    assert set(opened.components) == set(SCORER.used)
    for name, component in opened.components.items():
        assert component.reading == parts["components"][name].reading
        for one, other in zip(
            component.entries(histories().items), parts["components"][name].entries(histories().items), strict=True
        ):
            np.testing.assert_array_equal(getattr(one, "values", one), getattr(other, "values", other))
    fewer = SCORER.model_copy(update={"components": {"transitions_near": 1.0}})
    fake_bundle(tmp_path / "fewer", scorer=fewer, components=parts["components"])
    assert set(Bundle.open(tmp_path / "fewer", load_fake).components) == {"transitions_near"}


def test_a_component_that_this_version_does_not_know_is_refused(bundle):
    edit(bundle, scorer={"slots": SLOTS, "components": {"astrology": 1.0}})
    assert "component 'astrology' is unknown" in refusal(bundle)


def test_a_damaged_component_is_refused_in_one_line(tmp_path, monkeypatch):
    fake_bundle(tmp_path / "b", **hybrid_parts(SCORER))
    monkeypatch.setattr(
        "serving.bundle.reader.verify", lambda path: Manifest.model_validate_json((path / "manifest.json").read_bytes())
    )
    file = tmp_path / "b" / "components" / "transitions_near.safetensors"
    for content in (b"", b"\xff" * 40, file.read_bytes()[:100]):
        file.write_bytes(content)
        refusal(tmp_path / "b")


def test_the_weights_are_part_of_the_version(tmp_path):
    other = SCORER.model_copy(update={"new_items": NewItemWeights(level=0.6)})
    versions = [
        fake_bundle(tmp_path / str(n), **hybrid_parts(scorer)).model_version for n, scorer in enumerate((SCORER, other))
    ]
    assert versions[0] != versions[1]


def test_an_approximate_index_holds_what_new_items_score_differently(tmp_path):
    approximate, parts = RetrieverSettings(kind="ivf", tune_queries=20), hybrid_parts(SCORER, 400)
    more = {"catalog": catalog(400), "histories": histories(400), "item_codes": codes(400)}
    fake_bundle(tmp_path / "a", approximate, **more, **parts)
    opened = Bundle.open(tmp_path / "a", load_fake)
    new = opened.popularity == 0
    np.testing.assert_array_equal(opened.retriever.codes[:, :14], opened.codes)
    np.testing.assert_array_equal(opened.retriever.codes[:, 14], np.float32(0.5) * new)
    assert opened.manifest.agreement.queries == 8
    assert opened.manifest.agreement.recall > 0.9
    plain = SCORER.model_copy(update={"new_items": NewItemWeights(components={"text_similarity": 5.0})})
    for name, settings, scorer in (("b", approximate, plain), ("c", RetrieverSettings(kind="exact"), SCORER)):
        fake_bundle(tmp_path / name, settings, **more, **parts | {"scorer": scorer})
        opened = Bundle.open(tmp_path / name, load_fake)
        assert opened.retriever.codes is opened.codes


def test_texts_to_compare_items_to_come_with_go_along_with_what_reads_texts(tmp_path):
    features, center = texts_of(catalog())
    source = tmp_path / "encoder"
    source.mkdir()
    (source / "config.json").write_text("{}")
    lexical = FakeText().lexical
    given = {
        "featurizer": TextFeaturizer(lexical, TextEncoder(source)),
        "text_features": features,
        "text_center": center,
    }
    fake_bundle(tmp_path / "b", **hybrid_parts(SCORER), **given)
    opened = Bundle.open(tmp_path / "b", load_fake)
    assert (opened.texts.features.lexical != features.lexical).nnz == 0
    np.testing.assert_array_equal(opened.texts.features.sentences, features.sentences)
    np.testing.assert_array_equal(opened.texts.center, center)
    assert opened.featurizer().lexical.identity == lexical.identity
    assert opened.featurizer().identity == given["featurizer"].identity
    fake_bundle(tmp_path / "c", **given)
    assert Bundle.open(tmp_path / "c", load_fake).texts is None


def test_an_older_format_is_refused_before_anything_else_is_read(bundle):
    (bundle / "manifest.json").write_text(json.dumps({"format_version": 3, "shape": "unknown"}))
    assert "format 3 is older than 4, the oldest this version reads: export again" in refusal(bundle)


def test_the_encoder_goes_along_as_it_was_and_without_what_could_carry_code(tmp_path):
    source = tmp_path / "encoder"
    source.mkdir()
    for name in ("config.json", "model.safetensors", "vocab.txt", "pytorch_model.bin", "modeling.py"):
        (source / name).write_text(name)
    encoder = TextEncoder(source, max_length=77)
    fake_bundle(tmp_path / "b", featurizer=TextFeaturizer(None, encoder))
    copied = Bundle.open(tmp_path / "b", load_fake).featurizer().sentence
    assert {p.name for p in (tmp_path / "b" / "encoder").iterdir()} == {"config.json", "model.safetensors", "vocab.txt"}
    assert copied.identity == encoder.identity


def test_the_rule_of_the_texts_is_read_off_the_catalogue():
    tags = [{"release_year": ["1995"], "genre": ["Drama", "War"]}, {"release_year": [], "genre": ["Comedy"]}]
    for title, titles in ((True, ["Up.", "Heat"]), (False, ["1", "2"])):
        texts = [compose([t] if title else [], tag) for t, tag in zip(titles, tags, strict=True)]
        columns = {name: [tag[name] for tag in tags] for name in tags[0]} | {"unused": [["x"], ["y"]]}
        rule = TextRule.of(Catalog(["1", "2"], titles, texts, columns))
        assert rule == TextRule(title=title, attributes=("release_year", "genre"))
        assert [rule.text(t, "", tag | {"unused": ["x"]}) for t, tag in zip(titles, tags, strict=True)] == texts
