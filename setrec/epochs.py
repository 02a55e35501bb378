"""The loop over epochs of models trained in one process: budget, early stopping, schedule, best weights."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

import torch
from torch import Tensor, nn


class Epochs:
    """Iterate over epochs, from 1, until the last one, ``patience`` epochs without improvement, or the time limit.

    The first epoch always takes place. Call :meth:`finish` at the end of each, and :meth:`restore` after the loop::

        for epoch in (run := Epochs(model, epochs=10, patience=3)):
            ...
            run.finish(validate(model))
        run.restore()

    Args:
        model: model whose trainable parameters are stored after the best epoch.
        seconds: CPU time of this process, so that the budget does not depend on other processes.
    """

    def __init__(self, model: nn.Module, epochs: int, patience: int, seconds: float = math.inf) -> None:
        self.model, self.epochs, self.patience, self.limit = model, epochs, patience, seconds
        self.done, self.best, self.best_epoch = 0, -math.inf, 0
        self.reserve = 0.0
        """Seconds reserved for work after training."""
        self._began, self._weights = time.process_time(), dict[str, Tensor]()

    @property
    def seconds(self) -> float:
        """Return the CPU seconds since the start."""
        return time.process_time() - self._began

    @property
    def out_of_time(self) -> bool:
        """Return whether the budget is exhausted."""
        return self.seconds + self.reserve >= self.limit

    def share(self, part: float = 0.0) -> float:
        """Return the share of training that is done, including ``part`` of the current epoch: by epochs or by time,
        whichever is larger."""
        return min(1.0, max((self.done + part) / self.epochs, self.seconds / max(1e-9, self.limit)))

    def __iter__(self) -> Iterator[int]:
        while self.done < self.epochs and self.done - self.best_epoch < self.patience:
            if self.done and self.out_of_time:
                break
            yield self.done + 1

    def finish(self, value: float) -> None:
        """End an epoch; store its weights if ``value`` is the largest so far."""
        self.done += 1
        if value > self.best:
            self.best, self.best_epoch = value, self.done
            trained = ((name, p) for name, p in self.model.named_parameters() if p.requires_grad)
            self._weights = {name: p.detach().clone() for name, p in trained}

    def restore(self) -> None:
        """Load the weights of the best epoch, and set the model to evaluation mode."""
        self.model.load_state_dict(self._weights, strict=False)
        self.model.eval()


def cosine(share: float) -> float:
    """Return half a cosine from 1 to 0 as ``share`` goes from 0 to 1."""
    return 0.5 + 0.5 * math.cos(math.pi * min(1.0, share))


def scale_learning_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set the learning rates of an optimizer to ``factor`` times their initial values."""
    for group in optimizer.param_groups:
        group["lr"] = factor * group.setdefault("initial_lr", group["lr"])
