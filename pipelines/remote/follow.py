"""Releases in an object store, followed by an endpoint on one machine."""

from __future__ import annotations

import threading
from pathlib import Path

from pipelines.common import storage
from pipelines.remote import mirror
from serving.runtime.models import Loader
from serving.runtime.rollout import Releases
from serving.runtime.settings import ServingSettings
from serving.telemetry import logs
from setrec.errors import SetRecError

LOOK_SECONDS = 15.0


class StoreFollower:
    """Copies the current release of a store to the local folder of releases, and makes all replicas load it.

    An unreachable store and an unusable bundle are logged; serving continues.
    """

    def __init__(self, bundle: Path, settings: ServingSettings) -> None:
        """``bundle``: the one that the endpoint is started with; ``settings.follow``: the folder of releases in the
        store; ``settings.releases``: the local folder.

        Raises:
            BundleError, ReleaseError: bundle or folder cannot be used.
        """
        assert settings.releases is not None
        assert settings.follow is not None
        self._where, self._folder = settings.follow, settings.releases
        self._releases = Releases(settings.releases, bundle, Loader(settings))
        self._ended, self._said = threading.Event(), ""
        self._thread = threading.Thread(target=self._run, name="store", daemon=True)

    def start(self) -> None:
        """Check every :data:`LOOK_SECONDS` in a thread."""
        self._thread.start()

    def close(self) -> None:
        """Stop checking."""
        self._ended.set()

    def look(self) -> str | None:
        """Return the name of the release that replicas are asked to load, or ``None`` if there is no new one.

        Raises:
            ConfigError: the store cannot be read.
            BundleError, ReleaseError: as :meth:`Releases.announce`.
        """
        name = mirror.leads_to(storage.join(self._where, "current"))
        if name is None:
            return None
        mirror.bring(storage.join(self._where, name), self._folder / name)
        return name if self._releases.announce(name) else None

    def _run(self) -> None:
        while not self._ended.wait(LOOK_SECONDS):
            try:
                self.look()
                self._said = ""
            except (SetRecError, OSError) as error:
                if (line := str(error)) != self._said:
                    logs.warning("releases in the store cannot be followed", error=line)
                self._said = line
