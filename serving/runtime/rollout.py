"""Releases: another bundle replaces the one in use while requests are answered.

The replica that receives the request loads the new bundle while the old one is in use: it verifies every file against
the manifest, compares the answers to the stored requests, and applies all live changes. Only then it swaps; after any
earlier failure the old model stays in use. Then it writes ``.state/release.json`` in the folder of bundles. The other
replicas read it within half a second and do the same, one at a time. If one of them fails, it records this, and all
return to the previous model. A replica that starts later, after a crash or when Serve adds one, reads the state first.

Two models are in memory while one is loaded, never three.
"""

from __future__ import annotations

import fcntl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from serving.bundle.reader import verify
from serving.runtime.models import Live, Loader, Model
from serving.runtime.release_state import Refusal, ReleaseError, ReleaseState, UnderWayError, UnknownBundleError
from serving.telemetry import logs, metrics
from setrec.atomic import atomic_file
from setrec.errors import SetRecError

_LOOK_SECONDS = 0.5


class Releases:
    """The folder of bundles, and the current release."""

    def __init__(self, folder: Path, first: Path, loader: Loader) -> None:
        """``first``: the bundle that the endpoint is started with.

        Raises:
            BundleError: ``first`` cannot be used.
            ReleaseError: ``folder`` cannot be written to.
        """
        self.folder, self._first, self._loader = folder, first, loader
        self._file = folder / ".state" / "release.json"
        try:
            self._file.parent.mkdir(exist_ok=True)
            (folder / ".state" / "lock").touch()
        except OSError as error:
            raise ReleaseError(f"{folder}: not a writable folder of bundles: {error.strerror}") from error
        self._over = verify(first).model_version
        self.state = ReleaseState(over=self._over, version=self._over)
        self._ended = threading.Event()

    def first_model(self) -> Model:
        """Load the first model: the current release, or the bundle that the endpoint is started with.

        Raises:
            BundleError: neither can be used.
        """
        try:
            released = self._read()
            if released.bundle is not None:
                model = self._load(released.bundle)
                self.state = released
                return model
        except SetRecError as error:
            logs.warning("the current release cannot be used", reason=self._reason(error))
        return self._loader.load(self._first)

    def follow(self, live: Live) -> None:
        """Follow releases of other replicas in a background thread, until ``live`` is closed."""
        thread = threading.Thread(target=self._follow, args=(live,), name="releases", daemon=True)

        def end() -> None:
            self._ended.set()
            thread.join()

        live.on_close(end)
        thread.start()

    def release(self, live: Live, name: str | None) -> ReleaseState:
        """Serve the bundle ``name`` from now on; ``None`` for the one that the endpoint was started with.

        Returns once this replica serves it. Releasing the served bundle again has no effect.

        Raises:
            UnderWayError: another release is in progress.
            UnknownBundleError: there is no such bundle.
            ReleaseError: the release failed; the message states the reason.
        """
        with self._turn() as is_mine:
            if not is_mine:
                raise UnderWayError("another release is under way")
            self._take_up(live)
            self._path(name)
            try:
                self._swap(live, name)
            except Exception as error:  # after any error the model in use must go on
                refusal = Refusal(bundle=name, reason=self._reason(error))
                self._note("refused", refusal.reason, name)
                self._write(refused=refusal)
                raise ReleaseError(refusal.reason) from error
            if (name, live.model_version) != (self.state.bundle, self.state.version):
                self._note("released", None, name)
                self._write(bundle=name, version=live.model_version, before=self.state.bundle, refused=None)
            return self.state

    def announce(self, name: str) -> bool:
        """Request that all replicas of the folder serve the bundle ``name``, unless they use it or refused it; return
        whether it was requested. For a process that is not a replica.

        Raises:
            BundleError: it cannot be used.
            UnknownBundleError: there is no such bundle.
            UnderWayError: another release is in progress.
        """
        with self._turn() as is_mine:
            if not is_mine:
                raise UnderWayError("another release is under way")
            self.state = now = self._read()
            if name == now.bundle or (now.refused is not None and now.refused.bundle == name):
                return False
            version = verify(self._path(name)).model_version
            self._write(bundle=name, version=version, before=now.bundle, refused=None)
            return True

    def _follow(self, live: Live) -> None:
        while not self._ended.wait(_LOOK_SECONDS):
            try:
                if self._read().number != self.state.number:
                    with self._turn() as is_mine:
                        if is_mine:
                            self._take_up(live)
            except Exception:  # the folder may be unavailable temporarily, which does not affect the served model
                logs.failure("cannot follow releases")

    def _take_up(self, live: Live) -> None:
        """Serve the release on disk. A release that fails here is withdrawn everywhere; a withdrawal is only logged."""
        wanted = self._read()
        if wanted.number == self.state.number:
            return
        before, self.state = self.state, wanted
        try:
            self._swap(live, wanted.bundle, wanted.version)
        except Exception as error:  # after any error the model in use must go on
            refusal = Refusal(bundle=wanted.bundle, reason=self._reason(error))
            if wanted.refused is None:
                self._note("withdrawn", refusal.reason, wanted.bundle)
                self._write(bundle=before.bundle, version=before.version, before=None, refused=refusal)
            else:
                self._note("kept", refusal.reason, wanted.bundle)
        else:
            self._note("followed", None, wanted.bundle)

    def _swap(self, live: Live, name: str | None, version: str | None = None) -> None:
        """Serve ``name`` unless the same model is in use."""
        if (version or verify(self._path(name)).model_version) != live.model_version:
            live.swap(self._load(name))

    def _load(self, name: str | None) -> Model:
        """Load the bundle ``name``, tested, with all live changes applied."""
        return self._loader.load(self._path(name), tested=True)

    def _path(self, name: str | None) -> Path:
        """Return the path of the bundle; links and names that lead outside the folder are unknown."""
        if name is None:
            return self._first
        path = self.folder / name
        if path.is_symlink() or not path.is_dir() or path.parent != self.folder:
            raise UnknownBundleError(f"there is no bundle {name!r}")
        return path

    @contextmanager
    def _turn(self) -> Iterator[bool]:
        """Try to lock releases, in this and all other replicas, until the block ends; yield whether the lock was
        free."""
        with open(self.folder / ".state" / "lock", "rb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True  # closing the file releases the lock

    def _read(self) -> ReleaseState:
        """Return the state on disk; the current one if there is none, or if it is over another model."""
        try:
            state = ReleaseState.model_validate_json(self._file.read_bytes())
        except FileNotFoundError:
            return self.state
        except ValidationError as error:
            raise ReleaseError(f"{self._file}: damaged: {error.errors()[0]['msg']}") from error
        return state if state.over == self._over else self.state

    def _write(self, **changes: object) -> None:
        state = self.state.model_copy(update={**changes, "number": self.state.number + 1})
        with atomic_file(self._file) as temporary:
            temporary.write_text(state.model_dump_json(indent=2))
        self.state = state

    def _reason(self, error: BaseException) -> str:
        """Return the error in one line, without the path of the folder."""
        line = " ".join(str(error).split()) or type(error).__name__
        return line.replace(f"{self.folder}/", "")[:300]

    def _note(self, outcome: str, reason: str | None, bundle: str | None) -> None:
        metrics.RELEASES.labels(outcome).inc()
        logs.warning(f"release {outcome}", bundle=bundle, reason=reason)
