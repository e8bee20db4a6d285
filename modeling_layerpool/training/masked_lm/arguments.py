"""The arguments of `run_mlm.py`."""

from dataclasses import dataclass, field
from typing import ClassVar

from ...common.columns import SCORED_PAIR_COLUMNS
from ...common.command_line import Range, check_arguments, check_used
from ...common.errors import InputError
from ..data_arguments import TrainDataArguments
from ..model_arguments import LoadingArguments
from ..run_arguments import PackedRunArguments
from .blocks import BLOCK_PACKINGS
from .tokenizer import DEFAULT_VOCAB_SIZE


OBJECTIVES = ("mlm", "taco")
OBJECTIVE = {
    "help": "Training objective: 'mlm' (masked language modeling) or 'taco' (the same plus token-level contrast).",
    "choices": OBJECTIVES,
}
TOKEN_ANCHORS = ("all", "masked", "unmasked")


@dataclass
class LanguageModelArguments(LoadingArguments):
    """The model to train: a new one, or a checkpoint."""

    RANGES: ClassVar = {"vocab_size": Range(at_least=1, at_most=10_000_000)}

    model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "Checkpoint to continue from, one that AutoModelForMaskedLM opens: a folder or a Hub model ID."
        },
    )
    model_type: str | None = field(
        default=None, metadata={"help": "Type of a new model, by its name in transformers: bert, roberta, ..."}
    )
    config_overrides: str | None = field(
        default=None,
        metadata={
            "help": "Configuration fields of a new model, such as hidden_size=256,num_hidden_layers=4. "
            "Default: the default configuration of that type."
        },
    )
    tokenizer_name: str | None = field(
        default=None,
        metadata={"help": "Tokenizer of a new model. Default: one is trained on the training texts."},
    )
    vocab_size: int | None = field(
        default=None,
        metadata={"help": f"Vocabulary size of a tokenizer that is trained. Default: {DEFAULT_VOCAB_SIZE:,}."},
    )

    def __post_init__(self):
        check_arguments(self)
        if (self.model_name_or_path is None) == (self.model_type is None):
            raise InputError(
                "give either --model_name_or_path, to continue from a checkpoint, or --model_type, for a new model"
            )
        for name in ("config_overrides", "tokenizer_name", "vocab_size"):
            if self.model_name_or_path is not None and getattr(self, name) is not None:
                raise InputError(f"--{name} is for a new model (--model_type); {self.model_name_or_path} has its own")
        if self.model_type is not None and self.dtype == "auto":
            raise InputError(
                "--dtype auto is the dtype of a checkpoint, which a new model (--model_type) does not have"
            )
        if self.vocab_size is not None and self.tokenizer_name is not None:
            raise InputError(
                "--vocab_size is for a tokenizer that is trained; --tokenizer_name has its own vocabulary"
            )
        check_used(self, {"revision": self.model_name_or_path is not None}, "without model_name_or_path")


@dataclass
class LanguageDataArguments(TrainDataArguments):
    """The texts to train on, and the data to evaluate on."""

    COLUMN_NAMES: ClassVar = ("text", *SCORED_PAIR_COLUMNS[:3])

    train_file: list[str] | None = field(
        default=None,
        metadata={
            "help": "Training texts: one or more files; txt with one text per line, or jsonl, csv, tsv (all also .gz) "
            "or parquet with a column text."
        },
    )
    validation_file: list[str] | None = field(
        default=None,
        metadata={"help": "Texts like --train_file, for loss, perplexity and accuracy on fixed masks."},
    )
    probe_file: str | None = field(
        default=None,
        metadata={
            "help": "Scored pairs (sentence1, sentence2, score) on which each evaluation measures the mean-pooled "
            "encoder, without fine-tuning."
        },
    )

    @property
    def evaluation_files(self) -> list[str]:
        """All files to evaluate on."""
        return [*(self.validation_file or []), *([self.probe_file] if self.probe_file else [])]


