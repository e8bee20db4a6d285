"""Configuration of the layer-pooled encoders: every field of the encoder's own configuration, and the pooler's."""

from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from .modeling_layerpool_pooler_base import check_choice, check_positive, is_int
from .modeling_layerpool_poolers import POOLERS


# The fields that not every pooler reads, and the poolers that do.
POOLER_OPTIONS: dict[str, list[str]] = {}
for _name, _pooler in POOLERS.items():
    for _options in _pooler.options:
        for _field in fields(_options):
            POOLER_OPTIONS.setdefault(_field.name, []).append(_name)


@dataclass(kw_only=True)
class LayerPoolConfigMixin(*dict.fromkeys(options for pooler in POOLERS.values() for options in pooler.options)):
    """
    The fields of the pooler, shared by all encoders: those below, and the options of each pooler.

    Hidden states are counted from 0, the embedding output, to `num_hidden_layers`, the last layer's output.

    ```python
    >>> config = LayerPoolBertConfig(pooler_layers=[0, 6, -1])
    >>> model = LayerPoolBertModel(config)
    ```
    """

    pooler_type: str = field(
        default="layer_attention",
        metadata={
            "help": f"Pooler that turns the hidden states into one vector: {', '.join(POOLERS)}. A plain "
            "encoder, which has no pooler, gets layer_attention."
        },
    )
    pooler_layers: list[int] | None = field(
        default=None,
        metadata={
            "help": "Hidden states that the pooler reads: 0 is the embedding output, and negative numbers count from "
            "the last state. A new pooler reads all of them. mean, cls, mean_first_last and mean_last_two treat the "
            "highest of them as the last state. Layers above the highest one are left out of the model."
        },
    )
    projection_dim: int | None = field(
        default=None,
        metadata={
            "help": "Width of the sentence embedding. A new pooler keeps the width of its pooled vector. For another "
            "width, layer_attention resizes its output projection, and other poolers add a linear layer.",
            "at_most": 65_536,
        },
    )
    prompts: dict[str, str] | None = field(
        default=None, metadata={"help": "Prompts by name: texts that `encode` puts before each text."}
    )
    default_prompt_name: str | None = field(
        default=None, metadata={"help": "The prompt that `encode` uses if it is given none."}
    )
    include_prompt: bool = field(
        default=True, metadata={"help": "Whether the token means of the pooler count the tokens of a prompt."}
    )

    # The `model_type`s of the plain encoders whose checkpoints this configuration also opens, its own base first.
    encoder_model_types: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.validate_architecture()

    def validate_architecture(self) -> None:
        """Check the pooler's fields against each other and against the encoder's. Raises a `ValueError`."""
        super().validate_architecture()
        check_choice("pooler_type", self.pooler_type, tuple(POOLERS))
        self.check_options()
        check_positive("projection_dim", self.projection_dim)
        self._check_prompts()
        _ = self.pooled_states  # raises an error if pooler_layers does not fit
        # Other options that the pooler does not read have no effect: earlier releases saved defaults of other poolers.
        readers = POOLER_OPTIONS["pooler_residual"]
        if self.pooler_residual is not None and self.pooler_type not in readers:
            raise ValueError(
                f"pooler_residual={self.pooler_residual!r} is for {' and '.join(readers)}, not for "
                f"{self.pooler_type}: set it to None."
            )
        POOLERS[self.pooler_type].validate(self)

    def _check_prompts(self) -> None:
        prompts = {} if self.prompts is None else self.prompts
        are_texts = isinstance(prompts, dict) and all(
            isinstance(text, str) for item in prompts.items() for text in item
        )
        if not are_texts:
            raise ValueError(f"prompts={prompts!r} must be a dict of texts by name, or None.")
        if self.default_prompt_name is not None and self.default_prompt_name not in prompts:
            known = ", ".join(prompts) or "none"
            raise ValueError(f"default_prompt_name={self.default_prompt_name!r} is none of the prompts ({known}).")
        if not isinstance(self.include_prompt, bool):
            raise ValueError(f"include_prompt={self.include_prompt!r} must be True or False.")
        if not self.include_prompt and (not POOLERS[self.pooler_type].reads_means or self.pooler_residual == "cls"):
            pooler = (
                self.pooler_type if self.pooler_residual is None else f"{self.pooler_residual} + {self.pooler_type}"
            )
            raise ValueError(
                f"include_prompt=False leaves the tokens of a prompt out of token means, but pooler_type={pooler} "
                "embeds the first token or reads every token: choose a pooler of means, or include_prompt=True."
            )

    @property
    def pooled_width(self) -> int:
        """Width of the pooled vector, and so of the embedding if `projection_dim` is None."""
        return POOLERS[self.pooler_type].pooled_width(self)

    @property
    def pooled_states(self) -> list[int]:
        """The hidden states named by `pooler_layers`, counted from 0, ascending. Raises a `ValueError` if none fit."""
        states = self.num_hidden_layers + 1
        if self.pooler_layers is None:
            return list(range(states))
        if not self.pooler_layers or not all(is_int(index) for index in self.pooler_layers):
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


__all__ = ["LayerPoolConfigMixin"]
