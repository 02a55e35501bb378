"""Weights, gradients and moments sharded over workers (FSDP2), for backbones that do not fit one device.

Every layer of the backbone is a unit that is gathered when needed and released afterwards; everything else (item
tables, queries, T5's first layers) is one more unit. Works over NCCL and, for tests, over gloo on CPUs. A sharded
tensor is a ``DTensor``; :func:`full_tensor` and :func:`distribute_like` convert from and to it, so that checkpoints do
not depend on the number of workers.
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
    """Shard ``model``, in place, layer by layer over the devices of all processes of the default group."""
    mesh = init_device_mesh(device_type, (dist.get_world_size(),))
    for layer in model.backbone.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def full_tensor(tensor: Tensor) -> Tensor:
    """Return the full tensor; if it is sharded, every worker has to call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def distribute_like(tensor: Tensor, target: Tensor) -> Tensor:
    """Return a full tensor, which every worker has, on the device of ``target`` and sharded like it."""
    tensor = tensor.to(target.device)
    if not isinstance(target, DTensor):
        return tensor
    return distribute_tensor(tensor, target.device_mesh, target.placements, src_data_rank=None)


@contextmanager
def unsharded(model: nn.Module) -> Iterator[None]:
    """Context in which every worker may call methods of the model other than ``forward``."""
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
    """Context that averages gradients over workers in this backward pass, or (``now`` false) only accumulates them."""
    if isinstance(wrapped, FSDPModule):
        wrapped.set_requires_gradient_sync(now)
        yield
        return
    with wrapped.no_sync() if isinstance(wrapped, DistributedDataParallel) and not now else nullcontext():
        yield


def broadcast_from_rank0(value: float, world: int, device: torch.device) -> float:
    """Return the value of worker 0, on every worker."""
    if world == 1:
        return value
    value_of_0 = torch.tensor([value], dtype=torch.float64, device=device)
    dist.broadcast(value_of_0, src=0)
    return float(value_of_0)


def all_reduce_sum(values: list[float], world: int, device: torch.device) -> list[float]:
    """Return sums over workers."""
    if world == 1:
        return values
    total = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return total.tolist()
