"""The identity of weights and texts."""

import hashlib
import json
import re
from collections.abc import Mapping

import torch
from transformers import PreTrainedModel


LAYER = re.compile(r"(?:^|\.)layers?\.(\d+)\.")

# Weights that only the last hidden state of the whole encoder depends on: those of ModernBERT's last norm.
OF_LAST_STATE = ("final_norm.weight", "final_norm.bias")


def encoder_checksum(model: PreTrainedModel, depth: int | None = None) -> str:
    """
    SHA-256 of the weights that the hidden states up to `depth` depend on, in hexadecimal.

    Args:
        model: a layer-pooled model. Its pooler and its classifier do not count.
        depth: the highest hidden state. Default: the highest one that the pooler reads.

    Two models of different depth have the same checksum if their common layers have the same weights.
    """
    depth = model.pooler.states[-1] if depth is None else depth
    is_whole = depth == model.config.num_hidden_layers
    weights = {}
    for name, tensor in model.base_model.state_dict().items():
        layer = LAYER.search(name)
        if (layer is None or int(layer[1]) < depth) and (name not in OF_LAST_STATE or is_whole):
            weights[name] = tensor
    return weights_checksum(weights)


def weights_checksum(weights: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of tensors and their names, in hexadecimal."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def text_checksum(*texts: str) -> str:
    """SHA-256 of some texts and of where each ends, in hexadecimal."""
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()
