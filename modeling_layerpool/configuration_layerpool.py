"""Configuration of the layer-pooled encoders: every field of the encoder's own configuration, and the pooler's."""

from dataclasses import dataclass
from typing import Any

from transformers import BertConfig
from transformers.activations import ACT2FN


POOLER_TYPES = ("layer_attention", "weighted_layers", "cls", "mean", "mean_first_last", "mean_last_two")
POOLER_SCALINGS = ("num_states", "sqrt_hidden_size")


@dataclass(kw_only=True)
class LayerPoolConfigMixin:
    r"""
    The fields of the pooler, shared by all encoders. Hidden states are counted from 0, the embedding output, to
    `num_hidden_layers`, the last layer's output.

    Args:
        pooler_type (`str`, *optional*, defaults to `"layer_attention"`):
            How the hidden states become one vector: `"layer_attention"` (Oh et al. 2022), `"weighted_layers"` (one
            learned scalar for each hidden state), `"cls"`, `"mean"`, `"mean_first_last"` or `"mean_last_two"`.
        pooler_layers (`list[int]`, *optional*):
            The hidden states that the pooler reads; negative numbers count from the last one. Defaults to all of them.
            The poolers that are named after a layer take the highest of these as their last one. Layers above it are
            neither built nor computed.
        pooler_activation (`str`, *optional*, defaults to `"rrelu"`):
            `layer_attention` only: the activation behind the query, key and value maps. `"rrelu"` is the paper's
            (slope uniform in (1/8, 1/3) in training, 11/48 otherwise); any name of `transformers.activations.ACT2FN`.
        pooler_scaling (`str`, *optional*, defaults to `"num_states"`):
            `layer_attention` only: what the scores are divided by. `"num_states"`, the number of hidden states read,
            is the paper's; `"sqrt_hidden_size"` is the usual one of dot-product attention.
        projection_dim (`int`, *optional*):
            Width of the sentence embedding. `layer_attention` projects to it; the other poolers get a linear map on
            top if it is not the encoder's width. Defaults to the encoder's width, and is written so when saved.
    """

    pooler_type: str = "layer_attention"
    pooler_layers: list[int] | None = None
    pooler_activation: str = "rrelu"
    pooler_scaling: str = "num_states"
    projection_dim: int | None = None

    # The `model_type` of the plain encoder whose checkpoints this configuration also opens.
    encoder_model_type = None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.validate_architecture()

    def validate_architecture(self) -> None:
        """Check the pooler's fields against each other and against the encoder's. Raises a `ValueError`."""
        super().validate_architecture()
        _check_choice("pooler_type", self.pooler_type, POOLER_TYPES)
        _check_choice("pooler_scaling", self.pooler_scaling, POOLER_SCALINGS)
        if self.pooler_activation != "rrelu" and self.pooler_activation not in ACT2FN:
            raise ValueError(
                f"pooler_activation={self.pooler_activation!r} is unknown; use 'rrelu' or one of {', '.join(ACT2FN)}."
            )
        if self.projection_dim is not None and not (_is_int(self.projection_dim) and self.projection_dim > 0):
            raise ValueError(f"projection_dim={self.projection_dim!r} must be a positive integer, or None.")
        last = self.pooled_states[-1]
        if self.pooler_type == "mean_last_two" and last == 0:
            raise ValueError(
                "pooler_type='mean_last_two' needs a layer: pooler_layers names the embedding output only."
            )

    @property
    def pooled_states(self) -> list[int]:
        """The hidden states named by `pooler_layers`, counted from 0, ascending. Raises a `ValueError` if none fit."""
        states = self.num_hidden_layers + 1
        if self.pooler_layers is None:
            return list(range(states))
        if not self.pooler_layers or not all(_is_int(index) for index in self.pooler_layers):
            raise ValueError(f"pooler_layers={self.pooler_layers!r} must be a list of at least one integer, or None.")
        for index in self.pooler_layers:
            if not -states <= index < states:
                raise ValueError(
                    f"pooler_layers names hidden state {index}, but this encoder has {states}, numbered 0 (the "
                    f"embedding output) to {states - 1}, or {-states} to -1 from the end."
                )
        resolved = sorted({index % states for index in self.pooler_layers})
        if len(resolved) != len(self.pooler_layers):
            raise ValueError(f"pooler_layers={self.pooler_layers!r} names a hidden state twice.")
        return resolved

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> tuple[dict, dict]:
        """Read a configuration of this kind or the plain encoder's. Any other `model_type` is a `ValueError`."""
        config, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        model_type = config.get("model_type", cls.encoder_model_type)
        if model_type not in (cls.model_type, cls.encoder_model_type):
            raise ValueError(
                f"{pretrained_model_name_or_path} holds a model of type {model_type!r}, but {cls.__name__} opens "
                f"{cls.encoder_model_type!r} and {cls.model_type!r} checkpoints only."
            )
        return {**config, "model_type": cls.model_type}, kwargs


class LayerPoolBertConfig(LayerPoolConfigMixin, BertConfig):
    r"""
    Configuration of a [`LayerPoolBertModel`]: the fields of `BertConfig`, and those of [`LayerPoolConfigMixin`].

    ```python
    >>> from modeling_layerpool import LayerPoolBertConfig, LayerPoolBertModel

    >>> config = LayerPoolBertConfig(pooler_layers=[0, 6, -1])
    >>> model = LayerPoolBertModel(config)
    ```"""

    model_type = "layerpool_bert"
    encoder_model_type = "bert"


def _check_choice(field: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{field}={value!r} is unknown; use one of {', '.join(choices)}.")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


__all__ = ["LayerPoolBertConfig", "LayerPoolConfigMixin"]
