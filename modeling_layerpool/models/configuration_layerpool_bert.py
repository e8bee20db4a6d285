"""Configuration of layer-pooled BERT."""

from transformers import BertConfig

from .configuration_layerpool import LayerPoolConfigMixin


class LayerPoolBertConfig(LayerPoolConfigMixin, BertConfig):
    r"""
    Configuration of a [`LayerPoolBertModel`] or [`LayerPoolBertForSequenceClassification`]: the fields of
    `BertConfig`, and those of [`LayerPoolConfigMixin`].

    ```python
    >>> from modeling_layerpool import LayerPoolBertConfig, LayerPoolBertModel

    >>> config = LayerPoolBertConfig(pooler_layers=[0, 6, -1])
    >>> model = LayerPoolBertModel(config)
    ```"""

    model_type = "layerpool_bert"
    encoder_model_types = ("bert",)


__all__ = ["LayerPoolBertConfig"]
