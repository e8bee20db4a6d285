"""Arguments of the scripts about the checkpoint to start from, and about LoRA."""

from dataclasses import dataclass, field
from typing import ClassVar

from ..common.command_line import Range, check_arguments
from ..common.errors import InputError
from .lora import require_peft


# As in the example scripts of transformers.
DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass
class ModelArguments:
    """Which checkpoint to start from, and what to change in its configuration."""

    RANGES: ClassVar = {
        "pooler_gru_layers": Range(at_least=1, at_most=100),
        **dict.fromkeys(("pooler_gru_size", "projection_dim"), Range(at_least=1, at_most=65_536)),
    }

    model_name_or_path: str = field(
        metadata={"help": "A checkpoint of this package or of a plain encoder: a folder or a Hub name."}
    )
    pooler_type: str | None = field(
        default=None,
        metadata={
            "help": "layer_attention, hire, weighted_layers, cls, mean, mean_first_last or mean_last_two. Default: "
            "the checkpoint's own; for a plain encoder layer_attention."
        },
    )
    pooler_layers: list[int] | None = field(
        default=None, metadata={"help": "Hidden states to read, 0 the embedding output; negative from the end."}
    )
    pooler_activation: str | None = field(default=None, metadata={"help": "Activation of layer_attention or hire."})
    pooler_scaling: str | None = field(
        default=None, metadata={"help": "Of layer_attention: num_states or sqrt_hidden_size."}
    )
    pooler_residual: str | None = field(
        default=None,
        metadata={
            "help": "Of layer_attention and weighted_layers: what they add to, beginning with nothing: mean or cls of "
            "the last state; or none."
        },
    )
    pooler_normalize_inputs: bool | None = field(
        default=None,
        metadata={
            "nargs": "?",  # so that a bare flag means true
            "const": True,
            "help": "Of layer_attention and weighted_layers: bring each state to mean 0 and variance 1.",
        },
    )
    pooler_output_activation: str | None = field(
        default=None,
        metadata={"help": "Of layer_attention: behind its last map. Default: tanh; linear with a residual."},
    )
    pooler_gru_size: int | None = field(
        default=None, metadata={"help": "Of hire: width of its GRUs in each direction."}
    )
    pooler_gru_layers: int | None = field(default=None, metadata={"help": "Of hire: depth of its GRUs."})
    projection_dim: int | None = field(default=None, metadata={"help": "Width of the sentence embedding."})
    attn_implementation: str | None = field(
        default=None, metadata={"help": "sdpa, eager, flash_attention_2, ... Default: the choice of transformers."}
    )
    dtype: str | None = field(
        default=None,
        metadata={
            "help": "Hold the weights in this type, or in the checkpoint's (auto). Default: float32 to train, which "
            "--bf16 and --fp16 leave so; else the checkpoint's.",
            "choices": DTYPES,
        },
    )
    revision: str = field(default="main", metadata={"help": "Branch, tag or commit on the Hub."})
    allow_pickle: bool = field(
        default=False, metadata={"help": "Accept a checkpoint that has no safetensors but pickled weights."}
    )

    def __post_init__(self):
        check_arguments(self)

    def config_overrides(self) -> dict:
        """The configuration fields that were given; those that were not stay as the checkpoint has them."""
        fields = {name: value for name, value in vars(self).items() if name.startswith(("pooler_", "projection_"))}
        given = {name: value for name, value in fields.items() if value is not None}
        return given | ({"pooler_residual": None} if self.pooler_residual == "none" else {})


@dataclass
class LoraArguments:
    """Whether to train an adapter in place of the encoder's weights, and which; what they mean says `add_lora`."""

    RANGES: ClassVar = {
        **dict.fromkeys(("lora_r", "lora_alpha"), Range(at_least=1, at_most=65_536)),
        "lora_dropout": Range(at_least=0, below=1),
    }

    use_lora: bool = field(
        default=False,
        metadata={
            "help": "Train low-rank matrices on the linear layers of the encoder (LoRA), and the pooler in full. "
            "Needs the extra 'peft'."
        },
    )
    lora_r: int | None = field(default=None, metadata={"help": "Rank of the matrices. Default: 16."})
    lora_alpha: int | None = field(
        default=None, metadata={"help": "What they add is multiplied by lora_alpha / lora_r. Default: 32."}
    )
    lora_dropout: float | None = field(default=None, metadata={"help": "Of what they read. Default: 0."})
    lora_target_modules: list[str] | None = field(
        default=None,
        metadata={"help": "Linear layers of the encoder by the end of their names, e.g. query value. Default: all."},
    )

    def __post_init__(self):
        check_arguments(self)
        given = self.options()
        if not self.use_lora:
            if given:
                name = next(iter(given)).removeprefix("lora_")
                raise InputError(f"lora_{name} does nothing without use_lora")
            return
        require_peft()

    def options(self) -> dict:
        """The arguments of `add_lora` that were given; those that were not keep its defaults."""
        fields = {
            "r": self.lora_r,
            "lora_alpha": self.lora_alpha,
            "lora_dropout": self.lora_dropout,
            "target_modules": self.lora_target_modules,
        }
        return {name: value for name, value in fields.items() if value is not None}
