"""DistilBERT that reads all of its layers."""

from transformers import DistilBertModel, DistilBertPreTrainedModel

from .configuration_layerpool_distilbert import LayerPoolDistilBertConfig
from .modeling_layerpool import LayerPoolEmbeddingMixin, LayerPoolMixin
from .modeling_layerpool_classification import LayerPoolClassificationMixin


class LayerPoolDistilBertPreTrainedModel(LayerPoolMixin, DistilBertPreTrainedModel):
    """The encoder and its pooler, which the models below share."""

    config: LayerPoolDistilBertConfig
    config_class = LayerPoolDistilBertConfig
    has_token_types = False

    def __init__(self, config: LayerPoolDistilBertConfig):
        super().__init__(config)
        self.distilbert = DistilBertModel(config)
        transformer = self.distilbert.transformer
        transformer.layer = self.add_pooler(self.distilbert.embeddings, transformer.layer)


class LayerPoolDistilBertModel(LayerPoolEmbeddingMixin, LayerPoolDistilBertPreTrainedModel):
    r"""
    DistilBERT with a pooler over its hidden states, from any DistilBERT checkpoint:

    ```python
    >>> from modeling_layerpool import LayerPoolDistilBertModel

    >>> model = LayerPoolDistilBertModel.from_pretrained("distilbert/distilbert-base-uncased", pooler_type="mean")
    ```

    A checkpoint without a pooler of that type gets a new one. Keyword arguments change options of
    [`LayerPoolDistilBertConfig`].
    """


class LayerPoolDistilBertForSequenceClassification(LayerPoolClassificationMixin, LayerPoolDistilBertPreTrainedModel):
    r"""
    DistilBERT with a pooler and a classifier, for single-label, multi-label and regression tasks:

    ```python
    >>> from modeling_layerpool import LayerPoolDistilBertForSequenceClassification

    >>> model = LayerPoolDistilBertForSequenceClassification.from_pretrained(
    ...     "distilbert/distilbert-base-uncased", num_labels=3
    ... )
    ```

    The classifier of a plain DistilBERT checkpoint reads another vector: train the classifier before use.
    `ignore_mismatched_sizes=True` starts a new one if the number of labels differs.
    """


__all__ = ["LayerPoolDistilBertForSequenceClassification", "LayerPoolDistilBertModel"]
