"""
Dropout on a CPU: one random draw of 64 bits decides about four elements.

torch draws a number for each element, on one core, which takes a fifth of a training step in bf16.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from .compat import attention_implementation


# Of the attention below, in the registry of transformers.
ATTENTION = "sdpa_fast_dropout"


@contextmanager
def fast_dropout(model: nn.Module) -> Iterator[None]:
    """
    Draw the masks of a model on a CPU by [`dropout_noise`] while this lasts: those of its `nn.Dropout` modules and, if
    its attention is sdpa, those of attention weights. The distribution of masks is the same, the masks are not.
    """
    modules = [module for module in model.modules() if type(module) is nn.Dropout]
    encoder = next((module for module in model.modules() if isinstance(module, PreTrainedModel)), None)
    has_sdpa = encoder is not None and attention_implementation(encoder.config) == "sdpa"
    try:
        for module in modules:
            module.__class__ = _FastDropout
        if has_sdpa:
            encoder.set_attn_implementation(ATTENTION)
        yield
    finally:
        for module in modules:
            module.__class__ = nn.Dropout
        if has_sdpa:
            encoder.set_attn_implementation("sdpa")


def dropout_noise(x: torch.Tensor, p: float) -> torch.Tensor:
    """
    The factors that dropout multiplies `x` by: 0 with probability `p`, else `1 / (1 - p)`, in the shape and dtype of
    `x`. `p` is rounded to a multiple of 2^-16 in both. Draws from the global generator of the CPU.
    """
    draws = torch.empty(math.ceil(x.numel() / 4), dtype=torch.int64).random_(-(2**63), None)
    numbers = draws.view(torch.int16)[: x.numel()].view(x.shape)  # uniform from -2^15 to 2^15 - 1
    dropped = round(p * 2**16)
    noise = torch.ge(numbers, dropped - 2**15, out=torch.empty_like(x))
    return noise.mul_(2**16 / (2**16 - dropped) if dropped < 2**16 else 0.0)


class _FastDropout(nn.Dropout):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return input * dropout_noise(input, self.p) if self.training and self.p > 0 else input


def attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """
    Attention as transformers calls it: `(b, heads, t, d)` each, and a mask that is True where attention goes, or that
    is added. With dropout torch, too, computes the whole matrix on a CPU. This is torch's own without dropout, and for
    a model with fewer heads of keys than of queries (EuroBERT), with position biases or with causal attention.
    """
    is_causal = kwargs.get("is_causal")
    is_causal = getattr(module, "is_causal", True) if is_causal is None else is_causal  # as transformers decides
    is_plain = query.shape[1] == key.shape[1] and kwargs.get("position_bias") is None
    if dropout == 0 or not is_plain or (attention_mask is None and is_causal):
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    weights = (query * scaling) @ key.transpose(2, 3)
    if attention_mask is not None:
        if attention_mask.dtype == torch.bool:
            least = torch.finfo(weights.dtype).min
            attention_mask = weights.new_zeros(attention_mask.shape).masked_fill_(~attention_mask, least)
        weights = weights + attention_mask
    weights = weights.softmax(dim=-1).to(value.dtype)
    return ((weights * dropout_noise(weights, dropout)) @ value).transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
