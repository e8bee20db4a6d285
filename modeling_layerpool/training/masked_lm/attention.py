"""Attention that stays inside the texts of a block."""

from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.masking_utils import create_bidirectional_mask, create_bidirectional_sliding_window_mask
from transformers.utils.generic import is_flash_attention_requested

from ...common.errors import InputError
from ...common.positions import first_position


def attention_inside(model: PreTrainedModel, sequence_ids: torch.Tensor) -> Any:
    """
    The `attention_mask` by which tokens of a packed batch see those of their own sequence only.

    Args:
        model: whose attention implementation decides what a mask is. One with sliding windows (ModernBERT) gets a mask
            for each kind of its layers.
        sequence_ids (`torch.LongTensor` of shape `(rows, length)`): the sequence of each token, -1 for padding.

    Raises:
        InputError: the model runs flash attention, which takes no such mask.
    """
    if is_flash_attention_requested(model.config):
        raise InputError(
            "attention inside sequences is not for flash attention here; set attn_implementation to sdpa, or let it "
            "go over the whole row"
        )
    options = {
        "config": model.config,
        # Only shape, dtype and device of the embeddings are looked at.
        "inputs_embeds": torch.empty((), dtype=model.dtype, device=sequence_ids.device).expand(*sequence_ids.shape, 1),
        "attention_mask": None,
        "and_mask_function": lambda row, head, query, key: sequence_ids[row, query] == sequence_ids[row, key],
    }
    mask = create_bidirectional_mask(**options)
    if "sliding_attention" not in (getattr(model.config, "layer_types", None) or ()):
        return mask
    return {"full_attention": mask, "sliding_attention": create_bidirectional_sliding_window_mask(**options)}


def check_attention_inside(model: PreTrainedModel) -> None:
    """Refuse a model that takes no such mask, or whose tokens see other sequences in another way (a convolution)."""
    ids = torch.tensor([[5, 6, 7, 8], [5, 6, 9, 10]], device=model.device) % model.config.vocab_size
    sequence_ids = torch.tensor([[0, 0, 1, 1]] * 2, device=model.device)
    position_ids = torch.tensor([[0, 1, 0, 1]] * 2, device=model.device) + first_position(model)
    mask = attention_inside(model, sequence_ids)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            one, other = model(input_ids=ids, position_ids=position_ids, attention_mask=mask).logits[:, :2]
        keeps_inside = torch.allclose(one, other, rtol=1e-4, atol=1e-5)
    except (RuntimeError, TypeError, ValueError):
        keeps_inside = False
    finally:
        model.train(was_training)
    if not keeps_inside:
        raise InputError(
            f"{type(model).__name__} cannot keep attention inside sequences that share a row; let it go over the "
            "whole row"
        )
