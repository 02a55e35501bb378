import pytest

from setrec.atomic import atomic_directory, atomic_file


def write_half(path):
    path.write_text("half")
    raise OSError("disk full")


def test_a_file_appears_only_when_it_is_whole(tmp_path):
    path = tmp_path / "deep" / "x.txt"
    with atomic_file(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


def test_an_error_leaves_the_earlier_file_and_no_litter(tmp_path):
    (tmp_path / "x.txt").write_text("old")
    with pytest.raises(OSError, match="disk full"), atomic_file(tmp_path / "x.txt") as temporary:
        write_half(temporary)
    assert (tmp_path / "x.txt").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_directory_is_replaced_as_a_whole(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").touch()
    with atomic_directory(tmp_path / "out") as new:
        (new / "new").touch()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["new"]
    assert len(list(tmp_path.iterdir())) == 1


def test_an_error_leaves_the_earlier_directory_and_no_litter(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").touch()
    with pytest.raises(OSError, match="disk full"), atomic_directory(tmp_path / "out") as new:
        write_half(new / "new")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["old"]
    assert len(list(tmp_path.iterdir())) == 1
