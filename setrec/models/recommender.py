"""What a recommender is beside the backbone: slots, their codes and biases, shared by the trained and the served
model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from setrec.errors import ConfigError
from setrec.models.item_tokens import COLLABORATIVE, ItemTokens

BIAS_UNIT = 20.0
"""Unit of the learned repeat bias: it spans many logits, which an optimiser with steps of thousandths would not
reach."""
LOG_UNIT = 10.0
"""Unit of the logarithms of the skip connection's gains, for the same reason."""
SHARPNESS = 4.0
"""The logits in the collaborative leg's own softmax are the score times this number, because the leg overfits and is
too sure of its answers. With equal weights the sum of both legs is best at about this ratio (Toys)."""


class Recommender:
    """The slots of a model with the fields of :class:`setrec.models.configuration.SetRecConfig` as ``config``."""

    config: Any
    tokens: ItemTokens
    leg: Any
    queries: Tensor
    log_skip: Tensor | None
    repeat_logit: Tensor | None

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of slots, e.g. ``("collaborative", "semantic")``."""
        return self.tokens.kinds

    @property
    def code_columns(self) -> dict[str, tuple[int, int]]:
        """Columns (start, stop) of the folded code by kind."""
        return self.tokens.columns

    @property
    def max_items(self) -> int:
        """Maximum number of items read, the latest of a history."""
        return int(self.config.max_items)

    @property
    def legs(self) -> tuple[tuple[str, ...], ...]:
        """Kinds of slots of each leg: those that the backbone reads, and the collaborative leg's if there is one."""
        own = (self.tokens.read_kinds,)
        return own if self.leg is None else (*own, (COLLABORATIVE,))

    def leg_of(self, parameter: str) -> int:
        """Return the number of the leg, in :attr:`legs`, that a parameter belongs to by its name."""
        return int(self.leg is not None and parameter.startswith(("leg.", f"tokens.parts.{COLLABORATIVE}.")))

    def of_legs(self, name: str) -> list[Tensor]:
        """Return a parameter of the backbone's slots and, if there is one, of the collaborative leg."""
        own = [getattr(module, name, None) for module in (self, self.leg) if module is not None]
        return [parameter for parameter in own if parameter is not None]

    def skip_gains(self) -> Tensor | None:
        """Return the gains of the history skip connection, (kinds, decays); ``None`` without one."""
        if self.log_skip is None:
            return None
        return (torch.cat(self.of_legs("log_skip")[::-1]) * LOG_UNIT).exp()  # the collaborative slot is the first

    def repeat_bias(self, weights: Mapping[str, float]) -> float:
        """Return the bias on the scores of items in the history, at given weights of the slot kinds."""
        if self.repeat_logit is None:
            return 0.0
        own, *of_leg = (float(logit.detach()) * BIAS_UNIT for logit in self.of_legs("repeat_logit"))
        bias = own * sum(weights[slot.kind] for slot in self.tokens.read)
        if of_leg:  # learned at the weight SHARPNESS / n
            bias += of_leg[0] * weights[COLLABORATIVE] * len(self.tokens.read) / SHARPNESS
        return float(bias)

    @torch.no_grad()
    def text_codes(self, vectors: Tensor) -> Tensor:
        """Return codes, float32 (rows, D), of new items from their text vectors (rows, width); columns of other slots
        are zero.

        Raises:
            ConfigError: no slot of the model reads text, or it was trained on text vectors of another width.
        """
        if not self.tokens.text_kinds:
            raise ConfigError("no slot of the model reads text, so it cannot place an item by its text")
        if vectors.shape[-1] != self.config.text:
            raise ConfigError(f"text vectors have {vectors.shape[-1]} numbers, the model reads {self.config.text}")
        return self.tokens.text_codes(vectors.to(self.queries.device)).float()


def item_tokens(config: Any, width: int) -> ItemTokens:
    """Return the tokenizers of a configuration, for a backbone of ``width``."""
    leg = config.collaborative_leg
    return ItemTokens(
        config.items, width, collaborative=config.collaborative, text=config.text, text_slot=config.text_slot,
        semantic_tokens=config.semantic_tokens, hidden=tuple(config.hidden), extra=config.extra,
        trainable_table=config.trainable_table, id_dropout=config.id_dropout,
        leg_width=leg["backbone"]["hidden_size"] if leg else None, words=config.words,
    )  # fmt: skip
