"""Configuration of layer-pooled DistilBERT."""

from transformers import DistilBertConfig

from .configuration_layerpool import LayerPoolConfigMixin


class LayerPoolDistilBertConfig(LayerPoolConfigMixin, DistilBertConfig):
    r"""
    Configuration of a [`LayerPoolDistilBertModel`] or [`LayerPoolDistilBertForSequenceClassification`]: the fields of
    `DistilBertConfig`, and those of [`LayerPoolConfigMixin`].

    ```python
    >>> from modeling_layerpool import LayerPoolDistilBertConfig, LayerPoolDistilBertModel

    >>> config = LayerPoolDistilBertConfig(pooler_layers=[0, 3, -1])
    >>> model = LayerPoolDistilBertModel(config)
    ```"""

    model_type = "layerpool_distilbert"
    encoder_model_types = ("distilbert",)


__all__ = ["LayerPoolDistilBertConfig"]
