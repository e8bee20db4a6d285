"""BERT that reads all of its layers."""

from transformers import BertModel, BertPreTrainedModel

from .configuration_layerpool_bert import LayerPoolBertConfig
from .modeling_layerpool import LayerPoolEmbeddingMixin, LayerPoolMixin
from .modeling_layerpool_classification import LayerPoolClassificationMixin


class LayerPoolBertPreTrainedModel(LayerPoolMixin, BertPreTrainedModel):
    """The encoder and its pooler, which the models below share."""

    config: LayerPoolBertConfig
    config_class = LayerPoolBertConfig

    def __init__(self, config: LayerPoolBertConfig):
        super().__init__(config)
        self.bert = BertModel(config, add_pooling_layer=False)
        self.bert.encoder.layer = self.add_pooler(self.bert.embeddings, self.bert.encoder.layer)


class LayerPoolBertModel(LayerPoolEmbeddingMixin, LayerPoolBertPreTrainedModel):
    r"""
    BERT with a pooler over its hidden states, from any BERT checkpoint:

    ```python
    >>> from modeling_layerpool import LayerPoolBertModel

    >>> model = LayerPoolBertModel.from_pretrained("google-bert/bert-base-uncased", pooler_type="mean")
    ```

    A checkpoint without a pooler of that type gets a new one. Keyword arguments change options of
    [`LayerPoolBertConfig`].
    """


class LayerPoolBertForSequenceClassification(LayerPoolClassificationMixin, LayerPoolBertPreTrainedModel):
    r"""
    BERT with a pooler and a classifier, for single-label, multi-label and regression tasks:

    ```python
    >>> from modeling_layerpool import LayerPoolBertForSequenceClassification

    >>> model = LayerPoolBertForSequenceClassification.from_pretrained(
    ...     "google-bert/bert-base-uncased", num_labels=3
    ... )
    ```

    The classifier of a plain BERT checkpoint reads another vector: train the classifier before use.
    `ignore_mismatched_sizes=True` starts a new one if the number of labels differs.
    """


__all__ = ["LayerPoolBertForSequenceClassification", "LayerPoolBertModel"]
