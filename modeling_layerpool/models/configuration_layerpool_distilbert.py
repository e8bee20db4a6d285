"""Configuration of layer-pooled DistilBERT."""

from transformers import DistilBertConfig

from .configuration_layerpool import LayerPoolConfigMixin


class LayerPoolDistilBertConfig(LayerPoolConfigMixin, DistilBertConfig):
    """The fields of `DistilBertConfig` and those of [`LayerPoolConfigMixin`]."""

    model_type = "layerpool_distilbert"
    encoder_model_types = ("distilbert",)


__all__ = ["LayerPoolDistilBertConfig"]
