"""Arguments of the scripts about the checkpoint to start from, and about LoRA."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..common.command_line import Range, check_arguments
from ..common.errors import InputError
from .lora import require_peft


# As in the example scripts of transformers.
DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(kw_only=True)
class LoadingArguments:
    """How to load a checkpoint, whatever its kind."""

    attn_implementation: str | None = field(
        default=None,
        metadata={
            "help": "Attention implementation: sdpa, eager, flash_attention_2, ... Default: chosen by transformers."
        },
    )
    dtype: str | None = field(
        default=None,
        metadata={
            "help": "Type of the weights, or auto for the checkpoint's. Default: float32 for training (--bf16 "
            "and --fp16 do not change that), otherwise the checkpoint's.",
            "choices": DTYPES,
        },
    )
    revision: str = field(default="main", metadata={"help": "Branch, tag or commit on the Hub."})
    allow_pickle: bool = field(
        default=False, metadata={"help": "Accept pickled weights if the checkpoint has no safetensors."}
    )

    def loading_options(self, trains: bool) -> dict[str, Any]:
        """The arguments of `load_layerpool` and `load_masked_language_model`; weights to train are in float32."""
        return {
            "attn_implementation": self.attn_implementation,
            "dtype": self.dtype or ("float32" if trains else "auto"),
            "revision": self.revision,
            "allow_pickle": self.allow_pickle,
        }


@dataclass
class ModelArguments(LoadingArguments):
    """Which checkpoint to start from, and what to change in its configuration."""

    RANGES: ClassVar = {
        "pooler_gru_layers": Range(at_least=1, at_most=100),
        **dict.fromkeys(("pooler_gru_size", "projection_dim"), Range(at_least=1, at_most=65_536)),
    }

    model_name_or_path: str = field(
        metadata={
            "help": "Checkpoint to start from, of this package or of a plain encoder: a folder or a Hub model ID."
        }
    )
    pooler_type: str | None = field(
        default=None,
        metadata={
            "help": "Pooler: layer_attention, hire, weighted_layers, cls, mean, mean_first_last or "
            "mean_last_two. Default: the checkpoint's own; layer_attention for a plain encoder."
        },
    )
    pooler_layers: list[int] | None = field(
        default=None,
        metadata={"help": "Hidden states to read; 0 is the embedding output, negative numbers count from the end."},
    )
    pooler_activation: str | None = field(
        default=None, metadata={"help": "Activation inside layer_attention or hire."}
    )
    pooler_scaling: str | None = field(
        default=None, metadata={"help": "Scaling of the scores of layer_attention: num_states or sqrt_hidden_size."}
    )
    pooler_residual: str | None = field(
        default=None,
        metadata={
            "help": "Pooling of the last state (mean, cls or none) that layer_attention and weighted_layers "
            "add to; they start at zero."
        },
    )
    pooler_normalize_inputs: bool | None = field(
        default=None,
        metadata={
            "nargs": "?",  # so that a bare flag means true
            "const": True,
            "help": "Normalize each state to mean 0 and variance 1 before layer_attention or weighted_layers.",
        },
    )
    pooler_output_activation: str | None = field(
        default=None,
        metadata={"help": "Activation of the output of layer_attention. Default: tanh, or linear with a residual."},
    )
    pooler_gru_size: int | None = field(
        default=None, metadata={"help": "Width of the GRUs of hire, in each direction."}
    )
    pooler_gru_layers: int | None = field(default=None, metadata={"help": "Depth of the GRUs of hire."})
    projection_dim: int | None = field(default=None, metadata={"help": "Width of the sentence embedding."})

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
            "help": "Train low-rank matrices on the linear layers of the encoder (LoRA), and the whole pooler. "
            "Needs the extra 'peft'."
        },
    )
    lora_r: int | None = field(default=None, metadata={"help": "LoRA rank. Default: 16."})
    lora_alpha: int | None = field(
        default=None, metadata={"help": "LoRA scale: the update is multiplied by lora_alpha / lora_r. Default: 32."}
    )
    lora_dropout: float | None = field(default=None, metadata={"help": "LoRA dropout probability. Default: 0."})
    lora_target_modules: list[str] | None = field(
        default=None,
        metadata={
            "help": "Linear layers of the encoder to adapt, by the end of their names, such as query value. "
            "Default: all."
        },
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
