"""Configuration of layer-pooled DistilBERT."""

from transformers import DistilBertConfig

from .configuration_layerpool import LayerPoolConfigMixin


class LayerPoolDistilBertConfig(LayerPoolConfigMixin, DistilBertConfig):
    r"""
    The fields of `DistilBertConfig` and those of [`LayerPoolConfigMixin`].

    ```python
    >>> config = LayerPoolDistilBertConfig(pooler_layers=[0, 6, -1])
    >>> model = LayerPoolDistilBertModel(config)
    ```
    """

    model_type = "layerpool_distilbert"
    encoder_model_types = ("distilbert",)


__all__ = ["LayerPoolDistilBertConfig"]
