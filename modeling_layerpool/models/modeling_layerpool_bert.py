"""BERT that reads all of its layers."""

from transformers import BertModel, BertPreTrainedModel

from .configuration_layerpool_bert import LayerPoolBertConfig
from .modeling_layerpool import LayerPoolEmbeddingMixin, LayerPoolMixin
from .modeling_layerpool_classification import LayerPoolClassificationMixin


class LayerPoolBertPreTrainedModel(LayerPoolMixin, BertPreTrainedModel):
    """The encoder and its pooler, which the models below share."""

    config_class = LayerPoolBertConfig

    def __init__(self, config: LayerPoolBertConfig):
        super().__init__(config)
        self.bert = BertModel(config, add_pooling_layer=False)
        self.bert.encoder.layer = self.add_pooler(self.bert.embeddings, self.bert.encoder.layer)


class LayerPoolBertModel(LayerPoolEmbeddingMixin, LayerPoolBertPreTrainedModel):
    r"""
    BERT with a pooler over its hidden states, from any BERT checkpoint:

    ```python
    >>> model = LayerPoolBertModel.from_pretrained(
    ...     "google-bert/bert-base-uncased", pooler_type="mean"
    ... )
    ```

    Keyword arguments change options of [`LayerPoolBertConfig`].
    """


class LayerPoolBertForSequenceClassification(LayerPoolClassificationMixin, LayerPoolBertPreTrainedModel):
    """BERT with a pooler and a classifier on it, as documented in [`LayerPoolClassificationMixin`]."""


__all__ = ["LayerPoolBertForSequenceClassification", "LayerPoolBertModel"]
