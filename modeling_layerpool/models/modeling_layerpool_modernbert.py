"""ModernBERT that reads all of its layers."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import ModernBertModel, ModernBertPreTrainedModel
from transformers.masking_utils import create_bidirectional_mask, create_bidirectional_sliding_window_mask

from .configuration_layerpool_modernbert import LayerPoolModernBertConfig
from .modeling_layerpool import LayerPoolClassificationMixin, LayerPoolEmbeddingMixin, LayerPoolMixin
from .modeling_layerpool_poolers import build_pooler


class LayerPoolModernBertPreTrainedModel(LayerPoolMixin, ModernBertPreTrainedModel):
    """The encoder and its pooler, which the models below share."""

    config: LayerPoolModernBertConfig
    config_class = LayerPoolModernBertConfig
    has_token_types = False
    # Heads of plain ModernBERT checkpoints, for which there is no place here, and of the other model below.
    _keys_to_ignore_on_load_unexpected: ClassVar = [
        r"^head\.",
        r"^decoder\.",
        r"^classifier\.",
    ]

    def __init__(self, config: LayerPoolModernBertConfig):
        super().__init__(config)
        self.model = ModernBertModel(config)
        self.pooler = build_pooler(config)
        self.model.layers = self.read_layers(self.model.embeddings, self.model.layers, self.model.final_norm)
        if len(self.model.layers) < config.num_hidden_layers:
            # It stands behind the last layer alone.
            self.model.final_norm = nn.Identity()
            self._keys_to_ignore_on_load_unexpected = [*self._keys_to_ignore_on_load_unexpected, r"final_norm\."]

    def packed_mask(self, sequence_ids: torch.Tensor, create_mask: Callable[..., Any]) -> dict[str, Any]:
        """One for each kind of its layers: those that see the whole sentence, and those that see a window of it."""
        return {
            "full_attention": super().packed_mask(sequence_ids, create_bidirectional_mask),
            "sliding_attention": super().packed_mask(sequence_ids, create_bidirectional_sliding_window_mask),
        }


class LayerPoolModernBertModel(LayerPoolEmbeddingMixin, LayerPoolModernBertPreTrainedModel):
    r"""
    ModernBERT with a pooler over its hidden states, from any ModernBERT checkpoint:

    ```python
    >>> from modeling_layerpool import LayerPoolModernBertModel

    >>> model = LayerPoolModernBertModel.from_pretrained("answerdotai/ModernBERT-base", pooler_type="layer_attention")
    ```

    The encoder is kept whole and the pooler starts afresh, unless the checkpoint holds one of the same kind. Options
    of [`LayerPoolModernBertConfig`] can be given after the checkpoint's name.
    """


class LayerPoolModernBertForSequenceClassification(LayerPoolClassificationMixin, LayerPoolModernBertPreTrainedModel):
    r"""
    ModernBERT with a pooler over its hidden states and a classifier on it, for classification, regression and several
    labels at once:

    ```python
    >>> from modeling_layerpool import LayerPoolModernBertForSequenceClassification

    >>> model = LayerPoolModernBertForSequenceClassification.from_pretrained(
    ...     "answerdotai/ModernBERT-base", num_labels=3
    ... )
    ```

    Opened like [`LayerPoolModernBertModel`]. The head of a plain ModernBERT classifier reads another vector: train
    ours before use. `ignore_mismatched_sizes=True` starts it afresh where the number of labels differs.
    """


__all__ = ["LayerPoolModernBertForSequenceClassification", "LayerPoolModernBertModel"]
