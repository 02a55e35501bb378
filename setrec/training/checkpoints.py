"""Training state as safetensors and JSON files, independent of the number of workers that wrote them.

``weights`` holds the model, ``best`` the learned tensors of the best epoch, ``optimizer`` the moments of every learned
parameter by name, ``progress.json`` everything else.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from setrec.errors import ConfigError, first_line
from setrec.training.distributed import distribute_like, full_tensor

MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def learned(model: nn.Module, *, keep: bool) -> dict[str, Tensor]:
    """Return full copies of all trainable parameters; called on every worker, returned on workers with ``keep``."""
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    return _copies({name: value for name, value in model.state_dict().items() if name in names}, keep)


def moments(model: nn.Module, optimizer: torch.optim.Optimizer, *, keep: bool) -> dict[str, Tensor]:
    """Return the full optimiser state as ``key/parameter``; called on every worker, returned on workers with
    ``keep``."""
    model.state_dict()  # a model left gathered by its last use is resharded, else its parameters are other objects
    named: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    state = {
        f"{key}/{named[parameter]}": torch.as_tensor(value)
        for parameter, values in optimizer.state.items()
        for key, value in values.items()
    }
    return _copies(state, keep)


def _copies(tensors: dict[str, Tensor], keep: bool) -> dict[str, Tensor]:
    copies = {}
    for name, value in tensors.items():
        full = full_tensor(value.detach())
        if keep:
            copies[name] = full.to("cpu", copy=True).contiguous()
    return copies


def save(
    folder: Path | None,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    best: dict[str, Tensor],
    progress: dict[str, Any],
) -> None:
    """Write the state into ``folder``; called on every worker, with ``None`` on workers that do not write."""
    keep = folder is not None
    weights, state = _copies(dict(model.state_dict()), keep), moments(model, optimizer, keep=keep)
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "weights.safetensors")
    save_file(best, folder / "best.safetensors")
    save_file(state, folder / "optimizer.safetensors")
    (folder / "progress.json").write_text(json.dumps(progress))
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def load(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Load what :func:`save` wrote into model and optimiser; return the best weights and the progress.

    Raises:
        ConfigError: the checkpoint is incomplete or belongs to a model of another shape.
    """
    try:
        weights, best = load_file(folder / "weights.safetensors"), load_file(folder / "best.safetensors")
        state = load_file(folder / "optimizer.safetensors")
        progress = json.loads((folder / "progress.json").read_text())
        set_weights(model, weights)
    except (OSError, ValueError, SafetensorError) as error:
        raise ConfigError(f"checkpoint '{folder}' cannot be resumed: {first_line(error)}") from error
    for name, parameter in model.named_parameters():
        own = {key: state[f"{key}/{name}"] for key in MOMENTS if f"{key}/{name}" in state}
        if own:
            optimizer.state[parameter] = {
                k: v if k == "step" else distribute_like(v, parameter) for k, v in own.items()
            }
    return best, progress


@torch.no_grad()
def set_weights(model: nn.Module, weights: dict[str, Tensor], *, every: bool = True) -> None:
    """Copy full tensors into ``model``. With ``every``, all tensors of the model are required.

    Raises:
        ValueError: names or shapes do not fit.
    """
    own = model.state_dict()
    if set(weights) - set(own) or (every and set(own) - set(weights)):
        raise ValueError(f"weights do not fit the model: {sorted(set(own) ^ set(weights))[0]}")
    for name, value in weights.items():
        if own[name].shape != value.shape:
            raise ValueError(f"{name} has shape {tuple(value.shape)}, the model's has {tuple(own[name].shape)}")
        own[name].copy_(distribute_like(value, own[name]))
