"""The masked language modeling loss that `mlm_weight` adds to an objective."""

from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator

from ...models.modeling_layerpool_packing import at_least_float32
from ..batching import model_inputs
from ..distributed import RunningMean, rows_of_all
from ..mlm_head import MaskedLanguageHead


class MaskedLanguageTerm:
    """
    The cross-entropy of masked tokens, averaged over the masked tokens of all processes.

    Args:
        head: predicts the masked tokens.
        weight: factor of the loss.
        accelerator: runs the backward pass, and the head under autocast.
    """

    def __init__(self, head: MaskedLanguageHead, weight: float, accelerator: Accelerator):
        self.head = head
        self.weight = weight
        self.accelerator = accelerator
        self.mean = RunningMean()

    def loss(self, model: torch.nn.Module, chunks: list[dict[str, Any]]) -> torch.Tensor:
        """The weighted loss of a batch, with its graph."""
        divisor = self._divisor(chunks)
        loss = sum(self._chunk_loss(model, chunk, divisor) for chunk in chunks)
        self.mean.add(loss)
        return self.weight * loss

    def backward(self, model: torch.nn.Module, chunks: list[dict[str, Any]], accumulation_steps: int) -> torch.Tensor:
        """The same for gradient caching: the backward pass of one chunk at a time. The loss is a sum over chunks."""
        divisor = self._divisor(chunks)
        total = torch.zeros((), device=self.accelerator.device)
        for chunk in chunks:
            with self.accelerator.no_sync(model):
                loss = self._chunk_loss(model, chunk, divisor) / accumulation_steps
                self.accelerator.backward(self.weight * loss)
            total = total + loss.detach()
        self.mean.add(total * accumulation_steps)
        return self.weight * total

    def logs(self) -> dict[str, float]:
        """The mean loss of all processes, without its weight, since the last call. Empty if there was no step."""
        mean = self.mean.read()
        return {} if mean is None else {"mlm_loss": mean}

    def _divisor(self, chunks: list[dict[str, Any]]) -> float:
        """The mean number of masked tokens per process. Processes average their gradients."""
        counts = rows_of_all(sum(len(chunk["mlm_indices"]) for chunk in chunks))
        return max(1, sum(counts)) / len(counts)

    def _chunk_loss(self, model: torch.nn.Module, chunk: dict[str, Any], divisor: float) -> torch.Tensor:
        inputs = model_inputs(chunk | {"input_ids": chunk["mlm_input_ids"]})
        states = model(**inputs).last_hidden_state.flatten(0, 1)[chunk["mlm_indices"]]
        with self.accelerator.autocast():
            logits = self.head(states)
        return F.cross_entropy(at_least_float32(logits), chunk["mlm_labels"], reduction="sum") / divisor
