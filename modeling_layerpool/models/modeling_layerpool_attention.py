"""
Attention that stays inside the sentences of packed input: by a mask, or on a GPU by a kernel for sequences of variable
length, to which the rows are one flat row with the borders of its sentences.
"""

import importlib
import inspect
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import (
    create_bidirectional_mask,
    create_bidirectional_sliding_window_mask,
    sdpa_mask,
)
from transformers.utils import is_flash_attn_2_available
from transformers.utils.generic import is_flash_attention_requested


# An attention implementation of transformers: sdpa, but a kernel for packed input wherever one computes the same.
VARLEN = "layerpool_varlen"
DEVICE = "cuda"
DTYPES = (torch.bfloat16, torch.float16)
LARGEST_HEAD = 256


class VarlenKernel(NamedTuple):
    """
    Attention inside the sequences of one flat row.

    Args:
        name: for the user.
        compute: from queries, keys and values `(tokens, heads, size)`, the borders of the sequences in int32, the
            longest possible sequence, the dropout probability, the scale of the logits and the window `(left, right)`,
            computes the output `(tokens, heads, size)`.
        has_dropout: whether it computes dropout of the attention weights.
    """

    name: str
    compute: Callable[..., torch.Tensor]
    has_dropout: bool


@lru_cache
def installed_kernel() -> VarlenKernel | None:
    """flash-attn's kernel if it is installed, else that of torch 2.12 and newer, else None."""
    if is_flash_attn_2_available():
        # Not a statement: a checkpoint that carries this file must open without flash-attn.
        attend_to_flat_row = importlib.import_module("flash_attn").flash_attn_varlen_func

        def flash_attn(query, key, value, borders, longest, dropout, scale, window):
            return attend_to_flat_row(
                *(query, key, value, borders, borders, longest, longest),
                dropout_p=dropout,
                softmax_scale=scale,
                window_size=window,
            )

        return VarlenKernel("flash-attn", flash_attn, has_dropout=True)
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    if "window_size" not in inspect.signature(varlen_attn).parameters:  # the first releases had no windows, no scale
        return None

    def torch_varlen(query, key, value, borders, longest, dropout, scale, window):
        return varlen_attn(query, key, value, borders, borders, longest, longest, scale=scale, window_size=window)

    return VarlenKernel("varlen_attn of torch", torch_varlen, has_dropout=False)


def attention_dropout(config: Any) -> tuple[str, float]:
    """The name that an encoder's configuration has for the dropout of its attention weights, and its probability."""
    names = ("attention_probs_dropout_prob", "attention_probs_dropout", "attention_dropout")
    return next(((name, rate) for name in names if (rate := getattr(config, name, None)) is not None), (names[0], 0.0))


def why_masked(config: Any, device: torch.device, dtype: torch.dtype, training: bool) -> str | None:
    """
    Why packed input needs a mask, or None if the installed kernel computes the same without one.

    Args:
        config: configuration of the encoder.
        device: device of the input.
        dtype: dtype of queries, keys and values.
        training: whether there is dropout.
    """
    if config._attn_implementation != VARLEN:
        return f"attn_implementation is {config._attn_implementation}"
    if device.type != DEVICE:
        return f"a kernel needs {DEVICE}, and the input is on {device.type}"
    if dtype not in DTYPES:
        return f"a kernel needs bfloat16 or float16, and this is {str(dtype).removeprefix('torch.')}"
    size = config.hidden_size // config.num_attention_heads
    if size % 8 or size > LARGEST_HEAD:
        return f"a kernel needs heads of a multiple of 8, at most {LARGEST_HEAD}, and these are {size} wide"
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        return "a kernel needs an Ampere GPU or a newer one"
    kernel = installed_kernel()
    if kernel is None:
        return "there is no kernel: install flash-attn, or torch 2.12 or newer"
    name, dropout = attention_dropout(config)
    if training and dropout > 0 and not kernel.has_dropout:
        return f"{kernel.name} has no dropout, and {name} is {dropout:g}"
    return None


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """
    The attention function of [`VARLEN`], with the arguments of those of transformers. Only input for which there was
    no reason for a mask comes with borders.
    """
    if cu_seq_lens_q is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    kernel = installed_kernel()
    if dropout > 0 and not kernel.has_dropout:
        raise ValueError(f"The configuration has no attention dropout, but the layers were built with {dropout}.")
    # Rotations may leave queries and keys in float32 under autocast.
    flat = (states.to(value.dtype).squeeze(0).transpose(0, 1) for states in (query, key, value))
    window = (-1, -1) if sliding_window is None else (sliding_window - 1, sliding_window - 1)
    output = kernel.compute(*flat, cu_seq_lens_q, max_length_q, dropout, scaling, window)
    return output.unsqueeze(0), None


