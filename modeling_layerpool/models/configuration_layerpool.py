"""Configuration of the layer-pooled encoders: every field of the encoder's own configuration, and the pooler's."""

from dataclasses import dataclass
from typing import Any, ClassVar

from transformers.activations import ACT2FN


POOLER_TYPES = ("layer_attention", "hire", "weighted_layers", "cls", "mean", "mean_first_last", "mean_last_two")
POOLER_SCALINGS = ("num_states", "sqrt_hidden_size")
POOLER_RESIDUALS = ("mean", "cls")
# The fields that not every pooler reads, and the poolers that do.
POOLER_OPTIONS = {
    "pooler_activation": ("layer_attention", "hire"),
    "pooler_scaling": ("layer_attention",),
    "pooler_residual": ("layer_attention", "weighted_layers"),
    "pooler_normalize_inputs": ("layer_attention", "weighted_layers"),
    "pooler_output_activation": ("layer_attention",),
    "pooler_gru_size": ("hire",),
    "pooler_gru_layers": ("hire",),
}


@dataclass(kw_only=True)
class LayerPoolConfigMixin:
    r"""
    The fields of the pooler, shared by all encoders. Hidden states are counted from 0, the embedding output, to
    `num_hidden_layers`, the last layer's output.

    Args:
        pooler_type (`str`, *optional*, defaults to `"layer_attention"`):
            How the hidden states become one vector: `"layer_attention"` (Oh et al. 2022), `"hire"` (Yang and Zhao
            2019), `"weighted_layers"` (one learned scalar for each hidden state), `"cls"`, `"mean"`,
            `"mean_first_last"` or `"mean_last_two"`.
        pooler_layers (`list[int]`, *optional*):
            The hidden states that the pooler reads; negative numbers count from the last one. Defaults to all of them.
            The poolers that are named after a layer take the highest of these as their last one. Layers above it are
            neither built nor computed.
        pooler_activation (`str`, *optional*):
            `layer_attention`: the activation behind the query, key and value maps. `hire`: that of the importance of a
            hidden state. `"rrelu"` (slope uniform in (1/8, 1/3) in training, 11/48 otherwise), or any name of
            `transformers.activations.ACT2FN`. Defaults to the paper's: `"rrelu"` and `"relu"`.
        pooler_scaling (`str`, *optional*, defaults to `"num_states"`):
            `layer_attention` only: what the scores are divided by. `"num_states"`, the number of hidden states read,
            is the paper's; `"sqrt_hidden_size"` is the usual one of dot-product attention.
        pooler_residual (`str`, *optional*):
            `layer_attention` and `weighted_layers` only: what the pooler adds to, `"mean"` (the token mean of the
            highest state read) or `"cls"` (its first token). What is added starts at zero, so that a new pooler starts
            as that plain one. Not the papers'. Defaults to nothing.
        pooler_normalize_inputs (`bool`, *optional*, defaults to `False`):
            `layer_attention` and `weighted_layers` only: whether to bring each state's pooled vector to mean 0 and
            variance 1 before it is read, so that no state weighs more because its values are larger. Not the papers'.
        pooler_output_activation (`str`, *optional*):
            `layer_attention` only: behind the last map, a name of `transformers.activations.ACT2FN`. Defaults to the
            paper's `"tanh"`, and to `"linear"` with `pooler_residual`.
        pooler_gru_size (`int`, *optional*):
            `hire` only: width of its GRUs in each direction. Defaults to the encoder's width.
        pooler_gru_layers (`int`, *optional*, defaults to 2):
            `hire` only: depth of its GRUs.
        projection_dim (`int`, *optional*):
            Width of the sentence embedding. `layer_attention` projects to it; the other poolers get a linear map on
            top if it is not their own width. Defaults to that width, twice `pooler_gru_size` for `hire` and the
            encoder's for the others, and is written so when saved.
    """

    pooler_type: str = "layer_attention"
    pooler_layers: list[int] | None = None
    pooler_activation: str | None = None
    pooler_scaling: str = "num_states"
    pooler_residual: str | None = None
    pooler_normalize_inputs: bool = False
    pooler_output_activation: str | None = None
    pooler_gru_size: int | None = None
    pooler_gru_layers: int = 2
    projection_dim: int | None = None

    # The `model_type`s of the plain encoders whose checkpoints this configuration also opens, its own base first.
    encoder_model_types: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.validate_architecture()

    def validate_architecture(self) -> None:
        """Check the pooler's fields against each other and against the encoder's. Raises a `ValueError`."""
        super().validate_architecture()
        _check_choice("pooler_type", self.pooler_type, POOLER_TYPES)
        _check_choice("pooler_scaling", self.pooler_scaling, POOLER_SCALINGS)
        if self.pooler_activation not in (None, "rrelu") and self.pooler_activation not in ACT2FN:
            raise ValueError(
                f"pooler_activation={self.pooler_activation!r} is unknown; use 'rrelu' or one of {', '.join(ACT2FN)}."
            )
        if self.pooler_output_activation is not None:
            _check_choice("pooler_output_activation", self.pooler_output_activation, tuple(ACT2FN))
        if self.pooler_residual is not None:
            self._check_residual()
        if not isinstance(self.pooler_normalize_inputs, bool):
            raise ValueError(f"pooler_normalize_inputs={self.pooler_normalize_inputs!r} must be True or False.")
        for field in ("projection_dim", "pooler_gru_size"):
            value = getattr(self, field)
            if value is not None and not (_is_int(value) and value > 0):
                raise ValueError(f"{field}={value!r} must be a positive integer, or None.")
        if not (_is_int(self.pooler_gru_layers) and self.pooler_gru_layers > 0):
            raise ValueError(f"pooler_gru_layers={self.pooler_gru_layers!r} must be a positive integer.")
        last = self.pooled_states[-1]
        if self.pooler_type == "mean_last_two" and last == 0:
            raise ValueError(
                "pooler_type='mean_last_two' needs a layer: pooler_layers names the embedding output only."
            )

    def _check_residual(self) -> None:
        _check_choice("pooler_residual", self.pooler_residual, POOLER_RESIDUALS)
        poolers = POOLER_OPTIONS["pooler_residual"]
        if self.pooler_type not in poolers:
            raise ValueError(
                f"pooler_residual={self.pooler_residual!r} is for {' and '.join(poolers)}, not for "
                f"{self.pooler_type}: set it to None."
            )
        if self.projection_dim not in (None, self.hidden_size):
            raise ValueError(
                f"pooler_residual={self.pooler_residual!r} needs an embedding as wide as the encoder, "
                f"{self.hidden_size}, not projection_dim={self.projection_dim}."
            )

    @property
    def pooled_width(self) -> int:
        """Width of what the pooler makes of the hidden states, and so of the embedding if `projection_dim` is None."""
        if self.pooler_type == "hire":
            return 2 * (self.pooler_gru_size or self.hidden_size)
        return self.hidden_size

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
        known = (*cls.encoder_model_types, cls.model_type)
        model_type = config.get("model_type", known[0])
        if model_type not in known:
            raise ValueError(
                f"{pretrained_model_name_or_path} holds a model of type {model_type!r}, but {cls.__name__} opens "
                f"{', '.join(map(repr, known[:-1]))} and {known[-1]!r} checkpoints only."
            )
        return {**config, "model_type": cls.model_type}, kwargs


def _check_choice(field: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{field}={value!r} is unknown; use one of {', '.join(choices)}.")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


__all__ = ["LayerPoolConfigMixin"]
