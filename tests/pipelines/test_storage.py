"""Local paths and URIs by one name; a file is there as a whole or not at all."""

import pytest
from pyarrow import fs
from s3_server import s3_server

from pipelines.common import storage
from setrec.errors import ConfigError


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Three ways to name a folder: a path, a URI of it, and a URI in a store."""
    local = tmp_path_factory.mktemp("storage")
    with s3_server() as uri:
        yield {"path": str(local / "a"), "file": f"file://{local}/b", "s3": uri("c")}


@pytest.mark.parametrize("kind", ["path", "file", "s3"])
def test_a_file_is_there_as_a_whole_or_not_at_all(places, kind):
    where = storage.join(places[kind], "folder", "x.bin")
    assert not storage.exists(where)
    for content in (b"first", b"second"):
        with storage.atomic_stream(where) as stream:
            stream.write(content)
    with pytest.raises(TypeError), storage.atomic_stream(where) as stream:
        stream.writelines([b"part of a third", 3])
    system, path = storage.filesystem(where)
    assert system.open_input_file(path).read() == b"second"
    assert [info.path for info in storage.files(places[kind])] == [path]
    everything = system.get_file_info(fs.FileSelector(path.rpartition("/")[0], recursive=True))
    assert [info.base_name for info in everything if info.type == fs.FileType.File] == ["x.bin"]


@pytest.mark.parametrize("kind", ["path", "file", "s3"])
def test_files_are_listed_in_order_without_hidden_ones(places, kind):
    folder = storage.join(places[kind], "listed")
    assert storage.files(folder) == []
    for name in ("b/2.parquet", "a/1.parquet", "a/x.txt", "_SUCCESS.parquet", ".b/3.parquet"):
        with storage.atomic_stream(storage.join(folder, name)) as stream:
            stream.write(b"x")
    found = storage.files(folder, ".parquet")
    assert [info.path.rpartition("listed/")[2] for info in found] == ["a/1.parquet", "b/2.parquet"]
    assert storage.files(storage.join(folder, "a/1.parquet"))[0].size == 1
    assert storage.is_folder(folder)
    assert not storage.is_folder(storage.join(folder, "a/1.parquet"))


@pytest.mark.parametrize("uri", ["s3://key:hush@bucket/x?nope=1", "ftp://host/x", "s3://", "file://x"])
def test_a_uri_that_cannot_be_used_is_refused_without_its_keys(uri):
    with pytest.raises(ConfigError, match="not a usable URI") as caught:
        storage.filesystem(uri)
    assert "hush" not in str(caught.value)


def test_what_people_see_of_a_uri_holds_no_keys_and_no_options():
    assert storage.shown("s3://key:hush@bucket/x?region=y") == "s3://bucket/x"
    assert storage.shown("data/x?.csv") == "data/x?.csv"
    assert storage.join("s3://bucket/x?region=y", "z") == "s3://bucket/x/z?region=y"
