"""ModernBERT that reads all of its layers."""

from torch import nn
from transformers import ModernBertModel, ModernBertPreTrainedModel

from .configuration_layerpool_modernbert import LayerPoolModernBertConfig
from .modeling_layerpool import LayerPoolEmbeddingMixin, LayerPoolMixin
from .modeling_layerpool_classification import LayerPoolClassificationMixin


class LayerPoolModernBertPreTrainedModel(LayerPoolMixin, ModernBertPreTrainedModel):
    """The encoder and its pooler, which the models below share."""

    config_class = LayerPoolModernBertConfig
    has_token_types = False

    def __init__(self, config: LayerPoolModernBertConfig):
        super().__init__(config)
        self.model = ModernBertModel(config)
        self.model.layers = self.add_pooler(self.model.embeddings, self.model.layers, self.model.final_norm)
        if len(self.model.layers) < config.num_hidden_layers:
            # The norm belongs to the last layer only.
            self.model.final_norm = nn.Identity()


class LayerPoolModernBertModel(LayerPoolEmbeddingMixin, LayerPoolModernBertPreTrainedModel):
    """ModernBERT with a pooler over its hidden states. Opens checkpoints such as `answerdotai/ModernBERT-base`."""


class LayerPoolModernBertForSequenceClassification(LayerPoolClassificationMixin, LayerPoolModernBertPreTrainedModel):
    """ModernBERT with a pooler and a classifier on it, as documented in [`LayerPoolClassificationMixin`]."""


__all__ = ["LayerPoolModernBertForSequenceClassification", "LayerPoolModernBertModel"]
