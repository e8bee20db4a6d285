"""Configuration of layer-pooled ELECTRA."""

from transformers import ElectraConfig

from .configuration_layerpool import LayerPoolConfigMixin


class LayerPoolElectraConfig(LayerPoolConfigMixin, ElectraConfig):
    """The fields of `ElectraConfig` and those of [`LayerPoolConfigMixin`]."""

    model_type = "layerpool_electra"
    encoder_model_types = ("electra",)


__all__ = ["LayerPoolElectraConfig"]
