"""Embeddings of all processes in one place, with the exact gradient."""

import torch
import torch.distributed as dist


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class _GatherRows(torch.autograd.Function):
    """Rows of all processes, in the order of the ranks; backwards, the sum of what all processes want of ours."""

    @staticmethod
    def forward(ctx, local: torch.Tensor, sizes: list[int]) -> torch.Tensor:
        ctx.sizes = sizes
        # Collectives want equal shapes: pad to the largest, cut afterwards.
        padded = local.new_zeros(max(sizes), *local.shape[1:])
        padded[: local.shape[0]] = local
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        begin = sum(ctx.sizes[: dist.get_rank()])
        return gradient[begin : begin + ctx.sizes[dist.get_rank()]], None


def gather_rows(local: torch.Tensor) -> tuple[torch.Tensor, int]:
    """
    Gather `(b, ...)` of every process into `(B, ...)`, `B` the sum of all b, which may differ.

    Returns:
        The gathered rows and the place of this process's first row. With the loss of the local rows against all
        columns, scaled by `b * world size / B`, the mean gradient over the processes is the one of the whole batch
        on one process.
    """
    if world_size() == 1:
        return local, 0
    own = torch.tensor([local.shape[0]], device=local.device)
    sizes = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, own)
    sizes = [int(size) for size in sizes]
    return _GatherRows.apply(local, sizes), sum(sizes[: dist.get_rank()])


def average_gradients(parameters: list[torch.nn.Parameter]) -> None:
    """Average the gradients of parameters that no wrapper (DistributedDataParallel) looks after."""
    if world_size() == 1:
        return
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        dist.all_reduce(parameter.grad)
        parameter.grad /= dist.get_world_size()
