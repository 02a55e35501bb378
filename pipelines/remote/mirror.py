"""Folders in an object store: a job works on a local copy, and its changes are stored.

Files are stored in the order in which they were written, and removed files are deleted afterwards. A file that refers
to others is thus stored after them, and a job that is killed in between leaves the old pointers or the new ones. A link
is stored as the object ``NAME.link``, which contains the name of its target.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock
from pyarrow import fs

from pipelines.common import storage
from pipelines.common.failures import copies
from pipelines.common.locks import exclusive
from pipelines.remote import lease
from setrec.atomic import atomic_directory, atomic_file
from setrec.errors import ConfigError

WORK = "SETREC_WORK"
"""Environment variable: the folder of the copies."""
SMALL = 2**20
"""Maximum size of files read for the state of a nightly loop; weights and tables are larger."""
LINK = ".link"
_NEVER = (".lock", "lock.json", ".held", lease.NAME)
_THREADS = 8
_open: list[Mirror] = []

Stat = tuple[int, int]
"""Size and time of a file, in nanoseconds."""


class Mirror:
    """The local ``folder`` and ``where``, a URI, in the store; ``index`` records which states of the two correspond."""

    def __init__(self, where: str, folder: Path, index: Path) -> None:
        """Prepare a mirror without reading anything.

        Raises:
            ConfigError: the URI cannot be parsed.
        """
        self.where, self.folder, self._index = where, folder, index
        self._system, self._path = storage.filesystem(where)

    def pull(self, largest: int | None = None) -> None:
        """Make the folder equal to the store; with ``largest``, only files of at most so many bytes.

        Raises:
            ConfigError: the store cannot be read.
        """
        known, here = self._known(), self._here()
        with lease.store_errors(self.where, "read"):
            there = {name: s for name, s in self._there().items() if largest is None or s[0] <= largest}
            for name in here.keys() - there.keys():
                self._at(name).unlink()
            missing = [name for name, stat in there.items() if known.get(name) != (here.get(name), stat)]
            with ThreadPoolExecutor(_THREADS) as pool:
                list(pool.map(self._fetch, missing))
        self._note(self._here(), there)

    def push(self) -> None:
        """Store local changes, and remove in the store what was removed locally.

        Raises:
            ConfigError: the store cannot be written to.
        """
        if not self.folder.is_dir():
            return
        known, here = self._known(), self._here()
        changed = [name for name, stat in here.items() if name not in known or known[name][0] != stat]
        gone = [name for name in known if name not in here]
        if not changed and not gone:
            return
        with lease.store_errors(self.where, "written to"):
            for name in sorted(changed, key=lambda name: (here[name][1], name)):
                self._store(name)
            for name in gone:
                self._system.delete_file(f"{self._path}/{name}")
            self._note(here, self._there())

    def _here(self) -> dict[str, Stat]:
        found = {}
        for parent, folders, files in os.walk(self.folder):
            for name in (*files, *folders):
                path = Path(parent, name)
                if path.is_symlink() or (name in files and name not in _NEVER and not name.endswith(".tmp")):
                    stat = path.lstat()
                    key = path.relative_to(self.folder).as_posix() + LINK * path.is_symlink()
                    found[key] = (stat.st_size, stat.st_mtime_ns)
        return found

    def _there(self) -> dict[str, Stat]:
        """Return all files, without names that would lead out of the folder."""
        infos = self._system.get_file_info(fs.FileSelector(self._path, allow_not_found=True, recursive=True))
        found = {
            i.path.removeprefix(f"{self._path}/"): (i.size, i.mtime_ns) for i in infos if i.type == fs.FileType.File
        }
        return {
            name: s for name, s in found.items() if not {"..", ".", ""} & set(name.split("/")) and name != lease.NAME
        }

    def _at(self, name: str) -> Path:
        return self.folder / name.removesuffix(LINK)

    def _fetch(self, name: str) -> None:
        with atomic_file(self._at(name)) as temporary:
            if name.endswith(LINK):
                target = self._system.open_input_file(f"{self._path}/{name}").read().decode()
                temporary.unlink()
                temporary.symlink_to(Path(target).name)  # a plain name cannot lead out of the folder
            else:
                self._copy(f"{self._path}/{name}", str(temporary), self._system, fs.LocalFileSystem())

    def _store(self, name: str) -> None:
        target = f"{self._path}/{name}"
        storage.make_folder(self._system, target.rpartition("/")[0])
        if name.endswith(LINK):
            with self._system.open_output_stream(target) as stream:
                stream.write(os.readlink(self._at(name)).encode())
        else:  # an object exists only once it is complete
            self._copy(str(self._at(name)), target, fs.LocalFileSystem(), self._system)

    @staticmethod
    def _copy(source: str, target: str, one: fs.FileSystem, other: fs.FileSystem) -> None:
        fs.copy_files(source, target, source_filesystem=one, destination_filesystem=other)

    def _known(self) -> dict[str, tuple[Stat | None, Stat]]:
        try:
            found = json.loads(self._index.read_text())
            return {name: (tuple(here), tuple(there)) for name, (here, there) in found.items()}
        except (OSError, ValueError, TypeError):
            return {}

    def _note(self, here: dict[str, Stat], there: dict[str, Stat]) -> None:
        with atomic_file(self._index) as temporary:
            temporary.write_text(json.dumps({name: (here[name], there[name]) for name in here if name in there}))


@contextmanager
def mirrored(where: str, largest: int | None = None) -> Iterator[Path]:
    """Yield a local copy of the folder ``where``, a URI; when the block ends, also by an error, changes are stored.

    ``largest``: see :meth:`Mirror.pull`.

    Raises:
        ConfigError: the store cannot be reached, or another job uses this folder, on this machine or another.
    """
    place = _place(where)
    with exclusive(place / "lock.json"), lease.leased(where):
        mirror = _mirror(where, place / _kind("job", largest))
        mirror.pull(largest)
        _open.append(mirror)
        try:
            yield mirror.folder
        finally:
            _open.remove(mirror)
            mirror.push()


def push() -> None:
    """Store the changes so far in all open folders of a store."""
    for mirror in _open:
        mirror.push()


def fetched(where: str, largest: int | None = None) -> Path:
    """Return a local copy of the folder ``where``, a URI, for reading: for example a bundle, or the link to one.

    Raises:
        ConfigError: the store cannot be read, or the folder does not exist.
    """
    if (name := leads_to(where)) is not None:
        head, mark, options = where.partition("?")
        where = f"{head.rstrip('/').rpartition('/')[0]}/{name}{mark}{options}"
    place = _place(where) / _kind("read", largest)
    place.mkdir(parents=True, exist_ok=True)
    with FileLock(place / "lock"):
        mirror = _mirror(where, place)
        mirror.pull(largest)
    if not mirror.folder.is_dir():
        raise ConfigError(f"{storage.shown(where)}: no such folder")
    return mirror.folder


def leads_to(where: str) -> str | None:
    """Return the name of the target of the link ``where``, in the same folder; ``None`` if there is no link.

    Raises:
        ConfigError: the store cannot be read.
    """
    system, path = storage.filesystem(where)
    with lease.store_errors(where, "read"):
        if system.get_file_info(f"{path}{LINK}").type != fs.FileType.File:
            return None
        return Path(system.open_input_file(f"{path}{LINK}").read().decode()).name


def bring(where: str, folder: Path) -> None:
    """Copy the folder ``where``, which is not changed any more, to ``folder`` atomically, unless ``folder`` exists.

    Raises:
        ConfigError: the store cannot be read.
    """
    if folder.is_dir():
        return
    with atomic_directory(folder) as target:
        Mirror(where, target, _place(where) / "index.json").pull()


def _place(where: str) -> Path:
    work = Path(os.environ.get(WORK) or Path.home() / ".cache" / "setrec")
    return work / hashlib.sha256(where.rstrip("/").encode()).hexdigest()[:16]


def _kind(name: str, largest: int | None) -> str:
    return name if largest is None else f"{name}-small"


def _mirror(where: str, place: Path) -> Mirror:
    name = storage.shown(where).rstrip("/").rpartition("/")[2]
    copies[str(place / name)] = storage.shown(where)
    return Mirror(where, place / name, place / "index.json")
