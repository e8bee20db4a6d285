"""Configuration of layer-pooled MPNet."""

from transformers import MPNetConfig

from .configuration_layerpool import LayerPoolConfigMixin


class LayerPoolMPNetConfig(LayerPoolConfigMixin, MPNetConfig):
    r"""
    The fields of `MPNetConfig` and those of [`LayerPoolConfigMixin`].

    ```python
    >>> config = LayerPoolMPNetConfig(pooler_layers=[0, 6, -1])
    >>> model = LayerPoolMPNetModel(config)
    ```
    """

    model_type = "layerpool_mpnet"
    encoder_model_types = ("mpnet",)


__all__ = ["LayerPoolMPNetConfig"]
