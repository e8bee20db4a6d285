"""Configuration of layer-pooled DeBERTa-v2."""

from transformers import DebertaV2Config

from .configuration_layerpool import LayerPoolConfigMixin


class LayerPoolDebertaV2Config(LayerPoolConfigMixin, DebertaV2Config):
    r"""
    The fields of `DebertaV2Config` and those of [`LayerPoolConfigMixin`].

    ```python
    >>> config = LayerPoolDebertaV2Config(pooler_layers=[0, 6, -1])
    >>> model = LayerPoolDebertaV2Model(config)
    ```
    """

    model_type = "layerpool_deberta_v2"
    encoder_model_types = ("deberta-v2",)

    def validate_architecture(self) -> None:
        """Also refuse options that this encoder does not support. Raises a `ValueError`."""
        super().validate_architecture()
        if self.pooled_states[-1] == 0:
            raise ValueError("pooler_layers names the embedding output only; DeBERTa-v2 computes at least a layer.")
        if getattr(self, "conv_kernel_size", 0) > 0:
            raise ValueError(
                f"conv_kernel_size={self.conv_kernel_size}: a convolution over neighbouring tokens is not supported: "
                "packed sentences would mix."
            )


__all__ = ["LayerPoolDebertaV2Config"]
