"""A split of traffic between the model in use and another released bundle, by hash of the user."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from serving.engine.engine import Engine
from serving.engine.requests import Request
from serving.runtime.experiments.exposures import Arm
from serving.runtime.settings import ExperimentSettings

R = TypeVar("R")
CONTROL, TREATMENT = "control", "treatment"


@dataclass(frozen=True)
class Experiment:
    """An engine that answers for a share of the users."""

    settings: ExperimentSettings
    engine: Engine

    def arm(self, user_id: str | None) -> Arm:
        """Return the arm of a user, which is always the same. Requests without a user are not part of the
        experiment."""
        if user_id is None:
            return Arm()
        digest = hashlib.sha256(f"{self.settings.name}\x00{user_id}".encode()).digest()
        share = self.settings.share
        treated = int.from_bytes(digest[:8], "big") < share * 2**64
        name, propensity = (TREATMENT, share) if treated else (CONTROL, 1 - share)
        return Arm(self.settings.name, name, propensity)

    def split(
        self, requests: Sequence[Request], control: Engine, answer: Callable[[Engine, list[Request]], list[R]]
    ) -> list[R]:
        """Answer each request with the engine of its arm; return answers in the order of the requests."""
        treated = [self.arm(request.user_id).name == TREATMENT for request in requests]
        answers: list[R | None] = [None] * len(requests)
        for engine, side in ((control, False), (self.engine, True)):
            at = [n for n, own in enumerate(treated) if own is side]
            if at:
                for n, one in zip(at, answer(engine, [requests[n] for n in at]), strict=True):
                    answers[n] = one
        return answers  # type: ignore[return-value]