AttentionInterface.register(VARLEN, attend)
AttentionMaskInterface.register(VARLEN, sdpa_mask)


def describe_attention(config: Any, device: torch.device, dtype: torch.dtype) -> str:
    """How attention stays inside the sentences of packed input in training, in words; [`why_masked`] has the types."""
    implementation = config._attn_implementation
    if is_flash_attention_requested(config):
        return f"{implementation}, without a mask"
    if implementation != VARLEN:
        return f"{implementation} with a mask"
    reason = why_masked(config, device, dtype, training=True)
    return f"{installed_kernel().name}, without a mask" if reason is None else f"sdpa with a mask ({reason})"


class VarlenMixin:
    """A model that can attend by [`VARLEN`]. Comes before the class of the encoder."""

    def __init__(self, config: Any, *args: Any, **kwargs: Any):
        # transformers has no public name for it, and fills it in for a model that was given none.
        may_choose = config._attn_implementation is None
        super().__init__(config, *args, **kwargs)
        self._may_choose_attention = may_choose

    def choose_attention(self, device: torch.device) -> None:
        """
        Once, before packed input on a GPU: where transformers chose sdpa, attend by a kernel for sequences of variable
        length whenever one computes the same, and else by sdpa with a mask. An implementation that the user named when
        the model was opened, sdpa too, stays.
        """
        if device.type != "cuda" or not self._may_choose_attention:
            return
        self._may_choose_attention = False
        if self.config._attn_implementation == "sdpa" and self._supports_flash_attn:
            self.set_attn_implementation(VARLEN)

    def needs_mask(self, device: torch.device) -> bool:
        """Whether packed input on a device needs a mask now: in this mode, and under autocast or not."""
        kind, dtype = device.type, self.dtype
        if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
        return why_masked(self.config, device, dtype, self.training) is not None


def has_windows(config: Any) -> bool:
    """Whether some layers of an encoder attend to near tokens only."""
    return "sliding_attention" in (getattr(config, "layer_types", None) or ())


def packed_attention_mask(config: Any, dtype: torch.dtype, sequence_ids: torch.Tensor) -> Any:
    """
    The `attention_mask` with which a token of packed input attends to the tokens of its own sentence only.

    Args:
        config: configuration of the encoder. The kind of mask depends on its attention implementation, and an encoder
            with sliding windows (ModernBERT) gets a mask for each kind of its layers.
        dtype: dtype of the hidden states.
        sequence_ids: the sentence of each token `(rows, length)`, -1 for padding.
    """
    options = {
        "config": config,
        # transformers reads only shape, dtype and device of the embeddings.
        "inputs_embeds": torch.empty((), dtype=dtype, device=sequence_ids.device).expand(*sequence_ids.shape, 1),
        "attention_mask": None,
        "and_mask_function": lambda row, head, query, key: sequence_ids[row, query] == sequence_ids[row, key],
    }
    mask = create_bidirectional_mask(**options)
    if not has_windows(config):
        return mask
    return {"full_attention": mask, "sliding_attention": create_bidirectional_sliding_window_mask(**options)}
