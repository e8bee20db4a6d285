"""
Gradient caching (Gao et al. 2021, arXiv 2101.06983): the exact gradient of a large batch in the memory of one chunk.

The collator splits the batch into chunks. A step represents all chunks without a graph, takes the loss of all
embeddings, caches its gradient at the embeddings, and then computes one chunk at a time again, with a graph, to send
its part of the gradient back. Dropout repeats itself, because each chunk is computed twice under one random state.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.checkpoint import get_device_states, set_device_states

from ..batching import chunks_of, model_inputs


if TYPE_CHECKING:  # benchmarks/gpu.py caches gradients with torch alone
    from accelerate import Accelerator
    from transformers import Trainer


class GradientCache:
    """
    The cache of one step.

    Args:
        model: the model as the Trainer wraps it.
        accelerator: scales the loss and synchronizes the processes.
        chunks: packed inputs ([`~modeling_layerpool.training.batching.chunks_of`]).
        embed: computes what the loss is of, from the model and the inputs of a chunk. Default: the embeddings.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        accelerator: "Accelerator",
        chunks: list[dict[str, torch.Tensor]],
        embed: Callable[[torch.nn.Module, dict[str, Any]], torch.Tensor] | None = None,
    ):
        self.model = model
        self.embed = embed or (lambda model, inputs: model(**inputs).pooler_output)
        self.accelerator = accelerator
        self.inputs = [model_inputs(chunk) for chunk in chunks]
        self.random_states: list[RandomState] = []
        self.sizes: list[int] = []

    @torch.no_grad()
    def represent(self) -> torch.Tensor:
        """The embeddings of all chunks, `(s, h)`, without a graph."""
        embeddings = []
        for inputs in self.inputs:
            self.random_states.append(RandomState(*inputs.values()))
            embeddings.append(self.embed(self.model, inputs))
        self.sizes = [len(part) for part in embeddings]
        self.embeddings = torch.cat(embeddings).requires_grad_()
        return self.embeddings

    def cache_gradient(self, loss: torch.Tensor) -> None:
        """Compute the gradient of the loss at the embeddings."""
        self.accelerator.backward(loss)

    def backward(self) -> None:
        """Embed each chunk again, with a graph, and send its part of the cached gradient back."""
        gradients = self.embeddings.grad.split(self.sizes)
        for index, (inputs, state, gradient) in enumerate(
            zip(self.inputs, self.random_states, gradients, strict=True)
        ):
            is_last = index == len(self.inputs) - 1
            # Processes exchange their gradients once, with the last chunk.
            with nullcontext() if is_last else self.accelerator.no_sync(self.model), state.restored():
                self.embed(self.model, inputs).backward(gradient)


def cached_step(trainer: "Trainer", model: torch.nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
    """The training step of a contrastive trainer with gradient caching; returns its loss."""
    chunks, accumulation_steps = chunks_of(inputs), trainer.current_gradient_accumulation_steps
    cache = GradientCache(model, trainer.accelerator, chunks, trainer.representation.embed)
    embeddings = cache.represent()
    loss = trainer.objective_loss(model, embeddings, inputs) / accumulation_steps
    cache.cache_gradient(loss)
    loss = loss.detach()
    if trainer.mlm_term is not None:
        # The last backward pass of a step synchronizes the processes, and has to be one of the cache.
        loss = loss + trainer.mlm_term.backward(model, chunks, accumulation_steps)
    cache.backward()
    return loss


class RandomState:
    """The random generators of the CPU and of the devices of `tensors`, as they are now."""

    def __init__(self, *tensors: torch.Tensor):
        self.cpu_state = torch.get_rng_state()
        self.devices, self.device_states = get_device_states(*tensors)

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Draw the same numbers again; afterwards the generators continue as if nothing had been drawn."""
        with torch.random.fork_rng(devices=self.devices):
            torch.set_rng_state(self.cpu_state)
            set_device_states(self.devices, self.device_states)
            yield
