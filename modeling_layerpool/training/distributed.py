"""Embeddings of all processes in one place, with the exact gradient."""

from functools import cache
from typing import Any

import torch
import torch.distributed as dist


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def cpu_group() -> dist.ProcessGroup:
    """All processes, in a group whose exchanges are between CPUs and never wait for a device."""
    return _cpu_group(dist.group.WORLD)


@cache
def _cpu_group(world: dist.ProcessGroup) -> dist.ProcessGroup:
    return world if dist.get_backend(world) == "gloo" else dist.new_group(backend="gloo")


class _GatherRows(torch.autograd.Function):
    """Rows of all processes, in the order of the ranks; backwards, the sum of what all processes want of ours."""

    @staticmethod
    def forward(ctx, local: torch.Tensor, sizes: list[int]) -> torch.Tensor:
        ctx.sizes = sizes
        padded = _pad(local, max(sizes))
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        parts = [_pad(part, max(ctx.sizes)) for part in gradient.split(ctx.sizes)]
        own = torch.empty_like(parts[0])
        dist.reduce_scatter(own, parts)
        return own[: ctx.sizes[dist.get_rank()]], None


def _pad(rows: torch.Tensor, count: int) -> torch.Tensor:
    # Collectives want equal shapes.
    padded = rows.new_zeros(count, *rows.shape[1:])
    padded[: len(rows)] = rows
    return padded


def rows_of_all(rows: int) -> list[int]:
    """How many rows each process has."""
    if world_size() == 1:
        return [rows]
    own = torch.tensor([rows])
    sizes = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, own, group=cpu_group())
    return [int(size) for size in sizes]


def gather_rows(local: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    """
    Gather `(b, ...)` of every process into `(B, ...)`: one gather, and one reduce-scatter backwards.

    Args:
        local: the rows of this process.
        sizes: the b of each process, which may differ ([`rows_of_all`]).

    With the loss of the local rows against all columns, scaled by `b * world size / B`, the mean gradient over the
    processes is the one of the whole batch on one process.
    """
    return local if len(sizes) == 1 else _GatherRows.apply(local, sizes)


def same_on_all(value: Any) -> Any:
    """The main process's value, on all processes."""
    if world_size() == 1:
        return value
    shared = [value]
    dist.broadcast_object_list(shared, src=0, group=cpu_group())
    return shared[0]


def average_gradients(parameters: list[torch.nn.Parameter]) -> None:
    """Average the gradients of parameters that no wrapper (DistributedDataParallel) looks after."""
    if world_size() == 1:
        return
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        dist.all_reduce(parameter.grad)
        parameter.grad /= dist.get_world_size()
