"""Training a graph language model on a task, and asking it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from nodetok.consistency import ConsistencySettings, consistency_loss, draw
from nodetok.model import GraphLanguageModel, GraphModelSettings, NodeData, Shape, build_language_model
from nodetok.prompts import PromptEncoder
from nodetok.tasks import Examples, Task
from nodetok.text import answer_ids, text_loss, write
from nodetok.views import View
from nodetok.words import train_tokenizer
from setrec.errors import ConfigError
from setrec.precision import Precision, autocast
from setrec.settings import Settings

OnStep = Callable[[int, int, str], None]
"""Steps done, steps in all, and a word on where training stands."""


class LearningSettings(Settings):
    """How the model is trained; ``patience`` counts epochs without a better validation, ``minutes`` bounds the time,
    ``warmup`` is how many steps the rate rises.

    ``consistency``: what examples without a label add to the loss, where a task has such. ``sampled``: wrong candidates
    that a step looks at (0: all); the cost of a step grows with it, 8,192 of 40,943 cost a fifth of the softmax.
    """

    epochs: int = Field(10, ge=1)
    patience: int = Field(10, ge=1)
    batch: int = Field(256, ge=1)
    learning_rate: float = Field(2e-3, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    warmup: int = Field(20, ge=0)
    clip: float = Field(1.0, gt=0)
    minutes: float | None = Field(None, gt=0)
    precision: Precision = "auto"
    seed: int = 0
    consistency: ConsistencySettings = ConsistencySettings()
    sampled: int = Field(0, ge=0)


@dataclass(eq=False)
class Reader:
    """A trained model with all it needs to be asked."""

    model: GraphLanguageModel
    encoder: PromptEncoder
    data: NodeData
    tokenizer: PreTrainedTokenizerBase
    precision: Precision = "auto"
    curve: list[dict[str, Any]] = field(default_factory=list)

    @torch.no_grad()
    def scores(self, examples: Examples, batch: int = 256) -> Iterator[tuple[np.ndarray, Examples]]:
        """Scores (b, C) of all candidates, part by part, with the examples they belong to."""
        self.model.eval()
        data = self.data.to(self.model.device)
        codes = self.model.codes(data)
        for rows in np.array_split(np.arange(len(examples)), max(1, -(-len(examples) // batch))):
            part = examples.take(rows)
            with autocast(self.model.device, self.precision):
                encoded = self.encoder(part.prompts).to(self.model.device)
                yield self.model.scores(encoded, data, codes).float().cpu().numpy(), part

    def evaluate(self, task: Task, examples: Examples) -> dict[str, np.ndarray]:
        """The task's metrics of every example, (B,) each."""
        found = [task.measure(*part) for part in self.scores(examples)]
        names = dict.fromkeys(name for part in found for name in part)
        width = [len(next(iter(part.values()))) for part in found]
        return {
            name: np.concatenate([part.get(name, np.full(w, np.nan)) for part, w in zip(found, width, strict=True)])
            for name in names
        }

    def write(self, examples: Examples, longest: int = 32) -> list[str]:
        """Answers in words."""
        self.model.eval()
        batch = self.encoder(examples.prompts).to(self.model.device)
        return write(self.model, batch, self.data.to(self.model.device), self.tokenizer, longest)


def build(task: Task, view: View, learning: LearningSettings) -> Reader:
    """An untrained reader of a task: language model, projectors, candidates, all seeded."""
    torch.manual_seed(learning.seed)
    s = view.settings
    if s.backbone.pretrained:
        try:
            tokenizer = AutoTokenizer.from_pretrained(s.backbone.pretrained)
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(f"'{s.backbone.pretrained}' has no usable tokenizer: {reason}") from error
    else:
        tokenizer = train_tokenizer(task.words)
    shape = Shape(
        columns=view.columns,
        features=0 if task.features is None else task.features.shape[1],
        feature_tokens=view.feature_tokens,
        relations=2 * len(task.relation_names),
        candidates=len(task.candidates),
        node_candidates=task.node_candidates,
        words=len(tokenizer),
    )
    return assemble(s, shape, tokenizer, view, learning.precision)


