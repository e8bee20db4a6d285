"""DistilBERT that reads all of its layers."""

from transformers import DistilBertModel, DistilBertPreTrainedModel

from .configuration_layerpool_distilbert import LayerPoolDistilBertConfig
from .modeling_layerpool import LayerPoolEmbeddingMixin, LayerPoolMixin
from .modeling_layerpool_classification import LayerPoolClassificationMixin


class LayerPoolDistilBertPreTrainedModel(LayerPoolMixin, DistilBertPreTrainedModel):
    """The encoder and its pooler, which the models below share."""

    config_class = LayerPoolDistilBertConfig
    has_token_types = False

    def __init__(self, config: LayerPoolDistilBertConfig):
        super().__init__(config)
        self.distilbert = DistilBertModel(config)
        transformer = self.distilbert.transformer
        transformer.layer = self.add_pooler(self.distilbert.embeddings, transformer.layer)


class LayerPoolDistilBertModel(LayerPoolEmbeddingMixin, LayerPoolDistilBertPreTrainedModel):
    """DistilBERT with a pooler over its hidden states. Opens `distilbert/distilbert-base-uncased` and others."""


class LayerPoolDistilBertForSequenceClassification(LayerPoolClassificationMixin, LayerPoolDistilBertPreTrainedModel):
    """DistilBERT with a pooler and a classifier on it, as documented in [`LayerPoolClassificationMixin`]."""


__all__ = ["LayerPoolDistilBertForSequenceClassification", "LayerPoolDistilBertModel"]
