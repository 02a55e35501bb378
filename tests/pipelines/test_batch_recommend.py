"""Recommendations for a table of users, over actors on a real Ray session."""

import json
import shutil

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.data import directory
from pipelines.jobs import batch_recommend
from pipelines.jobs.batch_actor import BatchRecommender
from pipelines.jobs.batch_recommend import BatchRequest, recommend_batch
from pipelines.jobs.recommend import AnswerOptions
from serving.bundle.reader import Bundle
from serving.engine.engine import Engine, Request
from setrec.errors import BundleError, ConfigError, DataError

OPTIONS = AnswerOptions(k=5, popular=False)


def table(users, histories=None) -> pa.Table:
    columns = {"user_id": users}
    if histories is not None:
        columns["history"] = pa.array(histories, pa.list_(pa.string()))
    return pa.table(columns)


def asked(run, users, out, **changes) -> BatchRequest:
    settings = {"options": OPTIONS, "actors": 1, "rejected_share": 0.5, **changes}
    return BatchRequest(run.bundle, str(users), str(out), **settings)


def rows(out, kind: str) -> list[dict]:
    paths = sorted((out / kind).glob("part-*.parquet"))
    return [row for path in paths for row in pq.ParquetFile(path).read().to_pylist()]


@pytest.fixture(scope="module")
def answered(ray_here, qwen3_run, tmp_path_factory):
    """Every known user, asked for in two files and several blocks; histories for some; rows that have no answer."""
    folder = tmp_path_factory.mktemp("batch")
    _, histories = directory.load(qwen3_run.data)
    users = [*histories.user_ids, "new", "nobody", None, "other", "third", "fourth"]
    given = [None] * len(histories) + [["i1", "i2", "i3"], None, ["i1"], ["i1", "nothing"], [], ["i1", None]]
    (folder / "users").mkdir()
    pq.write_table(table(users[:40], given[:40]), folder / "users" / "a.parquet")
    pq.write_table(table(users[40:], given[40:]), folder / "users" / "b.parquet")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch_recommend, "ROWS_PER_FILE", 16)
        record = recommend_batch(asked(qwen3_run, folder / "users", folder / "out", actors=2))
    return folder, users, given, record


def test_answers_are_the_engines_in_the_order_of_the_input(qwen3_run, answered):
    folder, users, given, record = answered
    engine, found = Engine(Bundle.open(qwen3_run.bundle)), rows(folder / "out", "answers")
    assert len(list((folder / "out" / "answers").iterdir())) == 5  # 40 rows and 27, at most 16 a file
    some = [i for i, user in enumerate(users) if user in {row["user_id"] for row in found}]
    assert [row["user_id"] for row in found] == [users[i] for i in some]
    assert len(found) == record["answered"] == len(users) - 5
    for row, i in zip(found, some, strict=True):
        known = {"user_id": users[i]} if given[i] is None else {"history": tuple(given[i])}
        one = engine.recommend_one(Request(**known, k=5))
        assert row["item_ids"] == [item.item_id for item in one.items]
        np.testing.assert_allclose(row["scores"], [item.score for item in one.items], rtol=1e-5)
        assert row["model_version"] == one.model_version


def test_rows_without_an_answer_are_rejected_with_the_reason(answered):
    folder, _, _, record = answered
    found = {row["user_id"]: row for row in rows(folder / "out", "_rejected")}
    reasons = {
        "nobody": "unknown_user", None: "no_user_id", "other": "unknown_item", "third": "no_history",
        "fourth": "no_item_id",
    }  # fmt: skip
    assert {user: row["reason"] for user, row in found.items()} == reasons
    assert "'nothing'" in found["other"]["detail"]
    assert found["other"]["history"] == ["i1", "nothing"]
    assert record["rejected"] == dict.fromkeys(sorted(reasons.values()), 1)


