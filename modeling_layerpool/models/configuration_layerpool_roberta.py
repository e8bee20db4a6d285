"""Configuration of layer-pooled RoBERTa."""

from transformers import RobertaConfig

from .configuration_layerpool import LayerPoolConfigMixin


class LayerPoolRobertaConfig(LayerPoolConfigMixin, RobertaConfig):
    """
    The fields of `RobertaConfig` and those of [`LayerPoolConfigMixin`]. XLM-RoBERTa is the same network with
    another vocabulary.
    """

    model_type = "layerpool_roberta"
    encoder_model_types = ("roberta", "xlm-roberta")


__all__ = ["LayerPoolRobertaConfig"]