@dataclass
class TokenContrastArguments(PackedRunArguments):
    r"""
    [`RunArguments`] and the options of TACO, which is the default objective.

    Gradient accumulation sums the gradients of separate batches: it does not add sequences to draw negatives from.
    """

    RANGES: ClassVar = {
        **dict.fromkeys(("token_contrast_weight", "token_temperature"), Range(above=0)),
        "token_window": Range(at_least=2),  # a positive needs a neighbor
        "token_negatives": Range(at_least=1, at_most=65_536),
    }
    WITHOUT_EFFECT: ClassVar = ("do_predict", "eval_accumulation_steps")

    objective: str = field(default="taco", metadata=OBJECTIVE)
    token_contrast_weight: float = field(
        default=1.0,
        metadata={"help": "Weight of the token-level contrast added to the masked language modeling loss."},
    )
    token_temperature: float = field(
        default=0.07, metadata={"help": "Temperature of the token-level contrast; above 0."}
    )
    token_window: int = field(
        default=5,
        metadata={
            "help": "Width of the window around a token from which its positive is drawn; 5 means up to 2 "
            "positions away."
        },
    )
    token_negatives: int = field(
        default=50,
        metadata={"help": "Number of negatives of each token, drawn from the other sequences of the batch."},
    )
    token_anchors: str = field(
        default="all",
        metadata={
            "help": "Tokens that are contrasted: all, masked (those to be predicted) or unmasked.",
            "choices": TOKEN_ANCHORS,
        },
    )
    subtracted_state: str = field(
        default="embeddings",
        metadata={
            "help": "Hidden state subtracted from the last one: 'embeddings' (the embedding output), 'none', "
            "or its number; 0 is the embedding output, negative numbers count from the end."
        },
    )
    measure_similarity: bool = field(
        default=False,
        metadata={
            "help": "Also compute the token-level contrast and eval_similarity_within and _between, the "
            "similarity of tokens, at each evaluation, with either objective."
        },
    )

    def __post_init__(self):
        super().__post_init__()
        if self.objective == "mlm" and not self.measure_similarity:
            of_contrast = [name for name in type(self).__dataclass_fields__ if name.startswith("token_")]
            check_used(self, dict.fromkeys((*of_contrast, "subtracted_state"), False), "under objective mlm")
        self.subtracted_index  # noqa: B018, raises if it is none

    @property
    def subtracted_index(self) -> int | None:
        """The index of the hidden state that is subtracted, or None."""
        if self.subtracted_state in ("embeddings", "none"):
            return 0 if self.subtracted_state == "embeddings" else None
        try:
            return int(self.subtracted_state)
        except ValueError:
            raise InputError(
                f"subtracted_state={self.subtracted_state!r} must be embeddings, none or the number of a hidden state"
            ) from None


@dataclass
class MaskedLanguageArguments(TokenContrastArguments):
    """[`TokenContrastArguments`] and the options of packing and masking texts. The default objective is `mlm`."""

    RANGES: ClassVar = {
        "max_seq_length": Range(at_least=3, at_most=1_000_000),  # a text needs room between its special tokens
        "mlm_probability": Range(above=0, below=1),
    }

    objective: str = field(default="mlm", metadata=OBJECTIVE)
    max_seq_length: int = field(
        default=256, metadata={"help": "Tokens in a block, special tokens included; at most the model's positions."}
    )
    block_packing: str = field(
        default="pack",
        metadata={
            "help": "How texts fill blocks: 'pack' (whole texts where they fit; longer ones are cut) or "
            "'concatenate' (one after the other, cut wherever a block is full).",
            "choices": BLOCK_PACKINGS,
        },
    )
    attend_within_documents: bool = field(
        default=False,
        metadata={
            "help": "Let tokens attend to their own text only, with positions that restart. Default: to the "
            "whole block."
        },
    )
    mlm_probability: float = field(default=0.15, metadata={"help": "Share of the tokens masked."})
    plot_curves: bool = field(
        default=False, metadata={"help": "Write curves.png at the end; needs matplotlib (the extra 'plots')."}
    )
