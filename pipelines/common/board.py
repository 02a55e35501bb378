"""Actors to which tasks report their progress. They import nothing, so that their processes start at once."""

from __future__ import annotations

from typing import Any


class TrainingBoard:
    """Progress of a training: worker 0 writes it, and the driver, on any node, reads it."""

    def __init__(self) -> None:
        self.state: tuple[float, float, str] = (0.0, 1.0, "starting workers")
        self.epochs: list[dict[str, Any]] = []
        self.refusal = ""

    def refuse(self, why: str) -> None:
        """Store the reason why training is impossible."""
        self.refusal = self.refusal or why

    def refused(self) -> str:
        """Return the reason why training is impossible, empty if it is possible."""
        return self.refusal

    def write(self, done: float, total: float, note: str) -> None:
        """Replace the state."""
        self.state = (done, total, note)

    def finish(self, record: dict[str, Any]) -> None:
        """Add the record of a finished epoch."""
        self.epochs.append(record)

    def read(self, seen: int) -> tuple[tuple[float, float, str], list[dict[str, Any]]]:
        """Return epochs done, total epochs and a note; and the records of epochs after the first ``seen``."""
        return self.state, self.epochs[seen:]


class FitsBoard:
    """Progress of the running fits."""

    def __init__(self) -> None:
        self.fits: dict[str, tuple[float, str]] = {}

    def write(self, name: str, share: float, note: str) -> None:
        """Replace the progress of a fit; a finished fit is removed."""
        if share < 1:
            self.fits[name] = (share, note)
        else:
            self.fits.pop(name, None)

    def read(self) -> dict[str, tuple[float, str]]:
        """Return all running fits."""
        return self.fits
