"""Everything a contrastive run can be told, for Python and the command line alike."""

from dataclasses import dataclass, field

from ..errors import InputError
from .base import RunArguments
from .lora import require_peft
from .neighbours import NEIGHBOUR_SEARCHES, SHUFFLINGS, require_faiss
from .objectives import OBJECTIVES
from .pairwise import PAIRWISE_LOSSES


# As in the example scripts of transformers.
DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass
class ContrastiveTrainingArguments(RunArguments):
    r"""
    [`RunArguments`] and the options of the objective.

    Gradient accumulation adds up gradients of separate batches: it does not add negatives.
    """

    objective: str = field(
        default="supervised",
        metadata={
            "help": "What is learned: 'unsupervised' (column text, each text against itself under dropout), "
            "'supervised' (columns anchor, positive and optionally negative or negative_1..k) or 'pairwise' (columns "
            "sentence1, sentence2 and score or label).",
            "choices": sorted(OBJECTIVES),
        },
    )
    temperature: float = field(default=0.05, metadata={"help": "What cosines are divided by; above 0."})
    learn_temperature: bool = field(
        default=False, metadata={"help": "Learn 1 / temperature, beginning at the inverse of --temperature."}
    )
    temperature_learning_rate: float | None = field(
        default=None,
        metadata={"help": "Learning rate of 1 / temperature, without weight decay. Default: --learning_rate."},
    )
    hard_negative_weight: float = field(
        default=0.0,
        metadata={"help": "Added to the logits of a row's own negatives. 0 is SimCSE's, 1 that of Oh et al. 2022."},
    )
    symmetric: bool = field(
        default=False, metadata={"help": "Average with the loss of finding the anchor by its positive."}
    )
    mask_duplicates: bool = field(
        default=True,
        metadata={"help": "Leave out columns that hold the text of the row's own anchor or positive."},
    )
    no_duplicates: bool = field(
        default=False,
        metadata={"help": "Keep rows that share a text out of the same batch. Not for a streamed dataset."},
    )
    pairwise_loss: str = field(
        default="bsc",
        metadata={
            "help": "Of 'pairwise': bsc (batch-softmax contrastive), mse (of the cosine), combined (both), bce "
            "(binary cross-entropy of the cosine) or cosent (ranking).",
            "choices": PAIRWISE_LOSSES,
        },
    )
    bsc_normalization: str = field(
        default="l2",
        metadata={
            "help": "Of bsc: l2, coordinate (each by its range over the batch; wants a temperature of about 1.2) or "
            "none.",
            "choices": ["l2", "coordinate", "none"],
        },
    )
    bsc_direction: str = field(
        default="both",
        metadata={
            "help": "Of bsc: what is looked for in the batch: rows (the second text), columns (the first) or both.",
            "choices": ["both", "rows", "columns"],
        },
    )
    combined_weight: float = field(
        default=0.1, metadata={"help": "Of combined: the weight of bsc, the paper's mu; mse has the rest."}
    )
    second_loss: str | None = field(
        default=None,
        metadata={
            "help": "Of 'pairwise': the loss of the last steps, as bsc first and then mse. Default: one loss "
            "throughout.",
            "choices": PAIRWISE_LOSSES,
        },
    )
    second_loss_share: float = field(
        default=0.5, metadata={"help": "The share of the steps, at the end, that --second_loss has."}
    )
    score_range: list[float] | None = field(
        default=None,
        metadata={
            "help": "Of 'pairwise': the two scores that become 0 and 1. Default: the lowest and the highest of the "
            "training data. Labels are 0 and 1."
        },
    )
    shuffling: str = field(
        default="random",
        metadata={
            "help": "The order of the rows: random, or with rows in one batch whose first texts are alike: neighbours "
            "(by the model's embeddings), clusters (by the same) or words (that share one). Not for a stream.",
            "choices": SHUFFLINGS,
        },
    )
    group_size: int = field(
        default=5, metadata={"help": "Of --shuffling: the number of different first texts that are put together."}
    )
    neighbour_search: str = field(
        default="exact",
        metadata={
            "help": "Of --shuffling neighbours: exact, or faiss, approximate and faster for 100,000 texts and more "
            "(the extra 'faiss').",
            "choices": sorted(NEIGHBOUR_SEARCHES),
        },
    )
    refresh_steps: int | None = field(
        default=None,
        metadata={
            "help": "Of --shuffling neighbours or clusters: embed the rows that are left anew after so many steps. "
            "Default: once an epoch."
        },
    )
    mlm_weight: float = field(
        default=0.0,
        metadata={
            "help": "Weight of a masked language modelling loss on the same texts, beside the objective; 0.15 in Oh "
            "et al. 2022, 0.1 in SimCSE. Costs a second pass through the encoder. Default: off."
        },
    )
    mlm_probability: float = field(default=0.15, metadata={"help": "Of --mlm_weight: share of the tokens masked."})
    freeze_encoder: bool = field(
        default=False, metadata={"help": "Train the pooler only, and leave the encoder as it is."}
    )
    pooler_learning_rate: float | None = field(
        default=None,
        metadata={"help": "Learning rate of the pooler, on the same schedule. Default: --learning_rate."},
    )
    max_seq_length: int | None = field(
        default=None,
        metadata={
            "help": "Tokens at which a text is cut, special tokens included; saved with the tokenizer. Default: the "
            "tokenizer's model_max_length, at most the encoder's positions."
        },
    )
    row_length: int | None = field(
        default=None,
        metadata={"help": "Tokens in a packed row. Default: for each batch the length of the least work."},
    )
    gradient_cache: int | None = field(
        default=None,
        metadata={
            "help": "Gradient caching: tokens computed at once. The batch is embedded in groups of so many tokens "
            "without graph, then the loss, then each group again with graph, so that memory does not grow with the "
            "batch. Costs a second forward pass. Default: off."
        },
    )
    # The data is laid out by our collator, which knows better than the model's signature.
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Must stay off: the collator needs every column."}
    )

    def __post_init__(self):
        if self.objective not in OBJECTIVES:
            raise InputError(f"objective={self.objective!r} is unknown; use one of {', '.join(sorted(OBJECTIVES))}")
        if not self.temperature > 0:
            raise InputError(f"temperature={self.temperature} must be above 0")
        if self.objective == "pairwise":
            self._check_pairwise()
        if self.shuffling not in SHUFFLINGS:
            raise InputError(f"shuffling={self.shuffling!r} is unknown; use one of {', '.join(SHUFFLINGS)}")
        if self.shuffling != "random" and self.no_duplicates:
            raise InputError("no_duplicates keeps texts apart that shuffling puts together; choose one of them")
        if self.group_size < 2:
            raise InputError(f"group_size={self.group_size} must be at least 2")
        if self.neighbour_search not in NEIGHBOUR_SEARCHES:
            known = " or ".join(sorted(NEIGHBOUR_SEARCHES))
            raise InputError(f"neighbour_search={self.neighbour_search!r} is unknown; use {known}")
        if self.neighbour_search == "faiss":
            if self.shuffling != "neighbours":
                raise InputError("neighbour_search=faiss does nothing without shuffling=neighbours")
            require_faiss()
        embeds = self.shuffling in ("neighbours", "clusters")
        if self.refresh_steps is not None and not (embeds and self.refresh_steps >= 1):
            raise InputError(
                f"refresh_steps={self.refresh_steps} must be positive, and needs shuffling=neighbours or clusters"
            )
        if not self.mlm_weight >= 0:
            raise InputError(f"mlm_weight={self.mlm_weight} must not be negative")
        if not 0 < self.mlm_probability < 1:
            raise InputError(f"mlm_probability={self.mlm_probability} must lie between 0 and 1")
        if self.temperature_learning_rate is not None and not self.learn_temperature:
            raise InputError("temperature_learning_rate does nothing without learn_temperature")
        if self.pooler_learning_rate is not None and not self.pooler_learning_rate >= 0:
            raise InputError(f"pooler_learning_rate={self.pooler_learning_rate} must not be negative")
        if self.freeze_encoder and self.mlm_weight > 0:
            raise InputError("mlm_weight trains the encoder, which freeze_encoder leaves as it is; drop one of them")
        for name in ("max_seq_length", "row_length"):
            value = getattr(self, name)
            if value is not None and value < 3:
                raise InputError(f"{name}={value} leaves no room for a text between its special tokens")
        if self.gradient_cache is not None and self.gradient_cache < 1:
            raise InputError(f"gradient_cache={self.gradient_cache} must be a positive number of tokens")
        if self.remove_unused_columns:
            raise InputError("remove_unused_columns must stay off: the collator needs every column")
        super().__post_init__()

    def _check_pairwise(self) -> None:
        for name in ("hard_negative_weight", "symmetric"):
            if getattr(self, name):
                raise InputError(f"{name} does nothing with objective=pairwise")
        for name in ("pairwise_loss", "second_loss"):
            if getattr(self, name) not in (*PAIRWISE_LOSSES, None):
                raise InputError(f"{name}={getattr(self, name)!r} is unknown; use one of {', '.join(PAIRWISE_LOSSES)}")
        for name in ("combined_weight", "second_loss_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name}={getattr(self, name)} must be between 0 and 1")
        if self.score_range is not None and not (
            len(self.score_range) == 2 and self.score_range[0] < self.score_range[1]
        ):
            raise InputError(f"score_range={self.score_range} must be two numbers, the lower one first")


