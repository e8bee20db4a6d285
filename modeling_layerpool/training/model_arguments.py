"""Arguments of the scripts about the checkpoint to start from, and about LoRA."""

from dataclasses import dataclass, field, fields, make_dataclass
from typing import Any, ClassVar

from ..common.command_line import Range, check_arguments, check_used
from ..models.configuration_layerpool import POOLER_OPTIONS, LayerPoolConfigMixin
from .lora import require_peft


# As in the example scripts of transformers.
DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(kw_only=True)
class LoadingArguments:
    """How to load a checkpoint, whatever its kind."""

    GROUP: ClassVar = "checkpoint"
    DETAILS: ClassVar = ("attn_implementation", "revision", "allow_pickle")

    attn_implementation: str | None = field(
        default=None,
        metadata={
            "help": "Attention implementation: sdpa, eager, flash_attention_2, ... Default: chosen by transformers; "
            "packed batches on CUDA then go to a kernel for sequences of variable length if one computes the same."
        },
    )
    dtype: str | None = field(
        default=None,
        metadata={
            "help": "Dtype of the weights; auto uses the dtype of the checkpoint. Default: float32 for training, even "
            "with --bf16 or --fp16, and auto otherwise.",
            "choices": DTYPES,
        },
    )
    revision: str = field(default="main", metadata={"help": "Branch, tag or commit of the checkpoint on the Hub."})
    allow_pickle: bool = field(
        default=False, metadata={"help": "Load pickled weights if the checkpoint has no safetensors file."}
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
class CheckpointArguments(LoadingArguments):
    """Which checkpoint to start from, and how to load it."""

    GROUP: ClassVar = LoadingArguments.GROUP

    model_name_or_path: str = field(
        metadata={
            "help": "Checkpoint to start from, a folder or a Hub model ID: a model of this package or a plain encoder."
        }
    )


_OPTIONS = {option.name: option for option in fields(LayerPoolConfigMixin)}


def _flag(name: str) -> tuple[str, Any, Any]:
    """The flag of a configuration field. Its default, None, leaves the field as the checkpoint has it."""
    option = _OPTIONS[name]
    metadata = {"help": f"{option.metadata['help']} Default: the checkpoint's setting."}
    if option.type is bool:
        metadata |= {"nargs": "?", "const": True}  # so that a bare flag means true
    return name, option.type | None, field(default=None, metadata=metadata)


PoolerArguments = make_dataclass(
    "PoolerArguments",
    [_flag(name) for name in ("pooler_type", "pooler_layers", *POOLER_OPTIONS, "projection_dim")],
    namespace={"GROUP": "pooler", "DETAILS": POOLER_OPTIONS},
)


@dataclass
class ModelArguments(PoolerArguments, CheckpointArguments):
    """Which checkpoint to start from, and the changes to its configuration."""

    RANGES: ClassVar = {
        name: Range(at_least=1, at_most=option.metadata["at_most"])
        for name, option in _OPTIONS.items()
        if "at_most" in option.metadata
    } | {
        name: Range(at_least=0, below=option.metadata["below"])
        for name, option in _OPTIONS.items()
        if "below" in option.metadata
    }

    def __post_init__(self):
        check_arguments(self)

    def config_overrides(self) -> dict:
        """The configuration fields that were given; those that were not stay as the checkpoint has them."""
        names = (option.name for option in fields(PoolerArguments))
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        return given | ({"pooler_residual": None} if self.pooler_residual == "none" else {})


@dataclass
class LoraArguments:
    """Whether to train an adapter instead of the encoder's weights, and its options, as of `add_lora`."""

    GROUP: ClassVar = "LoRA"
    DETAILS: ClassVar = ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules")
    RANGES: ClassVar = {
        **dict.fromkeys(("lora_r", "lora_alpha"), Range(at_least=1, at_most=65_536)),
        "lora_dropout": Range(at_least=0, below=1),
    }

    use_lora: bool = field(
        default=False,
        metadata={
            "help": "Train the encoder with LoRA, which learns low-rank updates of its linear layers, and train the "
            "whole pooler. Needs PEFT."
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
            "help": "Linear layers of the encoder to adapt, by name or end of the name, for example: query value. "
            "Default: all linear layers."
        },
    )

    def __post_init__(self):
        check_arguments(self)
        lora_options = ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules")
        check_used(self, dict.fromkeys(lora_options, self.use_lora), "without use_lora")
        if self.use_lora:
            require_peft()

    def options(self) -> dict:
        """The arguments of `add_lora` that were given; those that were not keep its defaults."""
        options = {
            "r": self.lora_r,
            "lora_alpha": self.lora_alpha,
            "lora_dropout": self.lora_dropout,
            "target_modules": self.lora_target_modules,
        }
        return {name: value for name, value in options.items() if value is not None}
