"""Configuration of layer-pooled MPNet."""

from transformers import MPNetConfig

from .configuration_layerpool import LayerPoolConfigMixin


class LayerPoolMPNetConfig(LayerPoolConfigMixin, MPNetConfig):
    """The fields of `MPNetConfig` and those of [`LayerPoolConfigMixin`]."""

    model_type = "layerpool_mpnet"
    encoder_model_types = ("mpnet",)


__all__ = ["LayerPoolMPNetConfig"]
