"""Configuration of layer-pooled ModernBERT."""

from transformers import ModernBertConfig

from .configuration_layerpool import LayerPoolConfigMixin


class LayerPoolModernBertConfig(LayerPoolConfigMixin, ModernBertConfig):
    """The fields of `ModernBertConfig` and those of [`LayerPoolConfigMixin`]."""

    model_type = "layerpool_modernbert"
    encoder_model_types = ("modernbert",)


__all__ = ["LayerPoolModernBertConfig"]
