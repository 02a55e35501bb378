"""The engine of the nightly loop, on steps that take no time: what runs, why, and what a kill leaves."""

import json

import pytest

from pipelines.nightly.steps import NightlyStep, Steps
from setrec.errors import ConfigError

PLAIN = {"letters": {"upper": True}, "count": {}}


class Killed(BaseException):
    """Stands for SIGKILL: nothing of the step's own may catch it."""


class World:
    """Two steps over a root: ``letters`` copies a file in capitals, ``count`` counts its letters."""

    def __init__(self, root):
        self.root, self.given, self.again, self.die_in = root, root / "given.txt", [], None
        self.given.write_text("abc")

    def steps(self, plain=PLAIN, code="1"):
        letters = NightlyStep("letters", self.letters, ("out/letters.txt",), ("letters",), (str(self.given),))
        count = NightlyStep("count", self.count, ("count.json",), ("count",), (), ("letters",))
        return Steps(self.root, (letters, count), plain, code, self.said)

    def said(self, line):
        self.lines.append(line)

    def run(self, plain=PLAIN, code="1", **options):
        self.lines = []
        return self.steps(plain, code).execute(**options)

    def write(self, name, text):
        (self.root / name).parent.mkdir(exist_ok=True)
        if self.die_in == name:
            (self.root / name).write_text(text[:1])
            raise Killed
        (self.root / name).write_text(text)

    def letters(self, again):
        self.again.append(("letters", again))
        self.write("out/letters.txt", self.given.read_text().upper())

    def count(self, again):
        self.again.append(("count", again))
        self.write("count.json", json.dumps(len((self.root / "out" / "letters.txt").read_text())))


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def test_a_second_run_does_nothing(world):
    assert world.run() == ["letters", "count"]
    assert world.run() == []
    assert world.lines == []


def test_a_step_runs_again_where_what_it_reads_changed_and_those_after_it_where_what_it_makes_did(world):
    world.run()
    world.given.write_text("ABC")
    assert world.run() == ["letters"], "its output is the same, so nothing follows"
    assert "given.txt changed" in world.lines[0]
    world.given.write_text("abcd")
    assert world.run() == ["letters", "count"]
    assert "what letters made changed" in world.lines[1]
    assert world.run({**PLAIN, "count": {"base": 2}}) == ["count"]
    assert "the configuration changed" in world.lines[0]
    assert world.run({**PLAIN, "count": {"base": 2}, "other": 1}) == []
    assert world.run({**PLAIN, "count": {"base": 2}}, code="2") == ["letters", "count"]


def test_a_file_that_was_touched_but_not_changed_is_the_same(world):
    world.run()
    world.given.write_text("abc")
    assert world.run() == []


@pytest.mark.parametrize("name", ["out/letters.txt", "count.json"])
def test_an_output_that_is_gone_or_altered_is_made_again(world, name):
    world.run()
    before = (world.root / name).read_text()
    (world.root / name).unlink()
    world.run()
    assert (world.root / name).read_text() == before
    (world.root / name).write_text("7")
    world.run()
    assert (world.root / name).read_text() == before
    assert f"{name} is missing or not what it left" in world.lines[0]


@pytest.mark.parametrize("name", ["out/letters.txt", "count.json"])
@pytest.mark.parametrize("before", [False, True])
def test_a_run_killed_in_the_middle_of_a_step_ends_as_an_unbroken_one(world, name, before):
    if before:
        world.run()
        world.given.write_text("abcd")
    world.die_in = name
    with pytest.raises(Killed):
        world.run()
    world.die_in, world.again = None, []
    world.run()
    assert ((world.root / "out" / "letters.txt").read_text(), (world.root / "count.json").read_text()) == (
        ("ABCD", "4") if before else ("ABC", "3")
    )
    assert world.again[0] == ("letters" if name.startswith("out") else "count", True)
    assert world.run() == []


def test_a_step_killed_over_other_inputs_is_not_continued(world):
    world.die_in = "out/letters.txt"
    with pytest.raises(Killed):
        world.run()
    world.given.write_text("abcd")
    world.die_in, world.again = None, []
    world.run()
    assert world.again[0] == ("letters", False)


def test_a_run_can_be_asked_to_begin_at_a_step_or_to_do_all(world):
    world.run()
    assert world.run(first="count") == ["count"]
    assert world.run(force=True) == ["letters", "count"]
    with pytest.raises(ConfigError, match="letters, count"):
        world.run(first="nothing")


def test_a_damaged_record_of_a_step_means_that_it_has_not_ended(world):
    world.run()
    (world.root / "state" / "count.json").write_text("{")
    (world.root / "state" / "hashes.json").write_text("[")
    assert world.run() == ["count"]


def test_a_folder_is_told_by_all_that_is_in_it(world, tmp_path):
    folder = tmp_path / "tables"
    folder.mkdir()
    (folder / "a.txt").write_text("a")
    step = NightlyStep("read", lambda again: None, (), (), (str(folder),))
    steps = Steps(tmp_path / "root", (step,), {}, "1", lambda line: None)
    assert steps.execute() == ["read"]
    (folder / "b.txt").write_text("b")
    assert Steps(tmp_path / "root", (step,), {}, "1", lambda line: None).execute() == ["read"]
    assert Steps(tmp_path / "root", (step,), {}, "1", lambda line: None).execute() == []
