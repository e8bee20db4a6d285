"""Collectives over all processes, among them a gather of embeddings with the exact gradient."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
import torch.distributed as dist

from ..common.errors import InputError


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def cpu_group() -> dist.ProcessGroup:
    """A group of all processes that exchanges data on CPUs and never waits for a device."""
    return _cpu_group(dist.group.WORLD)


@cache
def _cpu_group(world: dist.ProcessGroup) -> dist.ProcessGroup:
    return world if dist.get_backend(world) == "gloo" else dist.new_group(backend="gloo")


class _GatherRows(torch.autograd.Function):
    """Gathers the rows of all processes in the order of the ranks; backwards, adds up the gradients of our rows."""

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
    # Collectives need equal shapes.
    padded = rows.new_zeros(count, *rows.shape[1:])
    padded[: len(rows)] = rows
    return padded


def rows_of_all(rows: int) -> list[int]:
    """The number of rows of each process."""
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

    If the loss of the local rows against all gathered rows is scaled by `b * world size / B`, the mean gradient over
    the processes equals the gradient of the whole batch on one process.
    """
    return local if len(sizes) == 1 else _GatherRows.apply(local, sizes)


def same_on_all(value: Any) -> Any:
    """Send the value of the main process to all processes."""
    if world_size() == 1:
        return value
    shared = [value]
    dist.broadcast_object_list(shared, src=0, group=cpu_group())
    return shared[0]


@contextmanager
def errors_of_all() -> Iterator[None]:
    """Raise an `InputError` of one process on all of them. Waits for all, so that none waits for one that failed."""
    error = None
    try:
        yield
    except InputError as raised:
        error = raised
    if world_size() == 1:
        messages = [error and str(error)]
    else:
        messages = [None] * dist.get_world_size()
        dist.all_gather_object(messages, error and str(error), group=cpu_group())
    if message := next(filter(None, messages), None):
        raise InputError(message) from error


def average_gradients(parameters: list[torch.nn.Parameter]) -> None:
    """Average the gradients of parameters outside the model, which DistributedDataParallel does not synchronize."""
    if world_size() == 1:
        return
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        dist.all_reduce(parameter.grad)
        parameter.grad /= dist.get_world_size()


class RunningMean:
    """The mean of a number over steps and processes since it was last read."""

    def __init__(self):
        self.sums: torch.Tensor | None = None  # of the numbers, and how many there were

    def add(self, number: torch.Tensor) -> None:
        """Add a scalar, on its device and without waiting for it."""
        added = torch.stack([number.detach(), torch.ones_like(number)])
        self.sums = added if self.sums is None else self.sums + added

    def read(self) -> float | None:
        """The mean, or None if nothing was added. All processes must call this."""
        if self.sums is None:
            return None
        sums, self.sums = self.sums, None
        if world_size() > 1:
            dist.all_reduce(sums)
        return (sums[0] / sums[1]).item()
