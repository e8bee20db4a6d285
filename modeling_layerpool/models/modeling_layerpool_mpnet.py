"""MPNet that reads all of its layers."""

from transformers import MPNetModel, MPNetPreTrainedModel

from .configuration_layerpool_mpnet import LayerPoolMPNetConfig
from .modeling_layerpool import LayerPoolEmbeddingMixin, LayerPoolMixin
from .modeling_layerpool_classification import LayerPoolClassificationMixin
from .modeling_layerpool_packing import PositionsAfterPaddingMixin


class LayerPoolMPNetPreTrainedModel(PositionsAfterPaddingMixin, LayerPoolMixin, MPNetPreTrainedModel):
    """The encoder and its pooler, which the models below share."""

    config: LayerPoolMPNetConfig
    config_class = LayerPoolMPNetConfig
    has_token_types = False

    def __init__(self, config: LayerPoolMPNetConfig):
        super().__init__(config)
        self.mpnet = MPNetModel(config, add_pooling_layer=False)
        self.mpnet.encoder.layer = self.add_pooler(self.mpnet.embeddings, self.mpnet.encoder.layer)

    @property
    def padding_position(self) -> int:
        return self.mpnet.embeddings.padding_idx


class LayerPoolMPNetModel(LayerPoolEmbeddingMixin, LayerPoolMPNetPreTrainedModel):
    r"""
    MPNet with a pooler over its hidden states, from any MPNet checkpoint:

    ```python
    >>> model = LayerPoolMPNetModel.from_pretrained("microsoft/mpnet-base", pooler_type="mean")
    ```

    Keyword arguments change options of [`LayerPoolMPNetConfig`].
    """


class LayerPoolMPNetForSequenceClassification(LayerPoolClassificationMixin, LayerPoolMPNetPreTrainedModel):
    """MPNet with a pooler and a classifier on it, as documented in [`LayerPoolClassificationMixin`]."""


__all__ = ["LayerPoolMPNetForSequenceClassification", "LayerPoolMPNetModel"]
