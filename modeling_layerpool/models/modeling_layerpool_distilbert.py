"""DistilBERT that reads all of its layers."""

from typing import ClassVar

from transformers import DistilBertModel, DistilBertPreTrainedModel

from .configuration_layerpool_distilbert import LayerPoolDistilBertConfig
from .modeling_layerpool import LayerPoolClassificationMixin, LayerPoolEmbeddingMixin, LayerPoolMixin
from .modeling_layerpool_poolers import build_pooler


class LayerPoolDistilBertPreTrainedModel(LayerPoolMixin, DistilBertPreTrainedModel):
    """The encoder and its pooler, which the models below share."""

    config: LayerPoolDistilBertConfig
    config_class = LayerPoolDistilBertConfig
    has_token_types = False
    # Heads of plain DistilBERT checkpoints, for which there is no place here, and of the other model below.
    _keys_to_ignore_on_load_unexpected: ClassVar = [
        r"^vocab_(transform|layer_norm|projector)\.",
        r"^(pre_)?classifier\.",
    ]

    def __init__(self, config: LayerPoolDistilBertConfig):
        super().__init__(config)
        self.distilbert = DistilBertModel(config)
        self.pooler = build_pooler(config)
        self.distilbert.transformer.layer = self.read_layers(
            self.distilbert.embeddings, self.distilbert.transformer.layer
        )


class LayerPoolDistilBertModel(LayerPoolEmbeddingMixin, LayerPoolDistilBertPreTrainedModel):
    r"""
    DistilBERT with a pooler over its hidden states, from any DistilBERT checkpoint:

    ```python
    >>> from modeling_layerpool import LayerPoolDistilBertModel

    >>> model = LayerPoolDistilBertModel.from_pretrained(
    ...     "distilbert/distilbert-base-uncased", pooler_type="layer_attention"
    ... )
    ```

    The encoder is kept whole and the pooler starts afresh, unless the checkpoint holds one of the same kind. Options
    of [`LayerPoolDistilBertConfig`] can be given after the checkpoint's name.
    """


class LayerPoolDistilBertForSequenceClassification(LayerPoolClassificationMixin, LayerPoolDistilBertPreTrainedModel):
    r"""
    DistilBERT with a pooler over its hidden states and a classifier on it, for classification, regression and several
    labels at once:

    ```python
    >>> from modeling_layerpool import LayerPoolDistilBertForSequenceClassification

    >>> model = LayerPoolDistilBertForSequenceClassification.from_pretrained(
    ...     "distilbert/distilbert-base-uncased", num_labels=3
    ... )
    ```

    Opened like [`LayerPoolDistilBertModel`]. The head of a plain DistilBERT classifier reads another vector: train
    ours before use. `ignore_mismatched_sizes=True` starts it afresh where the number of labels differs.
    """


__all__ = ["LayerPoolDistilBertForSequenceClassification", "LayerPoolDistilBertModel"]
