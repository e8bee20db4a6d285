"""The identity of an encoder's weights."""

import hashlib
import re

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
    digest = hashlib.sha256()
    for name, tensor in sorted(model.base_model.state_dict().items()):
        layer = LAYER.search(name)
        if (layer is not None and int(layer[1]) >= depth) or (name in OF_LAST_STATE and not is_whole):
            continue
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
