"""BERT that reads all of its layers."""

from typing import ClassVar

from transformers import BertModel, BertPreTrainedModel

from .configuration_layerpool_bert import LayerPoolBertConfig
from .modeling_layerpool import LayerPoolClassificationMixin, LayerPoolEmbeddingMixin, LayerPoolMixin
from .modeling_layerpool_poolers import build_pooler


class LayerPoolBertPreTrainedModel(LayerPoolMixin, BertPreTrainedModel):
    """The encoder and its pooler, which the models below share."""

    config: LayerPoolBertConfig
    config_class = LayerPoolBertConfig
    # Heads of plain BERT checkpoints, for which there is no place here, and of the other model below.
    _keys_to_ignore_on_load_unexpected: ClassVar = [
        r"^(bert\.)?pooler\.dense\.",
        r"^cls\.",
        r"^classifier\.",
        r"position_ids$",
    ]

    def __init__(self, config: LayerPoolBertConfig):
        super().__init__(config)
        self.bert = BertModel(config, add_pooling_layer=False)
        self.pooler = build_pooler(config)
        self.bert.encoder.layer = self.read_layers(self.bert.embeddings, self.bert.encoder.layer)


class LayerPoolBertModel(LayerPoolEmbeddingMixin, LayerPoolBertPreTrainedModel):
    r"""
    BERT with a pooler over its hidden states, from any BERT checkpoint:

    ```python
    >>> from modeling_layerpool import LayerPoolBertModel

    >>> model = LayerPoolBertModel.from_pretrained("google-bert/bert-base-uncased", pooler_type="layer_attention")
    ```

    The encoder is kept whole and the pooler starts afresh, unless the checkpoint holds one of the same kind. Options
    of [`LayerPoolBertConfig`] can be given after the checkpoint's name.
    """


class LayerPoolBertForSequenceClassification(LayerPoolClassificationMixin, LayerPoolBertPreTrainedModel):
    r"""
    BERT with a pooler over its hidden states and a classifier on it, for classification, regression and several labels
    at once:

    ```python
    >>> from modeling_layerpool import LayerPoolBertForSequenceClassification

    >>> model = LayerPoolBertForSequenceClassification.from_pretrained("google-bert/bert-base-uncased", num_labels=3)
    ```

    Opened like [`LayerPoolBertModel`]. As in transformers, `classifier` is loaded from a checkpoint that has one, and
    `ignore_mismatched_sizes=True` starts it afresh where the number of labels differs. That of a plain BERT classifier
    reads another vector: train it before use.
    """


__all__ = ["LayerPoolBertForSequenceClassification", "LayerPoolBertModel"]
