"""Everything a contrastive run can be told, for Python and the command line alike."""

from dataclasses import dataclass, field
from typing import ClassVar

from ...common.command_line import Range, check_arguments, check_used
from ...common.errors import InputError
from ..base import RunArguments
from .neighbours import NEIGHBOUR_SEARCHES, SHUFFLINGS, require_faiss
from .objectives import OBJECTIVES
from .objectives.pairwise import PAIRWISE_LOSSES


@dataclass
class ContrastiveTrainingArguments(RunArguments):
    r"""
    [`RunArguments`] and the options of the objective.

    Gradient accumulation adds up gradients of separate batches: it does not add negatives.
    """

    RANGES: ClassVar = {
        "temperature": Range(above=0),
        **dict.fromkeys(("temperature_learning_rate", "pooler_learning_rate", "mlm_weight"), Range(at_least=0)),
        **dict.fromkeys(("combined_weight", "second_loss_share"), Range(at_least=0, at_most=1)),
        "mlm_probability": Range(above=0, below=1),
        "group_size": Range(at_least=2),
        **dict.fromkeys(("refresh_steps", "gradient_cache"), Range(at_least=1)),
        # A text needs room between its special tokens.
        **dict.fromkeys(("max_seq_length", "row_length"), Range(at_least=3)),
    }
    WITHOUT_EFFECT: ClassVar = ("label_smoothing_factor", "do_predict", "eval_accumulation_steps")

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
            "help": "Weight of a masked language modelling loss added on the same texts; 0.15 in Oh "
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
        check_arguments(self)
        for name, choices in (
            ("objective", sorted(OBJECTIVES)),
            ("pairwise_loss", PAIRWISE_LOSSES),
            ("second_loss", (*PAIRWISE_LOSSES, None)),
            ("shuffling", SHUFFLINGS),
            ("neighbour_search", sorted(NEIGHBOUR_SEARCHES)),
        ):
            if getattr(self, name) not in choices:
                known = ", ".join(choice for choice in choices if choice is not None)
                raise InputError(f"{name}={getattr(self, name)!r} is unknown; use one of {known}")
        self._check_used()
        if self.score_range is not None and not (
            len(self.score_range) == 2 and self.score_range[0] < self.score_range[1]
        ):
            raise InputError(f"score_range={self.score_range} must be two numbers, the lower one first")
        if self.shuffling != "random" and self.no_duplicates:
            raise InputError("no_duplicates keeps texts apart that shuffling puts together; choose one of them")
        if self.neighbour_search == "faiss":
            require_faiss()
        if self.freeze_encoder and self.mlm_weight > 0:
            raise InputError("mlm_weight trains the encoder, which freeze_encoder leaves as it is; drop one of them")
        if self.train_sampling_strategy == "group_by_length":
            raise InputError(
                "train_sampling_strategy=group_by_length does nothing here: texts are packed; leave it out"
            )
        if self.remove_unused_columns:
            raise InputError("remove_unused_columns must stay off: the collator needs every column")
        super().__post_init__()

    def _check_used(self) -> None:
        """Refuse options that another option takes the effect from."""
        losses = {self.pairwise_loss, self.second_loss} if self.objective == "pairwise" else set()
        has_softmax = not losses.isdisjoint({"bsc", "combined"})
        embeds = self.shuffling in ("neighbours", "clusters")
        for names, is_read, reason in (
            (
                ("pairwise_loss", "second_loss", "second_loss_share", "combined_weight", "score_range"),
                self.objective == "pairwise",
                "without objective=pairwise",
            ),
            (("symmetric",), self.objective != "pairwise", "with objective=pairwise"),
            (("hard_negative_weight",), self.objective == "supervised", f"with objective={self.objective}"),
            (("bsc_normalization", "bsc_direction"), has_softmax, "without pairwise_loss=bsc or combined"),
            (("combined_weight",), "combined" in losses, "without pairwise_loss=combined"),
            (("second_loss_share",), self.second_loss is not None, "without second_loss"),
            (("temperature", "learn_temperature"), losses - {None} != {"mse"}, "with pairwise_loss=mse"),
            (("temperature_learning_rate",), self.learn_temperature, "without learn_temperature"),
            (("group_size",), self.shuffling != "random", "without shuffling"),
            (("neighbour_search",), self.shuffling == "neighbours", "without shuffling=neighbours"),
            (("refresh_steps",), embeds, "without shuffling=neighbours or clusters"),
            (("mlm_probability",), self.mlm_weight > 0, "without mlm_weight"),
        ):
            check_used(self, dict.fromkeys(names, is_read), reason)


@dataclass
class DataArguments:
    """Which data to train on, and which to choose the checkpoint by."""

    RANGES: ClassVar = dict.fromkeys(("max_train_samples", "shuffle_buffer_size"), Range(at_least=1))

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
        check_arguments(self)
        if self.streaming and self.max_train_samples is not None:
            raise InputError("max_train_samples does nothing with streaming; use max_steps")
        check_used(self, {"shuffle_buffer_size": self.streaming}, "without streaming")
        of_hub = dict.fromkeys(("dataset_config_name", "dataset_split"), self.dataset_name is not None)
        check_used(self, of_hub, "without dataset_name")
