"""ELECTRA that reads all of its layers."""

from typing import ClassVar

from transformers import ElectraModel, ElectraPreTrainedModel

from .configuration_layerpool_electra import LayerPoolElectraConfig
from .modeling_layerpool import LayerPoolClassificationMixin, LayerPoolEmbeddingMixin, LayerPoolMixin
from .modeling_layerpool_poolers import build_pooler


class LayerPoolElectraPreTrainedModel(LayerPoolMixin, ElectraPreTrainedModel):
    """The encoder and its pooler, which the models below share."""

    config: LayerPoolElectraConfig
    config_class = LayerPoolElectraConfig
    # Heads of plain ELECTRA checkpoints, for which there is no place here, and of the other model below.
    _keys_to_ignore_on_load_unexpected: ClassVar = [
        r"^(discriminator|generator)_predictions\.",
        r"^generator_lm_head\.",
        r"^classifier\.",
        r"position_ids$",
    ]

    def __init__(self, config: LayerPoolElectraConfig):
        super().__init__(config)
        self.electra = ElectraModel(config)
        self.pooler = build_pooler(config)
        # A narrow ELECTRA widens its embeddings before the first layer.
        embeddings = getattr(self.electra, "embeddings_project", self.electra.embeddings)
        self.electra.encoder.layer = self.read_layers(embeddings, self.electra.encoder.layer)


class LayerPoolElectraModel(LayerPoolEmbeddingMixin, LayerPoolElectraPreTrainedModel):
    r"""
    ELECTRA with a pooler over its hidden states, from any ELECTRA checkpoint:

    ```python
    >>> from modeling_layerpool import LayerPoolElectraModel

    >>> model = LayerPoolElectraModel.from_pretrained(
    ...     "google/electra-small-discriminator", pooler_type="layer_attention"
    ... )
    ```

    The encoder is kept whole and the pooler starts afresh, unless the checkpoint holds one of the same kind. Options
    of [`LayerPoolElectraConfig`] can be given after the checkpoint's name.
    """


class LayerPoolElectraForSequenceClassification(LayerPoolClassificationMixin, LayerPoolElectraPreTrainedModel):
    r"""
    ELECTRA with a pooler over its hidden states and a classifier on it, for classification, regression and several
    labels at once:

    ```python
    >>> from modeling_layerpool import LayerPoolElectraForSequenceClassification

    >>> model = LayerPoolElectraForSequenceClassification.from_pretrained(
    ...     "google/electra-small-discriminator", num_labels=3
    ... )
    ```

    Opened like [`LayerPoolElectraModel`]. The head of an plain ELECTRA classifier reads another vector: train ours
    before use. `ignore_mismatched_sizes=True` starts it afresh where the number of labels differs.
    """


__all__ = ["LayerPoolElectraForSequenceClassification", "LayerPoolElectraModel"]
