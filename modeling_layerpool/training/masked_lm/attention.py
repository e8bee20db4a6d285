"""Attention that stays inside the texts of a block."""

from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils.generic import is_flash_attention_requested

from ...common.errors import InputError
from ...common.positions import first_position
from ...models.modeling_layerpool_packing import packed_attention_mask


def attention_inside(model: PreTrainedModel, sequence_ids: torch.Tensor) -> Any:
    """
    The `attention_mask` with which a token of a packed batch attends to the tokens of its own sequence only.

    Args:
        model: a masked language model, whose attention implementation decides the kind of mask.
        sequence_ids (`torch.LongTensor` of shape `(rows, length)`): the sequence of each token, -1 for padding.

    Raises:
        InputError: the model runs flash attention, which accepts no such mask.
    """
    if is_flash_attention_requested(model.config):
        raise InputError(
            "attention inside sequences does not work with flash attention here; set attn_implementation to sdpa, or "
            "let tokens attend to the whole row"
        )
    return packed_attention_mask(model.config, model.dtype, sequence_ids)


def check_attention_inside(model: PreTrainedModel) -> None:
    """Refuse a model that accepts no such mask, or that mixes sequences in another way, such as a convolution."""
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
            f"{type(model).__name__} cannot keep attention inside sequences that share a row; let tokens attend to "
            "the whole row"
        )
