"""Tokens: what is stored, who is recognised, what is refused, and how a change of the file takes effect."""

import hashlib
import json
import stat

import pytest
from pydantic import ValidationError

from serving.api.access.tokens import VARIABLE, Tokens, issue
from serving.runtime.settings import ServingSettings, is_loopback
from setrec.errors import ConfigError


def test_a_token_is_recognised_by_its_hash_and_the_file_holds_nothing_else(tmp_path):
    file = tmp_path / "tokens.json"
    token = issue(file, "shop", ["read", "write"])
    assert token not in file.read_text()
    assert json.loads(file.read_text())["tokens"][0]["sha256"] == hashlib.sha256(token.encode()).hexdigest()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    caller = Tokens(file).caller(token)
    assert (caller.name, caller.scopes) == ("shop", {"read", "write"})


def test_each_token_belongs_to_its_own_name_and_a_wrong_one_to_nobody(tmp_path):
    file = tmp_path / "tokens.json"
    issued = {name: issue(file, name, ["read"]) for name in ("a", "b", "c")}
    tokens = Tokens(file)
    assert {name: tokens.caller(token).name for name, token in issued.items()} == {n: n for n in issued}
    stored = json.loads(file.read_text())["tokens"][0]["sha256"]
    for wrong in ("", "x", issued["a"][:-1], issued["a"] + "x", issued["a"].upper(), stored, "\udc80"):
        assert tokens.caller(wrong) is None


def test_the_variable_serves_where_there_is_no_file(tmp_path, monkeypatch):
    token = issue(tmp_path / "tokens.json", "ops", ["admin"])
    monkeypatch.setenv(VARIABLE, (tmp_path / "tokens.json").read_text())
    assert Tokens(None).caller(token).name == "ops"


def test_a_token_that_is_taken_out_of_the_file_is_refused_soon_and_half_an_edit_locks_nobody_out(tmp_path, monkeypatch):
    monkeypatch.setattr("serving.api.access.tokens._RECHECK_SECONDS", 0.0)
    file = tmp_path / "tokens.json"
    first, second = issue(file, "first", ["read"]), issue(file, "second", ["read"])
    tokens = Tokens(file)
    whole = file.read_text()
    file.write_text(whole[: len(whole) // 2])
    assert tokens.caller(first).name == "first"
    kept = [entry for entry in json.loads(whole)["tokens"] if entry["name"] == "second"]
    file.write_text(json.dumps({"tokens": kept}))
    assert tokens.caller(first) is None
    assert tokens.caller(second).name == "second"


@pytest.mark.parametrize(
    ("name", "scopes", "said"),
    [("a b", ["read"], "name"), ("x", ["reed"], "scopes"), ("x", [], "scopes"), ("taken", ["read"], "already")],
)
def test_a_token_that_cannot_be_issued_is_refused_with_the_file_and_the_reason(tmp_path, name, scopes, said):
    file = tmp_path / "tokens.json"
    issue(file, "taken", ["read"])
    before = file.read_text()
    with pytest.raises(ConfigError, match=f"tokens.json: .*{said}"):
        issue(file, name, scopes)
    assert file.read_text() == before


@pytest.mark.parametrize("text", ["", "{", "[]", '{"tokens": [{"name": "a"}]}', '{"tokens": [], "x": 1}'])
def test_a_list_that_is_missing_or_damaged_is_refused_in_one_line(tmp_path, monkeypatch, text):
    (tmp_path / "tokens.json").write_text(text)
    monkeypatch.setenv(VARIABLE, text)
    for file in (tmp_path / "tokens.json", None):
        with pytest.raises(ConfigError) as error:
            Tokens(file)
        assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match="cannot be read"):
        Tokens(tmp_path / "nothing.json")


def test_authentication_is_off_only_when_said_and_only_on_a_loopback_address():
    assert ServingSettings().auth == "tokens"
    for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost"):
        assert is_loopback(host)
        assert ServingSettings(host=host, auth="off").auth == "off"
        assert ServingSettings(host=host, auth=False).auth == "off"  # what YAML reads in `auth: off`
    for host in ("0.0.0.0", "::", "10.0.0.1", "example.org", "", "localhost.example.org", "127.0.0.1.example.org"):
        assert not is_loopback(host)
        with pytest.raises(ValidationError, match="loopback"):
            ServingSettings(host=host, auth="off")
