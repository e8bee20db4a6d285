"""Configuration of layer-pooled BERT."""

from transformers import BertConfig

from .configuration_layerpool import LayerPoolConfigMixin


class LayerPoolBertConfig(LayerPoolConfigMixin, BertConfig):
    r"""
    The fields of `BertConfig` and those of [`LayerPoolConfigMixin`].

    ```python
    >>> config = LayerPoolBertConfig(pooler_layers=[0, 6, -1])
    >>> model = LayerPoolBertModel(config)
    ```
    """

    model_type = "layerpool_bert"
    encoder_model_types = ("bert",)


__all__ = ["LayerPoolBertConfig"]
