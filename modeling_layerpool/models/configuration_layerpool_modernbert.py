"""Configuration of layer-pooled ModernBERT."""

from transformers import ModernBertConfig

from .configuration_layerpool import LayerPoolConfigMixin


class LayerPoolModernBertConfig(LayerPoolConfigMixin, ModernBertConfig):
    r"""
    The fields of `ModernBertConfig` and those of [`LayerPoolConfigMixin`].

    ```python
    >>> config = LayerPoolModernBertConfig(pooler_layers=[0, 6, -1])
    >>> model = LayerPoolModernBertModel(config)
    ```
    """

    model_type = "layerpool_modernbert"
    encoder_model_types = ("modernbert",)


__all__ = ["LayerPoolModernBertConfig"]
