"""MPNet that reads all of its layers."""

from typing import ClassVar

from transformers import MPNetModel, MPNetPreTrainedModel

from .configuration_layerpool_mpnet import LayerPoolMPNetConfig
from .modeling_layerpool import (
    LayerPoolClassificationMixin,
    LayerPoolEmbeddingMixin,
    LayerPoolMixin,
    PositionsBehindPaddingMixin,
)
from .modeling_layerpool_poolers import build_pooler


class LayerPoolMPNetPreTrainedModel(PositionsBehindPaddingMixin, LayerPoolMixin, MPNetPreTrainedModel):
    """The encoder and its pooler, which the models below share."""

    config: LayerPoolMPNetConfig
    config_class = LayerPoolMPNetConfig
    has_token_types = False
    # Heads of plain MPNet checkpoints, for which there is no place here, and of the other model below.
    _keys_to_ignore_on_load_unexpected: ClassVar = [
        r"^(mpnet\.)?pooler\.dense\.",
        r"^lm_head\.",
        r"^classifier\.",
        r"position_ids$",
    ]

    def __init__(self, config: LayerPoolMPNetConfig):
        super().__init__(config)
        self.mpnet = MPNetModel(config, add_pooling_layer=False)
        self.pooler = build_pooler(config)
        self.mpnet.encoder.layer = self.read_layers(self.mpnet.embeddings, self.mpnet.encoder.layer)

    @property
    def padding_position(self) -> int:
        return self.mpnet.embeddings.padding_idx


class LayerPoolMPNetModel(LayerPoolEmbeddingMixin, LayerPoolMPNetPreTrainedModel):
    r"""
    MPNet with a pooler over its hidden states, from any MPNet checkpoint:

    ```python
    >>> from modeling_layerpool import LayerPoolMPNetModel

    >>> model = LayerPoolMPNetModel.from_pretrained("microsoft/mpnet-base", pooler_type="layer_attention")
    ```

    The encoder is kept whole and the pooler starts afresh, unless the checkpoint holds one of the same kind. Options
    of [`LayerPoolMPNetConfig`] can be given after the checkpoint's name.
    """


class LayerPoolMPNetForSequenceClassification(LayerPoolClassificationMixin, LayerPoolMPNetPreTrainedModel):
    r"""
    MPNet with a pooler over its hidden states and a classifier on it, for classification, regression and several
    labels at once:

    ```python
    >>> from modeling_layerpool import LayerPoolMPNetForSequenceClassification

    >>> model = LayerPoolMPNetForSequenceClassification.from_pretrained("microsoft/mpnet-base", num_labels=3)
    ```

    Opened like [`LayerPoolMPNetModel`]. The head of a plain MPNet classifier reads another vector: train ours before
    use. `ignore_mismatched_sizes=True` starts it afresh where the number of labels differs.
    """


__all__ = ["LayerPoolMPNetForSequenceClassification", "LayerPoolMPNetModel"]
