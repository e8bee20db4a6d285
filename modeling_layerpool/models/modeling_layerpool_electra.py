"""ELECTRA that reads all of its layers."""

from transformers import ElectraModel, ElectraPreTrainedModel

from .configuration_layerpool_electra import LayerPoolElectraConfig
from .modeling_layerpool import LayerPoolEmbeddingMixin, LayerPoolMixin
from .modeling_layerpool_classification import LayerPoolClassificationMixin


class LayerPoolElectraPreTrainedModel(LayerPoolMixin, ElectraPreTrainedModel):
    """The encoder and its pooler, which the models below share."""

    config_class = LayerPoolElectraConfig

    def __init__(self, config: LayerPoolElectraConfig):
        super().__init__(config)
        self.electra = ElectraModel(config)
        # A narrow ELECTRA widens its embeddings before the first layer.
        embeddings = getattr(self.electra, "embeddings_project", self.electra.embeddings)
        self.electra.encoder.layer = self.add_pooler(embeddings, self.electra.encoder.layer)


class LayerPoolElectraModel(LayerPoolEmbeddingMixin, LayerPoolElectraPreTrainedModel):
    """ELECTRA with a pooler over its hidden states. Opens checkpoints such as `google/electra-small-discriminator`."""


class LayerPoolElectraForSequenceClassification(LayerPoolClassificationMixin, LayerPoolElectraPreTrainedModel):
    """ELECTRA with a pooler and a classifier on it, as documented in [`LayerPoolClassificationMixin`]."""


__all__ = ["LayerPoolElectraForSequenceClassification", "LayerPoolElectraModel"]
