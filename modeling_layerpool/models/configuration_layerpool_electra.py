"""Configuration of layer-pooled ELECTRA."""

from transformers import ElectraConfig

from .configuration_layerpool import LayerPoolConfigMixin


class LayerPoolElectraConfig(LayerPoolConfigMixin, ElectraConfig):
    r"""
    The fields of `ElectraConfig` and those of [`LayerPoolConfigMixin`].

    ```python
    >>> config = LayerPoolElectraConfig(pooler_layers=[0, 6, -1])
    >>> model = LayerPoolElectraModel(config)
    ```
    """

    model_type = "layerpool_electra"
    encoder_model_types = ("electra",)


__all__ = ["LayerPoolElectraConfig"]
