"""Configuration of layer-pooled DeBERTa-v2."""

from transformers import DebertaV2Config

from .configuration_layerpool import LayerPoolConfigMixin


class LayerPoolDebertaV2Config(LayerPoolConfigMixin, DebertaV2Config):
    """The fields of `DebertaV2Config` and those of [`LayerPoolConfigMixin`]."""

    model_type = "layerpool_deberta_v2"
    encoder_model_types = ("deberta-v2",)

    def validate_architecture(self) -> None:
        """Also refuse options that this encoder does not support. Raises a `ValueError`."""
        super().validate_architecture()
        if self.pooled_states[-1] == 0:
            raise ValueError("pooler_layers names the embedding output only; DeBERTa-v2 computes at least one layer.")
        if getattr(self, "conv_kernel_size", 0) > 0:
            raise ValueError(
                f"conv_kernel_size={self.conv_kernel_size}: a convolution over neighboring tokens is not supported: "
                "packed sentences would mix."
            )


__all__ = ["LayerPoolDebertaV2Config"]