def test_the_record_says_what_was_done(qwen3_run, answered):
    folder, users, _, record = answered
    assert json.loads((folder / "out" / "_batch.json").read_text()) == record
    assert record["complete"]
    assert record["rows"] == len(users) == record["answered"] + sum(record["rejected"].values())
    assert record["model_version"] == Bundle.open(qwen3_run.bundle).model_version
    assert sorted(path.name for path in folder.iterdir()) == ["out", "users"]


def test_the_folder_is_a_plain_data_set_of_the_answers(answered):
    folder, _, _, record = answered
    users = [row["user_id"] for row in rows(folder / "out", "answers")]
    assert pq.read_table(folder / "out")["user_id"].to_pylist() == users
    assert len(pd.read_parquet(folder / "out")) == record["answered"]


def answers_of(run, users, histories, **options):
    actor = BatchRecommender(str(run.bundle), "", "", AnswerOptions(k=3, **options))
    return [part.to_pylist() for part in actor.answer(table(users, histories))]


def test_users_of_whom_nothing_is_known_get_what_is_popular_and_that_is_said(qwen3_run):
    answers, rejected = answers_of(qwen3_run, ["nobody", "empty", "u1"], [None, [], None])
    assert [row["fallback"] for row in answers] == ["new_user", "new_user", None]
    popular = Engine(Bundle.open(qwen3_run.bundle)).recommend_one(Request(user_id="nobody", k=3))
    assert answers[0]["item_ids"] == [item.item_id for item in popular.items]
    assert not rejected
    _, rejected = answers_of(qwen3_run, ["nobody", "empty"], [None, []], popular=False)
    assert [row["reason"] for row in rejected] == ["unknown_user", "no_history"]


def test_unknown_items_may_be_skipped(qwen3_run):
    skipped, _ = answers_of(qwen3_run, ["a"], [["i1", "nothing", "i2"]], unknown_items="skip")
    without, _ = answers_of(qwen3_run, ["a"], [["i1", "i2"]])
    assert skipped == without


def test_a_filter_holds_for_every_answer(qwen3_run):
    options = '{"attribute": "genre", "equals": "genre 2"}'
    answers, _ = answers_of(qwen3_run, ["u1", "nobody"], [None, None], filter=options)
    for row in answers:
        assert {int(item[1:]) % 5 for item in row["item_ids"] if item != "i_cold"} <= {2}
    with pytest.raises(ConfigError, match="--filter"):
        recommend_batch(asked(qwen3_run, "users", "out", options=AnswerOptions(filter="{")))


def test_pieces_are_small_enough_for_all_actors(tmp_path):
    pq.write_table(table([f"u{n}" for n in range(4000)]), tmp_path / "users.parquet")
    for actors, count in ((1, 4), (3, 12), (100, 16)):
        pieces = batch_recommend._pieces(str(tmp_path), actors)
        assert len(pieces) == count
        assert sum(piece.rows for piece in pieces) == 4000


def test_more_rejected_rows_than_allowed_fail_and_leave_the_earlier_answers(answered, qwen3_run, tmp_path):
    shutil.copytree(answered[0] / "out", tmp_path / "out")
    before = rows(tmp_path / "out", "answers")
    with pytest.raises(DataError, match=r"5 of 67 rows have no answer \(.*1 unknown user.*--rejected-share"):
        recommend_batch(asked(qwen3_run, answered[0] / "users", tmp_path / "out", rejected_share=0.01))
    assert rows(tmp_path / "out", "answers") == before


def test_the_same_request_again_leaves_the_same_in_place_of_what_was_there(answered, qwen3_run, tmp_path, capfd):
    shutil.copytree(answered[0] / "out", tmp_path / "out")
    (tmp_path / "out" / "answers" / "part-00099.parquet").write_bytes(b"of another time")
    recommend_batch(asked(qwen3_run, answered[0] / "users", tmp_path / "out"))
    assert rows(tmp_path / "out", "_rejected") == rows(answered[0] / "out", "_rejected")
    for again, first in zip(rows(tmp_path / "out", "answers"), rows(answered[0] / "out", "answers"), strict=True):
        # Scores may differ in the last digit of float32: user codes are rounded by the number of histories in a pass.
        assert again.pop("scores") == pytest.approx(first.pop("scores"), rel=1e-6)
        assert again == first
    said = capfd.readouterr()
    assert said.out == ""
    assert [line[0] for line in said.err.splitlines() if line[0] != "…"] == ["✓"], said.err


