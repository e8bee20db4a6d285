"""RoBERTa and XLM-RoBERTa that read all of their layers."""

from transformers import RobertaModel, RobertaPreTrainedModel

from .configuration_layerpool_roberta import LayerPoolRobertaConfig
from .modeling_layerpool import LayerPoolEmbeddingMixin, LayerPoolMixin
from .modeling_layerpool_classification import LayerPoolClassificationMixin
from .modeling_layerpool_packing import PositionsAfterPaddingMixin


class LayerPoolRobertaPreTrainedModel(PositionsAfterPaddingMixin, LayerPoolMixin, RobertaPreTrainedModel):
    """The encoder and its pooler, which the models below share."""

    config: LayerPoolRobertaConfig
    config_class = LayerPoolRobertaConfig

    def __init__(self, config: LayerPoolRobertaConfig):
        super().__init__(config)
        self.roberta = RobertaModel(config, add_pooling_layer=False)
        self.roberta.encoder.layer = self.add_pooler(self.roberta.embeddings, self.roberta.encoder.layer)


class LayerPoolRobertaModel(LayerPoolEmbeddingMixin, LayerPoolRobertaPreTrainedModel):
    r"""
    RoBERTa with a pooler over its hidden states, from any RoBERTa or XLM-RoBERTa checkpoint:

    ```python
    >>> from modeling_layerpool import LayerPoolRobertaModel

    >>> model = LayerPoolRobertaModel.from_pretrained("FacebookAI/roberta-base", pooler_type="mean")
    ```

    A checkpoint without a pooler of that type gets a new one. Keyword arguments change options of
    [`LayerPoolRobertaConfig`].
    """


class LayerPoolRobertaForSequenceClassification(LayerPoolClassificationMixin, LayerPoolRobertaPreTrainedModel):
    r"""
    RoBERTa with a pooler and a classifier, for single-label, multi-label and regression tasks:

    ```python
    >>> from modeling_layerpool import LayerPoolRobertaForSequenceClassification

    >>> model = LayerPoolRobertaForSequenceClassification.from_pretrained(
    ...     "FacebookAI/roberta-base", num_labels=3
    ... )
    ```

    The classifier of a plain RoBERTa checkpoint reads another vector: train the classifier before use.
    `ignore_mismatched_sizes=True` starts a new one if the number of labels differs.
    """


__all__ = ["LayerPoolRobertaForSequenceClassification", "LayerPoolRobertaModel"]
