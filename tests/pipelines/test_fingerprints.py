"""Hashes of code: prose does not count, statements do."""

from pathlib import Path

import pytest

from pipelines.common import fingerprints

CODE = '"""About it."""\nLIMIT = 3\n"""How many."""\n\n\ndef f(x):\n    """Add one."""\n    return x + 1\n'


@pytest.fixture
def hashed(tmp_path, monkeypatch):
    """The hash of a package of one file that holds the given text."""
    home = tmp_path / "home"
    (home / "package").mkdir(parents=True)
    monkeypatch.setattr(fingerprints, "__file__", str(home / "pipelines" / "common" / "fingerprints.py"))

    def of(text: str, name: str = "one.py") -> str:
        for path in (home / "package").iterdir():
            path.unlink()
        Path(home / "package" / name).write_text(text)
        return fingerprints.of_statements(("package",))

    return of


def test_docstrings_comments_and_layout_may_change(hashed):
    prose = CODE.replace("Add one.", "Add 1 to x.").replace("How many.", "The most.").replace("x + 1", "(x + 1)  # one")
    assert hashed(prose) == hashed(CODE)


@pytest.mark.parametrize(("old", "new"), [("x + 1", "x + 2"), ("LIMIT = 3", "LIMIT = 4"), ("def f(x)", "def f(x=0)")])
def test_a_statement_or_a_name_that_changes_is_another_hash(hashed, old, new):
    assert hashed(CODE.replace(old, new)) != hashed(CODE)


def test_a_file_of_another_name_is_another_hash(hashed):
    assert hashed(CODE, "two.py") != hashed(CODE)


def test_the_hash_of_this_project_reads_its_files():
    assert fingerprints.of_code() != fingerprints._of_files((), fingerprints.of_file)
