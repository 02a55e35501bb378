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
    """Brings what is current in the store into the folder of releases here, and has all replicas take it up.

    A store that is out of reach and a bundle that cannot be used are logged; what is served goes on.
    """

    def __init__(self, bundle: Path, settings: ServingSettings) -> None:
        """``bundle``: the one that the endpoint is started with; ``settings.follow``: the folder of releases in the
        store; ``settings.releases``: the folder here.

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
        """Look every :data:`LOOK_SECONDS`, from a thread beside."""
        self._thread.start()

    def close(self) -> None:
        """Look no more."""
        self._ended.set()

    def look(self) -> str | None:
        """The name of the release that replicas are asked to take up; ``None`` where there is nothing new.

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