def assemble(
    settings: GraphModelSettings, shape: Shape, tokenizer: PreTrainedTokenizerBase, view: View, precision: Precision
) -> Reader:
    """A reader with random weights of the given shape."""
    lm = build_language_model(settings.backbone, settings.tuning, shape.words)
    model = GraphLanguageModel(settings, shape, lm)
    # A vocabulary made on the spot has to be learned, one that came with the weights does not.
    lm.get_input_embeddings().requires_grad_(settings.backbone.pretrained is None and settings.tuning == "full")
    encoder = PromptEncoder(
        tokenizer, settings.position_tokens, shape.feature_tokens, view.neighbourhoods, plain=view.plain
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Reader(model.to(device), encoder, view.read(None), tokenizer, precision)


def fit(task: Task, view: View, learning: LearningSettings, on_step: OnStep | None = None) -> Reader:
    """Train on a task; the weights of the best validation epoch are kept.

    Raises:
        ConfigError: the loss or the validation is no longer a number.
    """
    if task.train is not None:
        return task.train(view.name, learning, on_step)
    reader = build(task, view, learning)
    model, began = reader.model, time.perf_counter()
    parameters = [p for p in model.parameters() if p.requires_grad]
    decay, plain = [p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": learning.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=learning.learning_rate,
    )
    per_epoch, best, best_epoch, done = 0, -1.0, 0, 0
    weights: dict[str, Tensor] = {}
    for epoch in range(learning.epochs):
        model.train()
        losses = []
        for step, (examples, data) in enumerate(_batches(task, view, reader.encoder, learning, epoch)):
            share = _share(epoch, step, per_epoch, learning, time.perf_counter() - began)
            for group in optimizer.param_groups:
                group["lr"] = learning.learning_rate * _rate(share, done, learning)
            losses.append(_step(reader, task, examples, data, optimizer, parameters, learning, done))
            done += 1
            if on_step is not None:
                on_step(int(1000 * share), 1000, f"epoch {epoch + 1}")
            if learning.minutes is not None and time.perf_counter() - began > 60 * learning.minutes:
                break
        per_epoch = per_epoch or step + 1
        value = float(np.nanmean(reader.evaluate(task, task.valid)[task.goal]))
        seconds = round(time.perf_counter() - began, 2)
        reader.curve.append({"epoch": epoch + 1, "loss": float(np.mean(losses)), "value": value, "seconds": seconds})
        if not math.isfinite(value + reader.curve[-1]["loss"]):
            raise ConfigError(f"training diverged in epoch {epoch + 1}: try a lower learning.learning_rate")
        if value > best:
            best, best_epoch = value, epoch
            weights = {k: v.detach().clone() for k, v in model.state_dict().items()}
        over = learning.minutes is not None and seconds > 60 * learning.minutes
        if over or epoch - best_epoch >= learning.patience:
            break
    model.load_state_dict(weights)
    model.eval()
    return reader


def _batches(
    task: Task, view: View, encoder: PromptEncoder, learning: LearningSettings, epoch: int
) -> Iterator[tuple[Examples, NodeData]]:
    rng = np.random.default_rng([learning.seed, epoch])
    torch.manual_seed(learning.seed * 100_003 + epoch)
    for examples, table in task.draw(rng):
        data = view.read(table)
        for rows in _alike(encoder.lengths(examples.prompts), learning.batch, rng):
            yield examples.take(rows), data


def _alike(lengths: np.ndarray, batch: int, rng: np.random.Generator, window: int = 16) -> list[np.ndarray]:
    """Batches of examples of about the same length, so that little is padding; sorted within windows of so many
    batches, and the batches shuffled."""
    batches: list[np.ndarray] = []
    for rows in np.array_split(np.arange(len(lengths)), max(1, -(-len(lengths) // (window * batch)))):
        rows = rows[np.argsort(lengths[rows], kind="stable")]
        batches += np.array_split(rows, max(1, -(-len(rows) // batch)))
    return [batches[i] for i in rng.permutation(len(batches))]


def _step(
    reader: Reader,
    task: Task,
    examples: Examples,
    data: NodeData,
    optimizer: torch.optim.Optimizer,
    parameters: list[torch.nn.Parameter],
    learning: LearningSettings,
    done: int,
) -> float:
    model, device = reader.model, reader.model.device
    batch = reader.encoder(examples.prompts).to(device)
    data = data.to(device)
    with autocast(device, learning.precision):
        loss = model.loss(batch, torch.from_numpy(examples.targets).to(device), data, learning.sampled)
        if model.settings.text_loss:
            answers = answer_ids(reader.tokenizer, [task.candidates[row] for row in examples.targets]).to(device)
            loss = loss + model.settings.text_loss * text_loss(model, batch, data, answers)
        if learning.consistency.weight and task.unlabelled is not None:
            s = learning.consistency
            beside = reader.encoder(draw(task.unlabelled, s, learning.seed, done)).to(device)
            loss = loss + s.at(done) * consistency_loss(model, beside, data, s.temperature)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, learning.clip)
    optimizer.step()
    return float(loss.detach())


def _share(epoch: int, step: int, per_epoch: int, learning: LearningSettings, seconds: float) -> float:
    """Share of the training that is over, by epochs or by time, whichever is further."""
    by_epochs = (epoch + (step / per_epoch if per_epoch else 0.0)) / learning.epochs
    by_time = seconds / (60 * learning.minutes) if learning.minutes else 0.0
    return min(1.0, max(by_epochs, by_time))


def _rate(share: float, done: int, learning: LearningSettings) -> float:
    """Linear warm-up, then half a cosine."""
    if done < learning.warmup:
        return (done + 1) / learning.warmup
    return 0.5 + 0.5 * math.cos(math.pi * share)