def test_all_items_may_be_asked_for_with_the_history_and_ids_may_be_numbers(qwen3_run, tmp_path):
    actor = BatchRecommender(str(qwen3_run.bundle), "", str(tmp_path), AnswerOptions(1000, False))
    histories = pa.array([["i1", "i2"]] * 3, pa.large_list(pa.large_string()))
    answers, rejected = actor.answer(pa.table({"user_id": pa.array([7, 8, 9]), "history": histories}))
    assert answers["user_id"].to_pylist() == ["7", "8", "9"]
    assert [len(ids) for ids in answers["item_ids"].to_pylist()] == [31] * 3
    assert len(rejected) == 0


@pytest.mark.parametrize(("users", "out"), [("a", "a/out"), ("a/users", "a"), ("a", "a"), ("a", "b/../a/x")])
def test_answers_never_lie_inside_the_table_of_users_nor_around_it(qwen3_run, tmp_path, users, out):
    with pytest.raises(DataError, match="must be apart from the table of users"):
        recommend_batch(asked(qwen3_run, tmp_path / users, tmp_path / out))


def test_what_is_no_folder_of_recommendations_is_never_replaced(qwen3_run, tmp_path):
    pq.write_table(table(["u1"]), tmp_path / "users.parquet")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("a cat")
    for out in ("photos", "users.parquet"):
        with pytest.raises(DataError, match="will not be replaced"):
            recommend_batch(asked(qwen3_run, tmp_path / "users.parquet", tmp_path / out))
    assert (tmp_path / "photos" / "cat.jpg").read_text() == "a cat"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (pa.table({"user": ["u1"]}), "column 'user_id': missing column"),
        (pa.table({"user_id": [True]}), "column 'user_id': expected strings or integers, not bool"),
        (pa.table([["u1"], ["u2"]], ["user_id", "user_id"]), "column 'user_id': the column name repeats"),
        (pa.table({"user_id": ["u1"], "history": ["i1"]}), "column 'history': expected a list of item ids, not string"),
        (None, "no Parquet file is there"),
        (b"nothing of the kind", "not a readable Parquet file"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused_before_anything_starts(qwen3_run, tmp_path, content, said):
    path = tmp_path / "users.parquet"
    if isinstance(content, pa.Table):
        pq.write_table(content, path)
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=said):
        recommend_batch(asked(qwen3_run, path, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_job_that_fails_leaves_the_earlier_answers(ray_here, qwen3_run, answered, tmp_path):
    shutil.copytree(answered[0] / "out", tmp_path / "out")
    before = rows(tmp_path / "out", "answers")
    users = str(answered[0] / "users")
    with pytest.raises(ConfigError, match="9 actors and one more core do not fit the cluster's 4 cores"):
        recommend_batch(asked(qwen3_run, users, tmp_path / "out", actors=9))
    with pytest.raises(BundleError):
        recommend_batch(BatchRequest(tmp_path, users, str(tmp_path / "out")))
    assert rows(tmp_path / "out", "answers") == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    "option", [("--rejected-share", "0.5"), ("--actors", "2"), ("--unknown-users", "reject"), ("--address", "auto")]
)
def test_options_of_a_batch_are_refused_without_one(qwen3_run, commanded, option):
    code, said = commanded("recommend", "--bundle", qwen3_run.bundle, "--user", "u1", *option)
    assert code == 2
    assert f"{option[0]} has an effect with --batch only" in said
