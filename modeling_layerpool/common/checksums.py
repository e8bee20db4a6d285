"""The identity of an encoder's weights."""

import hashlib
import re

import torch
from transformers import PreTrainedModel


LAYER = re.compile(r"(?:^|\.)layers?\.(\d+)\.")


def encoder_checksum(model: PreTrainedModel, depth: int | None = None) -> str:
    """
    SHA-256 of the weights that the hidden states up to `depth` depend on, in hexadecimal.

    Args:
        model: a layer-pooled model. Its pooler and its classifier do not count.
        depth: the highest hidden state. Default: the highest one that the pooler reads.

    Two models of different depth have the same checksum if their common layers have the same weights.
    """
    depth = model.pooler.states[-1] if depth is None else depth
    digest = hashlib.sha256()
    for name, tensor in sorted(model.base_model.state_dict().items()):
        layer = LAYER.search(name)
        if layer is not None and int(layer[1]) >= depth:
            continue
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
