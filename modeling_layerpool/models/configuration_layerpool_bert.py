"""Configuration of layer-pooled BERT."""

from transformers import BertConfig

from .configuration_layerpool import LayerPoolConfigMixin


class LayerPoolBertConfig(LayerPoolConfigMixin, BertConfig):
    """The fields of `BertConfig` and those of [`LayerPoolConfigMixin`]."""

    model_type = "layerpool_bert"
    encoder_model_types = ("bert",)


__all__ = ["LayerPoolBertConfig"]
