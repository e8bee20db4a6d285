"""DeBERTa-v2 that reads all of its layers."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from transformers import DebertaV2Model, DebertaV2PreTrainedModel

from .configuration_layerpool_deberta_v2 import LayerPoolDebertaV2Config
from .modeling_layerpool import LayerPoolClassificationMixin, LayerPoolEmbeddingMixin, LayerPoolMixin
from .modeling_layerpool_poolers import build_pooler


def _mask_of_tokens(module: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """The embeddings want to know the tokens, `(rows, length)`: those that see themselves."""
    mask = kwargs.get("mask")
    if mask is not None and mask.dim() == 3:
        kwargs["mask"] = mask.diagonal(dim1=1, dim2=2)
    return args, kwargs


class LayerPoolDebertaV2PreTrainedModel(LayerPoolMixin, DebertaV2PreTrainedModel):
    """The encoder and its pooler, which the models below share."""

    config: LayerPoolDebertaV2Config
    config_class = LayerPoolDebertaV2Config
    # Heads of plain DeBERTa-v2 checkpoints, for which there is no place here, and of the other model below.
    _keys_to_ignore_on_load_unexpected: ClassVar = [
        r"^pooler\.dense\.",
        r"^(lm|mask)_predictions\.",
        r"^cls\.",
        r"^classifier\.",
        r"position_ids$",
        r"position_embeddings",
    ]

    def __init__(self, config: LayerPoolDebertaV2Config):
        super().__init__(config)
        self.deberta = DebertaV2Model(config)
        self.pooler = build_pooler(config)
        self.deberta.embeddings.register_forward_pre_hook(_mask_of_tokens, with_kwargs=True)
        self.deberta.encoder.layer = self.read_layers(self.deberta.embeddings, self.deberta.encoder.layer)

    def packed_mask(self, sequence_ids: torch.Tensor, create_mask: Callable[..., Any]) -> torch.Tensor:
        """As this encoder wants it: `(rows, length, length)`, 1 for pairs of tokens that see each other."""
        own = sequence_ids.unsqueeze(2) == sequence_ids.unsqueeze(1)
        return (own & (sequence_ids >= 0).unsqueeze(2)).long()


class LayerPoolDebertaV2Model(LayerPoolEmbeddingMixin, LayerPoolDebertaV2PreTrainedModel):
    r"""
    DeBERTa-v2 with a pooler over its hidden states, from any DeBERTa-v2 checkpoint:

    ```python
    >>> from modeling_layerpool import LayerPoolDebertaV2Model

    >>> model = LayerPoolDebertaV2Model.from_pretrained("microsoft/deberta-v3-base", pooler_type="layer_attention")
    ```

    The encoder is kept whole and the pooler starts afresh, unless the checkpoint holds one of the same kind. Options
    of [`LayerPoolDebertaV2Config`] can be given after the checkpoint's name.
    """


class LayerPoolDebertaV2ForSequenceClassification(LayerPoolClassificationMixin, LayerPoolDebertaV2PreTrainedModel):
    r"""
    DeBERTa-v2 with a pooler over its hidden states and a classifier on it, for classification, regression and several
    labels at once:

    ```python
    >>> from modeling_layerpool import LayerPoolDebertaV2ForSequenceClassification

    >>> model = LayerPoolDebertaV2ForSequenceClassification.from_pretrained("microsoft/deberta-v3-base", num_labels=3)
    ```

    Opened like [`LayerPoolDebertaV2Model`]. The head of a plain DeBERTa-v2 classifier reads another vector: train ours
    before use. `ignore_mismatched_sizes=True` starts it afresh where the number of labels differs.
    """


__all__ = ["LayerPoolDebertaV2ForSequenceClassification", "LayerPoolDebertaV2Model"]
