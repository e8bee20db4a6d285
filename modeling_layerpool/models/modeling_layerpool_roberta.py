"""RoBERTa and XLM-RoBERTa that read all of their layers."""

from transformers import RobertaModel, RobertaPreTrainedModel

from .configuration_layerpool_roberta import LayerPoolRobertaConfig
from .modeling_layerpool import LayerPoolEmbeddingMixin, LayerPoolMixin
from .modeling_layerpool_classification import LayerPoolClassificationMixin
from .modeling_layerpool_packing import PositionsAfterPaddingMixin


class LayerPoolRobertaPreTrainedModel(PositionsAfterPaddingMixin, LayerPoolMixin, RobertaPreTrainedModel):
    """The encoder and its pooler, which the models below share."""

    config_class = LayerPoolRobertaConfig

    def __init__(self, config: LayerPoolRobertaConfig):
        super().__init__(config)
        self.roberta = RobertaModel(config, add_pooling_layer=False)
        self.roberta.encoder.layer = self.add_pooler(self.roberta.embeddings, self.roberta.encoder.layer)


class LayerPoolRobertaModel(LayerPoolEmbeddingMixin, LayerPoolRobertaPreTrainedModel):
    """
    RoBERTa with a pooler over its hidden states. Opens checkpoints such as `FacebookAI/roberta-base` and
    `FacebookAI/xlm-roberta-base`.
    """


class LayerPoolRobertaForSequenceClassification(LayerPoolClassificationMixin, LayerPoolRobertaPreTrainedModel):
    """RoBERTa with a pooler and a classifier on it, as documented in [`LayerPoolClassificationMixin`]."""


__all__ = ["LayerPoolRobertaForSequenceClassification", "LayerPoolRobertaModel"]
