"""Actors through which tasks say how far they are. They import nothing, so that their processes start at once."""

from __future__ import annotations

from typing import Any


class TrainingBoard:
    """Where worker 0 writes how far it is, and the driver, wherever it runs, reads it."""

    def __init__(self) -> None:
        self.state: tuple[float, float, str] = (0.0, 1.0, "starting workers")
        self.epochs: list[dict[str, Any]] = []
        self.refusal = ""

    def refuse(self, why: str) -> None:
        """Keep why training cannot be done at all."""
        self.refusal = self.refusal or why

    def refused(self) -> str:
        """Why training cannot be done at all, empty where it can."""
        return self.refusal

    def write(self, done: float, total: float, note: str) -> None:
        """Replace the state."""
        self.state = (done, total, note)

    def finish(self, record: dict[str, Any]) -> None:
        """An epoch is over."""
        self.epochs.append(record)

    def read(self, seen: int) -> tuple[tuple[float, float, str], list[dict[str, Any]]]:
        """Epochs done, epochs in all and a note; and the records of epochs after the first ``seen`` of them."""
        return self.state, self.epochs[seen:]


class FitsBoard:
    """Where fits under way write how far they are."""

    def __init__(self) -> None:
        self.fits: dict[str, tuple[float, str]] = {}

    def write(self, name: str, share: float, note: str) -> None:
        """Replace what is known of a fit; nothing is kept of one that ended."""
        if share < 1:
            self.fits[name] = (share, note)
        else:
            self.fits.pop(name, None)

    def read(self) -> dict[str, tuple[float, str]]:
        """All fits under way."""
        return self.fits
