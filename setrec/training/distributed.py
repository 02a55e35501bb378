"""Weights, gradients and moments spread over workers (FSDP2), for backbones that do not fit one device.

Every layer of the backbone is a unit that is gathered when it is needed and let go afterwards; all the rest (item
tables, queries, T5's first layers) is one more unit. Works over NCCL and, for tests, over gloo on processors. A tensor
that is spread is a ``DTensor``; :func:`full_tensor` and :func:`distribute_like` lead out of and into that, so that
checkpoints do not depend on the number of workers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from setrec.models.setrec_model import SetRecModel


def shard(model: SetRecModel, device_type: str) -> SetRecModel:
    """Spread ``model``, in place, over all processes of the default group, layer by layer, onto their devices."""
    mesh = init_device_mesh(device_type, (dist.get_world_size(),))
    for layer in model.backbone.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def full_tensor(tensor: Tensor) -> Tensor:
    """The whole of a tensor; where it is spread, every worker has to ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def distribute_like(tensor: Tensor, target: Tensor) -> Tensor:
    """A whole tensor, which every worker holds, as ``target`` is: on its device, spread as it is spread."""
    tensor = tensor.to(target.device)
    if not isinstance(target, DTensor):
        return tensor
    return distribute_tensor(tensor, target.device_mesh, target.placements, src_data_rank=None)


@contextmanager
def unsharded(model: nn.Module) -> Iterator[None]:
    """Inside, methods of the model other than ``forward`` may be called, by every worker alike."""
    if not isinstance(model, FSDPModule):
        yield
        return
    model.unshard()
    try:
        yield
    finally:
        model.reshard()


@contextmanager
def gradient_sync(wrapped: nn.Module, now: bool) -> Iterator[None]:
    """Whether gradients are averaged over workers on this way back, or only summed up until a later one is."""
    if isinstance(wrapped, FSDPModule):
        wrapped.set_requires_gradient_sync(now)
        yield
        return
    with wrapped.no_sync() if isinstance(wrapped, DistributedDataParallel) and not now else nullcontext():
        yield


def broadcast_from_rank0(value: float, world: int, device: torch.device) -> float:
    """The value of worker 0, on every worker."""
    if world == 1:
        return value
    value_of_0 = torch.tensor([value], dtype=torch.float64, device=device)
    dist.broadcast(value_of_0, src=0)
    return float(value_of_0)


def all_reduce_sum(values: list[float], world: int, device: torch.device) -> list[float]:
    """Sums over workers."""
    if world == 1:
        return values
    total = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return total.tolist()