@dataclass
class ModelArguments:
    """Which checkpoint to start from, and what to change in its configuration."""

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
        default=None, metadata={"help": "sdpa, eager, flash_attention_2, flex_attention ... Default: the library's."}
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

    def config_overrides(self) -> dict:
        """The configuration fields that were given; those that were not stay as the checkpoint has them."""
        fields = {name: value for name, value in vars(self).items() if name.startswith(("pooler_", "projection_"))}
        given = {name: value for name, value in fields.items() if value is not None}
        return given | ({"pooler_residual": None} if self.pooler_residual == "none" else {})


@dataclass
class LoraArguments:
    """Whether to train an adapter in place of the encoder's weights, and which; what they mean says `add_lora`."""

    use_lora: bool = field(
        default=False,
        metadata={
            "help": "Train low-rank matrices beside the linear layers of the encoder (LoRA), and the pooler in full. "
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
        given = self.options()
        if not self.use_lora:
            if given:
                name = next(iter(given)).removeprefix("lora_")
                raise InputError(f"lora_{name} does nothing without use_lora")
            return
        require_peft()
        for name in ("lora_r", "lora_alpha"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name}={value} must be positive")
        if self.lora_dropout is not None and not 0 <= self.lora_dropout < 1:
            raise InputError(f"lora_dropout={self.lora_dropout} must be at least 0 and below 1")

    def options(self) -> dict:
        """The arguments of `add_lora` that were given; those that were not keep its defaults."""
        fields = {
            "r": self.lora_r,
            "lora_alpha": self.lora_alpha,
            "lora_dropout": self.lora_dropout,
            "target_modules": self.lora_target_modules,
        }
        return {name: value for name, value in fields.items() if value is not None}


@dataclass
class DataArguments:
    """Which data to train on, and which to choose the checkpoint by."""

    train_file: str | None = field(
        default=None, metadata={"help": "jsonl, csv, tsv or txt, also .gz, whose columns the objective names."}
    )
    dataset_name: str | None = field(default=None, metadata={"help": "A dataset on the Hub, in place of a file."})
    dataset_config_name: str | None = field(default=None, metadata={"help": "Its configuration."})
    dataset_split: str = field(default="train", metadata={"help": "Its split."})
    streaming: bool = field(default=False, metadata={"help": "Read the data as it is needed; needs --max_steps."})
    shuffle_buffer_size: int = field(
        default=10_000, metadata={"help": "Rows among which a streamed dataset is shuffled."}
    )
    validation_file: str | None = field(
        default=None,
        metadata={
            "help": "What to evaluate on, and to choose the checkpoint by. A file with sentence1, sentence2, score "
            "gives Spearman and Pearson, one with a label average precision, a BEIR folder retrieval metrics, another "
            "file like the training data its loss."
        },
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Use the first rows of the data only."})

    def __post_init__(self):
        if self.streaming and self.max_train_samples is not None:
            raise InputError("max_train_samples does nothing with streaming; use max_steps")
        if self.max_train_samples is not None and self.max_train_samples < 1:
            raise InputError(f"max_train_samples={self.max_train_samples} must be positive")
