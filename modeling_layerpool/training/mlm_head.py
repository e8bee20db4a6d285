"""The head of a masked language model, computed where a token is predicted and nowhere else."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput


def predicted_places(labels: torch.Tensor) -> torch.Tensor:
    """The places of labels that are not -100, in the flattened batch. On a device this waits for it."""
    return (labels.flatten() != -100).nonzero().squeeze(1)


@contextmanager
def head_only_at(model: PreTrainedModel, places: torch.Tensor) -> Iterator[None]:
    """
    Within this context the head of a masked language model gets the tokens at `places` only.

    The vocabulary's logits of all tokens are most of the work and of the memory of a small model, and six of seven of
    them are thrown away: heads work on each token alone. Hidden states that the model returns are those of all tokens.

    Args:
        model: as `AutoModelForMaskedLM` gives it, whose head reads the first output of its `base_model`. One that is
            built otherwise is left as it is: its logits are then those of all tokens.
        places (`torch.LongTensor` of shape `(m,)`): in the flattened batch `(rows * length,)`; logits `(1, m, v)`.
    """
    if model.base_model is model:
        yield
        return

    def select(module: nn.Module, args: tuple, output: Any) -> None:
        if isinstance(output, ModelOutput) and output[0].dim() == 3:
            name = next(iter(output))
            output[name] = output[name].flatten(0, 1)[places].unsqueeze(0)

    handle = model.base_model.register_forward_hook(select)
    try:
        yield
    finally:
        handle.remove()
