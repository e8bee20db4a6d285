"""The weight that a layer-pooled model gives to each hidden state, for each text.

k: texts, n: hidden states read.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..common.errors import InputError
from ..models.modeling_layerpool_poolers import POOLERS
from .encoders import batches_by_length


# The greatest length of each range of `average_by_length`, in tokens. A last range holds the longer texts.
LENGTH_EDGES = (8, 16, 32, 64, 128, 256)


def weighs_layers(model: PreTrainedModel) -> bool:
    """Whether this is a layer-pooled model whose pooler learned to weigh hidden states, two of them at least."""
    pooler = POOLERS.get(getattr(model.config, "pooler_type", None))
    return pooler is not None and pooler.weighting != "fixed" and len(model.config.pooled_states) > 1


def layer_weights(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str] | Sequence[tuple[str, str]],
    *,
    max_tokens_per_batch: int = 8192,
) -> tuple[np.ndarray, np.ndarray]:
    """The weight of each hidden state for each text, in evaluation mode and without gradient.

    Args:
        model: a layer-pooled model of this package, an encoder or a classifier. Its mode is restored.
        tokenizer: the tokenizer of the same checkpoint. A text is truncated to its `model_max_length` and to the
            model's positions.
        texts: k texts, or k pairs of texts for a classifier of pairs.
        max_tokens_per_batch: tokens computed at once, padding included. A longer text is a batch of its own.

    Returns:
        `(weights, lengths)`. `weights` is (k, n), float32: the weight of each state read (`model.pooler.states`),
        in ascending order and averaged over the queries; a row sums to 1. `lengths` is (k,): tokens, special ones
        included.

    Raises:
        InputError: the model has no pooler over its hidden states, or there are no texts.
    """
    states = getattr(getattr(model, "pooler", None), "states", None)
    if states is None:
        raise InputError(f"{type(model).__name__} has no pooler over its hidden states, and so no weights of them")
    if len(texts) == 0:
        raise InputError("no texts, and so no weights of hidden states")
    limit = min(tokenizer.model_max_length, model.max_tokens)
    tokens = tokenizer(list(texts), truncation=True, max_length=limit, return_attention_mask=True)
    lengths = np.array([len(ids) for ids in tokens["input_ids"]])
    weights = np.zeros((len(lengths), len(states)), dtype=np.float32)
    was_training = model.training
    model.eval()
    try:
        for batch in batches_by_length(lengths, max_tokens_per_batch):
            columns = {name: [values[index] for index in batch] for name, values in tokens.items()}
            inputs = tokenizer.pad(columns, padding_side="right", return_tensors="pt").to(model.device)
            with torch.inference_mode():
                # A classifier's own output does not hold the weights.
                output = model.pool(**inputs, output_layer_attentions=True)
            weights[batch] = output.layer_attentions.float().cpu().numpy()
    finally:
        model.train(was_training)
    return weights, lengths


def average_by_length(weights: np.ndarray, lengths: np.ndarray) -> dict[str, np.ndarray]:
    """Mean weights of the texts in each range of lengths.

    Args:
        weights, lengths: (k, n) and (k,), as [`layer_weights`] returns them.

    Returns:
        `{"9 to 16 (120 texts)": (n,), ...}`, the shortest first. Ranges without texts are left out.
    """
    names = [f"up to {LENGTH_EDGES[0]}"]
    names += [f"{shorter + 1} to {longest}" for shorter, longest in pairwise(LENGTH_EDGES)]
    names += [f"over {LENGTH_EDGES[-1]}"]
    ranges = np.searchsorted(LENGTH_EDGES, lengths)
    averages = {}
    for index, name in enumerate(names):
        members = weights[ranges == index]
        if len(members):
            averages[f"{name} ({len(members):,} text{'s' if len(members) > 1 else ''})"] = members.mean(axis=0)
    return averages
