"""Training and evaluation of a graph language model on a task."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from nodetok.distances import UNREACHABLE
from nodetok.language.consistency import consistency_loss, draw
from nodetok.language.generation import answer_ids, text_loss, write
from nodetok.language.input_ablation import InputAblation, ablate
from nodetok.language.interface import Examples, Task
from nodetok.language.language_model import answer_vectors, build_language_model, chat_template, load_tokenizer
from nodetok.language.model import GraphLanguageModel
from nodetok.language.prompts import NodeData, PromptEncoder, PromptText, Shape
from nodetok.language.settings import TOKENS, GraphModelSettings, GraphTrainingSettings
from nodetok.language.vocabulary import train_tokenizer
from setrec.epochs import Epochs, cosine, scale_learning_rates
from setrec.errors import ConfigError
from setrec.optimizer import adamw, backbone_share
from setrec.precision import autocast
from setrec.settings import Precision

CLASS_WORDS = 24
"""Tokens of each class's name and description that a prompt shows by default."""

OnStep = Callable[[int, int, str], None]
"""Callback with steps done, total steps, and a short status text."""


@dataclass(eq=False)
class Reader:
    """A trained model with everything needed to answer."""

    model: GraphLanguageModel
    encoder: PromptEncoder
    data: NodeData
    tokenizer: PreTrainedTokenizerBase
    candidates: Sequence[str]
    precision: Precision = "auto"
    curve: list[dict[str, Any]] = field(default_factory=list)

    @torch.no_grad()
    def scores(self, examples: Examples, batch: int = 256) -> Iterator[tuple[np.ndarray, Examples]]:
        """Yield scores (b, C) of all candidates with their examples, part by part."""
        self.model.eval()
        data = self.data.to(self.model.device)
        codes = self.model.codes(data)
        for rows in np.array_split(np.arange(len(examples)), max(1, -(-len(examples) // batch))):
            part = examples.take(rows)
            with autocast(self.model.device, self.precision):
                encoded = self.encoder(part.prompts).to(self.model.device)
                yield self.model.scores(encoded, data, codes).float().cpu().numpy(), part

    def evaluate(self, task: Task, examples: Examples) -> dict[str, np.ndarray]:
        """Return the task's metrics of every example, (B,) each."""
        if task.measured_whole:
            parts = list(self.scores(examples))
            return task.measure(np.concatenate([scores for scores, _ in parts]), examples)
        measured = [task.measure(*part) for part in self.scores(examples)]
        names = dict.fromkeys(name for part in measured for name in part)
        width = [len(next(iter(part.values()))) for part in measured]
        return {
            name: np.concatenate([part.get(name, np.full(w, np.nan)) for part, w in zip(measured, width, strict=True)])
            for name in names
        }

    @torch.no_grad()
    def text_loss(self, examples: Examples, batch: int = 256) -> float:
        """Return the mean cross-entropy of the tokens of the correct answers."""
        self.model.eval()
        data, device = self.data.to(self.model.device), self.model.device
        total = 0.0
        for rows in np.array_split(np.arange(len(examples)), max(1, -(-len(examples) // batch))):
            part = examples.take(rows)
            answers = answer_ids(self.tokenizer, [self.candidates[row] for row in part.targets]).to(device)
            with autocast(device, self.precision):
                encoded = self.encoder(part.prompts).to(device)
                total += len(part) * float(text_loss(self.model, encoded, data, answers))
        return total / len(examples)

    def on(self, task: Task, name: str = TOKENS, seed: int = 0) -> Reader:
        """Return this reader for the nodes and the candidates of another task on another graph, without training.
        ``name``: the input ablation. Other candidates are read by their texts.

        Raises:
            ConfigError: the model is bound to its graph, by its anchors, candidates or features.
        """
        s, shape, slots = self.model.settings, self.model.shape, set(self.model.slots)
        if slots & {"features", "positions"} or (shape.features and not shape.described):
            raise ConfigError("a model whose candidates or features are those of its graph cannot read another one")
        if "identity" in slots and list(task.candidates) != list(self.candidates):
            raise ConfigError("a model of its own classes cannot choose among others: train with model.identity=0")
        width = 0 if task.features is None else task.features.shape[1]
        if width != shape.features or (shape.described and task.class_vectors is None):
            raise ConfigError(f"the model reads text vectors of width {shape.features}, the other graph has {width}")
        if s.position_tokens and s.profile != "sorted":
            raise ConfigError("a model bound to its anchors cannot read another graph: train with model.profile=sorted")
        missing = shape.columns - task.table.shape[1]
        blank = UNREACHABLE if task.table.dtype == np.uint8 else np.inf
        table = np.pad(task.table, ((0, 0), (0, max(0, missing))), constant_values=blank)[:, : shape.columns]
        other = ablate(replace(task, table=table), name, s, seed)
        encoder = PromptEncoder(
            self.tokenizer, s.position_tokens, shape.feature_tokens, other.neighbourhoods, plain=other.plain,
            text=prompt_text(task, other, self.tokenizer),
        )  # fmt: skip
        data = replace(other.read(None), unseen=list(task.candidates) != list(self.candidates))
        if "words" in slots:
            names = answer_vectors(self.model.lm, name_ids(self.tokenizer, task.candidates))
            data = replace(data, answers=names.detach())
        return replace(self, encoder=encoder, data=data, candidates=task.candidates)

    def write(self, examples: Examples, longest: int = 32) -> list[str]:
        """Generate answers as text."""
        self.model.eval()
        batch = self.encoder(examples.prompts).to(self.model.device)
        return write(self.model, batch, self.data.to(self.model.device), self.tokenizer, longest)


def build(task: Task, ablation: InputAblation, learning: GraphTrainingSettings) -> Reader:
    """Build an untrained reader of a task, seeded: language model, projectors and candidates."""
    torch.manual_seed(learning.seed)
    s = ablation.settings
    pretrained = s.backbone.pretrained
    tokenizer = load_tokenizer(pretrained) if pretrained else train_tokenizer(task.words)
    shape = Shape(
        columns=ablation.columns,
        features=0 if task.features is None else task.features.shape[1],
        feature_tokens=ablation.feature_tokens,
        relations=2 * len(task.relation_names),
        candidates=len(task.candidates),
        node_candidates=task.node_candidates,
        words=len(tokenizer),
        described=_described(task, s),
    )
    lm = build_language_model(s.backbone, s.tuning, shape.words, s.frozen_layers)
    model = GraphLanguageModel(s, shape, lm)
    # A new vocabulary has to be learned, that of a checkpoint does not.
    lm.get_input_embeddings().requires_grad_(pretrained is None and s.tuning == "full")
    encoder = PromptEncoder(
        tokenizer, s.position_tokens, shape.feature_tokens, ablation.neighbourhoods, plain=ablation.plain,
        text=prompt_text(task, ablation, tokenizer),
    )  # fmt: skip
    if pretrained:
        names = [] if task.node_candidates else task.candidates
        model.start_from_words(name_ids(tokenizer, names), encoder(task.valid.prompts.take(np.arange(1))))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Reader(model.to(device), encoder, ablation.read(None), tokenizer, task.candidates, learning.precision)


def _described(task: Task, settings: GraphModelSettings) -> bool:
    """Return whether classes are scored by the vectors of their texts."""
    return task.class_vectors is not None and not settings.identity


def name_ids(tokenizer: PreTrainedTokenizerBase, names: Sequence[str]) -> list[list[int]]:
    """Return the token ids of the names of candidates, as an answer continues a prompt."""
    return [tokenizer(f" {name}", add_special_tokens=False)["input_ids"] for name in names]


def prompt_text(task: Task, ablation: InputAblation, tokenizer: PreTrainedTokenizerBase) -> PromptText:
    """Return the texts in the prompts of a task, within the budgets of the settings."""
    s = ablation.settings
    pretrained = s.backbone.pretrained is not None
    nodes = task.node_texts if ablation.words and s.node_words else None
    budget, prefix = s.class_words, ""
    if budget is None:
        # A described class is read from its vector; a model of its own vocabulary does not know the words of others.
        budget = CLASS_WORDS if pretrained or (task.class_texts is not None and not _described(task, s)) else 0
    shown = task.class_texts if task.class_texts is not None else task.candidates
    if budget and task.show_classes:
        cut = (tokenizer(text, add_special_tokens=False)["input_ids"][:budget] for text in shown)
        prefix = f"classes : {' ; '.join(str(tokenizer.decode(ids)).strip() for ids in cut)} . "
    template = chat_template(tokenizer) if pretrained and s.chat_template else ("", "")
    return PromptText(nodes, s.node_words, prefix, template, s.edge_words if ablation.words else 0)


def fit(task: Task, ablation: InputAblation, learning: GraphTrainingSettings, on_step: OnStep | None = None) -> Reader:
    """Train on a task, and return the reader with the weights of the best validation epoch.

    Raises:
        ConfigError: the loss or the validation is not a number, or ``model.pair_neighbours`` shows edges that the task
            hides.
    """
    if task.train is not None:
        reader: Reader = task.train(ablation.name, learning, on_step)
        return reader
    reader = build(task, ablation, learning)
    model = reader.model
    optimizer = _optimizer(model, learning)
    parameters = [p for p in model.parameters() if p.requires_grad]
    run = Epochs(
        model, learning.epochs, learning.patience, math.inf if learning.minutes is None else 60 * learning.minutes
    )
    per_epoch, done = 0, 0
    for epoch in run:
        model.train()
        losses = []
        for step, (examples, data) in enumerate(_batches(task, ablation, reader.encoder, learning, epoch - 1)):
            share = run.share(step / per_epoch if per_epoch else 0.0)
            warm = done >= learning.warmup
            scale_learning_rates(optimizer, cosine(share) if warm else (done + 1) / learning.warmup)
            losses.append(_step(reader, task, examples, data, optimizer, parameters, learning, done))
            done += 1
            if on_step is not None:
                on_step(int(1000 * share), 1000, f"epoch {epoch}")
            if run.out_of_time:
                break
        per_epoch = per_epoch or step + 1
        value, loss = float(np.nanmean(reader.evaluate(task, task.valid)[task.goal])), float(np.mean(losses))
        reader.curve.append({"epoch": epoch, "loss": loss, "value": value, "seconds": round(run.seconds, 2)})
        if not math.isfinite(value + loss):
            raise ConfigError(f"training diverged in epoch {epoch}: try a lower learning.learning_rate")
        # A model that also generates text is selected by both metrics: by the answer alone the first epochs would win.
        weight = model.settings.text_loss
        run.finish(value - weight * reader.text_loss(task.valid) if weight else value)
    run.restore()
    return reader


def _optimizer(model: GraphLanguageModel, learning: GraphTrainingSettings) -> torch.optim.Optimizer:
    s = model.settings
    share = backbone_share(pretrained=s.backbone.pretrained is not None, lora=s.tuning == "lora")
    if learning.backbone_rate is not None and s.backbone.pretrained:
        share = learning.backbone_rate / learning.learning_rate
    of_backbone = {id(p) for p in model.lm.parameters()}
    return adamw(
        ((p, share if id(p) in of_backbone else 1.0, learning.weight_decay) for p in model.parameters()),
        learning.learning_rate,
    )


def _batches(
    task: Task, ablation: InputAblation, encoder: PromptEncoder, learning: GraphTrainingSettings, epoch: int
) -> Iterator[tuple[Examples, NodeData]]:
    rng = np.random.default_rng([learning.seed, epoch])
    torch.manual_seed(learning.seed * 100_003 + epoch)
    for examples, table in task.draw(rng):
        if ablation.settings.pair_neighbours and examples.prompts.hidden is not None:
            raise ConfigError(f"model.pair_neighbours shows edges that '{task.name}' hides: set it to 0")
        data = ablation.read(table)
        for rows in _alike(encoder.lengths(examples.prompts), learning.batch, rng):
            yield examples.take(rows), data


def _alike(lengths: np.ndarray, batch: int, rng: np.random.Generator, window: int = 16) -> list[np.ndarray]:
    """Return shuffled batches of examples of similar length, which saves padding; examples are sorted within windows of
    ``window`` batches."""
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
    learning: GraphTrainingSettings,
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
            unlabelled = reader.encoder(draw(task.unlabelled, s, learning.seed, done)).to(device)
            loss = loss + s.at(done) * consistency_loss(model, unlabelled, data, s.temperature)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, learning.clip)
    optimizer.step()
    return float(loss.detach())
