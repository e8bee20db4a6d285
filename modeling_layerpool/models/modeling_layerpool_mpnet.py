"""MPNet that reads all of its layers."""

from transformers import MPNetModel, MPNetPreTrainedModel

from .configuration_layerpool_mpnet import LayerPoolMPNetConfig
from .modeling_layerpool import LayerPoolEmbeddingMixin, LayerPoolMixin
from .modeling_layerpool_classification import LayerPoolClassificationMixin
from .modeling_layerpool_packing import PositionsAfterPaddingMixin


class LayerPoolMPNetPreTrainedModel(PositionsAfterPaddingMixin, LayerPoolMixin, MPNetPreTrainedModel):
    """The encoder and its pooler, which the models below share."""

    config_class = LayerPoolMPNetConfig
    has_token_types = False

    def __init__(self, config: LayerPoolMPNetConfig):
        super().__init__(config)
        self.mpnet = MPNetModel(config, add_pooling_layer=False)
        self.mpnet.encoder.layer = self.add_pooler(self.mpnet.embeddings, self.mpnet.encoder.layer)

    @property
    def padding_position(self) -> int:
        return self.mpnet.embeddings.padding_idx  # fixed, whatever pad_token_id is


class LayerPoolMPNetModel(LayerPoolEmbeddingMixin, LayerPoolMPNetPreTrainedModel):
    """MPNet with a pooler over its hidden states. Opens checkpoints such as `microsoft/mpnet-base`."""


class LayerPoolMPNetForSequenceClassification(LayerPoolClassificationMixin, LayerPoolMPNetPreTrainedModel):
    """MPNet with a pooler and a classifier on it, as documented in [`LayerPoolClassificationMixin`]."""


__all__ = ["LayerPoolMPNetForSequenceClassification", "LayerPoolMPNetModel"]
