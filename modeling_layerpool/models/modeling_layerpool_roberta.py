"""RoBERTa and XLM-RoBERTa that read all of their layers."""

from typing import ClassVar

from transformers import RobertaModel, RobertaPreTrainedModel

from .configuration_layerpool_roberta import LayerPoolRobertaConfig
from .modeling_layerpool import (
    LayerPoolClassificationMixin,
    LayerPoolEmbeddingMixin,
    LayerPoolMixin,
    PositionsBehindPaddingMixin,
)
from .modeling_layerpool_poolers import build_pooler


class LayerPoolRobertaPreTrainedModel(PositionsBehindPaddingMixin, LayerPoolMixin, RobertaPreTrainedModel):
    """The encoder and its pooler, which the models below share."""

    config: LayerPoolRobertaConfig
    config_class = LayerPoolRobertaConfig
    # Heads of plain RoBERTa checkpoints, for which there is no place here, and of the other model below.
    _keys_to_ignore_on_load_unexpected: ClassVar = [
        r"^(roberta\.)?pooler\.dense\.",
        r"^lm_head\.",
        r"^classifier\.",
        r"position_ids$",
    ]

    def __init__(self, config: LayerPoolRobertaConfig):
        super().__init__(config)
        self.roberta = RobertaModel(config, add_pooling_layer=False)
        self.pooler = build_pooler(config)
        self.roberta.encoder.layer = self.read_layers(self.roberta.embeddings, self.roberta.encoder.layer)


class LayerPoolRobertaModel(LayerPoolEmbeddingMixin, LayerPoolRobertaPreTrainedModel):
    r"""
    RoBERTa with a pooler over its hidden states, from any RoBERTa or XLM-RoBERTa checkpoint:

    ```python
    >>> from modeling_layerpool import LayerPoolRobertaModel

    >>> model = LayerPoolRobertaModel.from_pretrained("FacebookAI/roberta-base", pooler_type="layer_attention")
    ```

    The encoder is kept whole and the pooler starts afresh, unless the checkpoint holds one of the same kind. Options
    of [`LayerPoolRobertaConfig`] can be given after the checkpoint's name.
    """


class LayerPoolRobertaForSequenceClassification(LayerPoolClassificationMixin, LayerPoolRobertaPreTrainedModel):
    r"""
    RoBERTa with a pooler over its hidden states and a classifier on it, for classification, regression and several
    labels at once:

    ```python
    >>> from modeling_layerpool import LayerPoolRobertaForSequenceClassification

    >>> model = LayerPoolRobertaForSequenceClassification.from_pretrained("FacebookAI/roberta-base", num_labels=3)
    ```

    Opened like [`LayerPoolRobertaModel`]. The head of a plain RoBERTa classifier is of another shape and is left out;
    `ignore_mismatched_sizes=True` starts one of ours afresh where the number of labels differs.
    """


__all__ = ["LayerPoolRobertaForSequenceClassification", "LayerPoolRobertaModel"]
