"""DeBERTa-v2 that reads all of its layers."""

from typing import Any

import torch
from transformers import DebertaV2Model, DebertaV2PreTrainedModel

from .configuration_layerpool_deberta_v2 import LayerPoolDebertaV2Config
from .modeling_layerpool import LayerPoolEmbeddingMixin, LayerPoolMixin
from .modeling_layerpool_classification import LayerPoolClassificationMixin


def _token_mask(module: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """Give the embeddings the mask of tokens `(rows, length)` that they need: tokens are those that see themselves."""
    mask = kwargs.get("mask")
    if mask is not None and mask.dim() == 3:
        kwargs["mask"] = mask.diagonal(dim1=1, dim2=2)
    return args, kwargs


class LayerPoolDebertaV2PreTrainedModel(LayerPoolMixin, DebertaV2PreTrainedModel):
    """The encoder and its pooler, which the models below share."""

    config_class = LayerPoolDebertaV2Config

    def __init__(self, config: LayerPoolDebertaV2Config):
        super().__init__(config)
        self.deberta = DebertaV2Model(config)
        self.deberta.embeddings.register_forward_pre_hook(_token_mask, with_kwargs=True)
        self.deberta.encoder.layer = self.add_pooler(self.deberta.embeddings, self.deberta.encoder.layer)

    def packed_mask(self, sequence_ids: torch.Tensor) -> torch.Tensor:
        """The kind of mask of this encoder: `(rows, length, length)`, 1 for pairs of tokens that see each other."""
        own = sequence_ids.unsqueeze(2) == sequence_ids.unsqueeze(1)
        return (own & (sequence_ids >= 0).unsqueeze(2)).long()


class LayerPoolDebertaV2Model(LayerPoolEmbeddingMixin, LayerPoolDebertaV2PreTrainedModel):
    """DeBERTa-v2 with a pooler over its hidden states. Opens checkpoints such as `microsoft/deberta-v3-base`."""


class LayerPoolDebertaV2ForSequenceClassification(LayerPoolClassificationMixin, LayerPoolDebertaV2PreTrainedModel):
    """DeBERTa-v2 with a pooler and a classifier on it, as documented in [`LayerPoolClassificationMixin`]."""


__all__ = ["LayerPoolDebertaV2ForSequenceClassification", "LayerPoolDebertaV2Model"]
