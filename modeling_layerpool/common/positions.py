"""The positions that an encoder has, read from its layers where its configuration does not tell."""

import math

import torch


def _position_embedding(model: torch.nn.Module) -> torch.nn.Embedding | None:
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding):
            return module
    return None


def first_position(model: torch.nn.Module) -> int:
    """
    The position of a sequence's first token: 0, but RoBERTa and similar models count from after the padding index.
    """
    padding = getattr(_position_embedding(model), "padding_idx", None)
    return 0 if padding is None else padding + 1


def position_limit(model: torch.nn.Module) -> float:
    """How many tokens a model has positions for; infinity for a model without a limit."""
    embedding = _position_embedding(model)
    if embedding is not None:
        return embedding.num_embeddings - first_position(model)
    return getattr(getattr(model, "config", None), "max_position_embeddings", None) or math.inf
