"""ModernBERT that reads all of its layers."""

from torch import nn
from transformers import ModernBertModel, ModernBertPreTrainedModel

from .configuration_layerpool_modernbert import LayerPoolModernBertConfig
from .modeling_layerpool import LayerPoolEmbeddingMixin, LayerPoolMixin
from .modeling_layerpool_classification import LayerPoolClassificationMixin


class LayerPoolModernBertPreTrainedModel(LayerPoolMixin, ModernBertPreTrainedModel):
    """The encoder and its pooler, which the models below share."""

    config: LayerPoolModernBertConfig
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
    r"""
    ModernBERT with a pooler over its hidden states, from any ModernBERT checkpoint:

    ```python
    >>> from modeling_layerpool import LayerPoolModernBertModel

    >>> model = LayerPoolModernBertModel.from_pretrained("answerdotai/ModernBERT-base", pooler_type="mean")
    ```

    A checkpoint without a pooler of that type gets a new one. Keyword arguments change options of
    [`LayerPoolModernBertConfig`].
    """


class LayerPoolModernBertForSequenceClassification(LayerPoolClassificationMixin, LayerPoolModernBertPreTrainedModel):
    r"""
    ModernBERT with a pooler and a classifier, for single-label, multi-label and regression tasks:

    ```python
    >>> from modeling_layerpool import LayerPoolModernBertForSequenceClassification

    >>> model = LayerPoolModernBertForSequenceClassification.from_pretrained(
    ...     "answerdotai/ModernBERT-base", num_labels=3
    ... )
    ```

    The classifier of a plain ModernBERT checkpoint reads another vector: train the classifier before use.
    `ignore_mismatched_sizes=True` starts a new one if the number of labels differs.
    """


__all__ = ["LayerPoolModernBertForSequenceClassification", "LayerPoolModernBertModel"]
