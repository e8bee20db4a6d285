"""The arguments of a contrastive run, for Python and the command line."""

from dataclasses import dataclass, field, fields
from typing import ClassVar

from ...common.columns import SCORED_PAIR_COLUMNS
from ...common.command_line import Range, check_arguments, check_used
from ...common.errors import InputError
from ...common.nearest_texts import NEIGHBOUR_SEARCHES, require_faiss
from ...models.modeling_layerpool_poolers import POOLERS
from ..computed_files import EMBEDDINGS_FOLDER
from ..data_arguments import TrainDataArguments
from ..frozen import FreezeArguments
from ..run_arguments import PackedRunArguments
from .neighbours import SHUFFLINGS
from .objectives import OBJECTIVES
from .objectives.distill import TEACHER, DistillObjective, DistillOptions
from .objectives.info_nce import GUIDE
from .prompts import parse_prompts
from .sources import parse_sources


SELF = "self"  # the name of a teacher or guide that is the checkpoint itself

# A class must come before the classes that it inherits from.
OBJECTIVE_OPTIONS = sorted(
    dict.fromkeys(objective.Options for objective in OBJECTIVES.values()), key=lambda options: -len(options.__mro__)
)


_RATES = ", ".join(f"{pooler.learning_rate:g} for {name}" for name, pooler in POOLERS.items() if pooler.learning_rate)


@dataclass
class ContrastiveTrainingArguments(FreezeArguments, PackedRunArguments, *OBJECTIVE_OPTIONS):
    r"""
    [`RunArguments`], the options of all objectives, and the options of contrastive training with any of them.

    Gradient accumulation adds up gradients of separate batches: it does not add negatives.
    """

    GROUP: ClassVar = "contrastive training"
    DETAILS: ClassVar = (
        "temperature_learning_rate",
        "group_size",
        "neighbour_search",
        "refresh_steps",
        "mlm_probability",
        "distill_weight",
        "include_prompt",
        "row_length",
    )
    RANGES: ClassVar = {
        **dict.fromkeys(
            ("temperature_learning_rate", "pooler_learning_rate", "mlm_weight", "distill_weight"), Range(at_least=0)
        ),
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
            "help": "Training objective. "
            + " ".join(f"'{name}' {objective.summary}." for name, objective in OBJECTIVES.items()),
            "choices": sorted(OBJECTIVES),
        },
    )
    temperature_learning_rate: float | None = field(
        default=None,
        metadata={"help": "Learning rate for --learn_temperature, without weight decay. Default: --learning_rate."},
    )
    no_duplicates: bool = field(
        default=False,
        metadata={"help": "Put rows that share a text into different batches. Not with --streaming or --shuffling."},
    )
    shuffling: str = field(
        default="random",
        metadata={
            "help": "Order of the rows: random, or rows with similar first texts (anchor, text or sentence1) in the "
            "same batch. neighbours groups texts with the nearest embeddings of the model, clusters groups texts by "
            "k-means of the embeddings, and words groups texts that share a token. Not with --streaming.",
            "choices": SHUFFLINGS,
        },
    )
    group_size: int = field(
        default=5,
        metadata={"help": "Number of distinct first texts per group of --shuffling; the average for clusters."},
    )
    neighbour_search: str = field(
        default="exact",
        metadata={
            "help": "Nearest-neighbor search of --shuffling neighbours: exact, or faiss, which is approximate, is "
            "faster from about 100,000 texts, and needs FAISS.",
            "choices": sorted(NEIGHBOUR_SEARCHES),
        },
    )
    refresh_steps: int | None = field(
        default=None,
        metadata={
            "help": "Number of batches after which --shuffling neighbours or clusters recomputes the embeddings and "
            "regroups the remaining rows of the epoch. Default: only at the start of each epoch."
        },
    )
    mlm_weight: float = field(
        default=0.0,
        metadata={
            "help": "Weight of an additional masked language modeling loss on the same texts; 0.15 in Oh et al. "
            "2022, 0.1 in SimCSE. Costs a second pass through the encoder. Default: 0 (off)."
        },
    )
    mlm_probability: float = field(default=0.15, metadata={"help": "Fraction of the tokens to mask for --mlm_weight."})
    distill_weight: float | None = field(
        default=None,
        metadata={"help": "Weight of the distillation from --teacher, which is added to --objective. Default: 1."},
    )
    pooler_learning_rate: float | None = field(
        default=None,
        metadata={
            "help": "Learning rate of the pooler, with the same schedule as --learning_rate. "
            f"Default: {_RATES}; --learning_rate for other poolers, with --freeze_encoder and under DeepSpeed."
        },
    )
    max_seq_length: int | None = field(
        default=None,
        metadata={
            "help": "Maximum number of tokens of a text, special tokens included; saved with the tokenizer. "
            "Default: the tokenizer's model_max_length, or the encoder's number of positions if that is smaller."
        },
    )
    prompts: list[str] | None = field(
        default=None,
        metadata={
            "help": "Texts to put before those of a column, as NAME=TEXT: anchor='query: ' positive='passage: '. A "
            "negative has the prompt of the positives unless it has its own. The model keeps them. Default: the "
            "prompts that the checkpoint has; none drops them."
        },
    )
    include_prompt: bool | None = field(
        default=None,
        metadata={
            "help": "Whether the token means of the pooler count the tokens of a prompt. Default: the checkpoint's "
            "setting, or true.",
            "nargs": "?",
            "const": True,
        },
    )
    row_length: int | None = field(
        default=None,
        metadata={
            "help": "Length of a packed row in tokens. Default: the one with the least computation, chosen per batch."
        },
    )
    gradient_cache: int | None = field(
        default=None,
        metadata={
            "help": "Turn on gradient caching, with this many tokens per chunk. The trainer embeds the batch chunk by "
            "chunk without gradients, computes the loss of the whole batch, then embeds each chunk again with "
            "gradients. The encoder's activation memory then depends on the chunk size, not on the batch size. Costs "
            "a second forward pass. Default: off."
        },
    )

    def __post_init__(self):
        super().__post_init__()
        if self.prompts is not None:
            self.prompts: dict[str, str] | None = parse_prompts(self.prompts)
        self._check_used()
        OBJECTIVES[self.objective].check_options(self)
        DistillObjective.check_options(self)
        if self.layer_negatives and self.torch_compile:
            raise InputError("layer_negatives reads hidden states where torch_compile cannot; drop one of them")
        if self.shuffling != "random" and self.no_duplicates:
            raise InputError("no_duplicates keeps texts apart that shuffling puts together; choose one of them")
        if self.neighbour_search == "faiss":
            require_faiss()
        if self.freeze_encoder and self.objective == "unsupervised":
            raise InputError(
                "freeze_encoder turns off the dropout that objective=unsupervised makes two views of a text with; "
                "drop one of them"
            )
        if self.freeze_encoder and self.mlm_weight > 0:
            raise InputError("mlm_weight trains the encoder, which freeze_encoder leaves as it is; drop one of them")

    def _check_used(self) -> None:
        """Refuse options that have no effect because of another option."""
        # A teacher, of which the trainer knows, adds distillation to any objective.
        read = {option.name for kind in (self.objective, "distill") for option in fields(OBJECTIVES[kind].Options)}
        unread = {option.name for options in OBJECTIVE_OPTIONS for option in fields(options)} - read
        embeds = self.shuffling in ("neighbours", "clusters")
        for names, is_read, reason in (
            (unread, False, f"with objective={self.objective}"),
            (("temperature_learning_rate",), self.learn_temperature, "without learn_temperature"),
            (("group_size",), self.shuffling != "random", "without shuffling"),
            (("neighbour_search",), self.shuffling == "neighbours", "without shuffling=neighbours"),
            (("refresh_steps",), embeds, "without shuffling=neighbours or clusters"),
            (("mlm_probability",), self.mlm_weight > 0, "without mlm_weight"),
        ):
            check_used(self, dict.fromkeys(names, is_read), reason)


@dataclass
class DataArguments(TrainDataArguments):
    """The data to train on, and to choose the checkpoint by."""

    GROUP: ClassVar = TrainDataArguments.GROUP
    COLUMN_NAMES: ClassVar = ("anchor", "positive", "negative", "negative_N", "text", *SCORED_PAIR_COLUMNS)

    train_file: list[str] | None = field(
        default=None,
        metadata={
            "help": "Training data: jsonl, csv, tsv, txt (also .gz) or parquet files, as FILE or FILE=WEIGHT, with "
            "the columns that --objective reads. Each batch comes from one of them."
        },
    )
    dataset_name: list[str] | None = field(
        default=None,
        metadata={
            "help": "Datasets on the Hub, used instead of --train_file, as NAME[:CONFIG][:SPLIT][=WEIGHT], or files. "
            "Each batch comes from one of them: in proportion to their sizes, or to their weights."
        },
    )
    validation_file: list[str] | None = field(
        default=None,
        metadata={
            "help": "Data for evaluation and for choosing the best checkpoint: scored pairs (Spearman, Pearson), "
            "labeled pairs (average precision), a BEIR folder (retrieval metrics), or rows like the training data "
            "(loss). Several sets as FILE or NAME=FILE ...; the best checkpoint has the highest mean of their main "
            "metrics. A name such as stsb alone is a built-in set of run_evaluation.py."
        },
    )

    def __post_init__(self):
        super().__post_init__()
        datasets = self.dataset_name or []
        if self.dataset_config_name is not None and len(datasets) > 1:
            raise InputError("--dataset_config_name is for one dataset; of several, name each as NAME:CONFIG")
        self.sources = parse_sources(self.train_file or [], datasets, self.dataset_config_name, self.dataset_split)
        if self.streaming and len(self.sources) > 1:
            raise InputError("--streaming reads one file or dataset; leave it out, or give one")

    @property
    def dataset_weights(self) -> dict[str, float] | None:
        """The weights of the sources by their labels, if they have any."""
        weights = {source.label: source.weight for source in self.sources if source.weight is not None}
        return weights or None


@dataclass
class EncoderArguments:
    """Other encoders that a run learns from."""

    GROUP: ClassVar = DistillOptions.GROUP
    DETAILS: ClassVar = ("embedding_cache_dir",)

    teacher: list[str] = field(
        default_factory=list,
        metadata={
            "help": f"Encoders to learn from, in addition to --objective: folders or Hub model IDs of any kind, or "
            f"{SELF} for the checkpoint itself. Each embeds the texts once."
        },
    )
    guide: str | None = field(
        default=None,
        metadata={
            "help": "Encoder that says which texts are no negatives: those that it finds more similar to the anchor "
            "than its positive (GISTEmbed)."
        },
    )
    embedding_cache_dir: str | None = field(
        default=None,
        metadata={
            "help": "Folder of the embeddings of --teacher and --guide, which runs on the same texts can share. "
            f"Default: the folder {EMBEDDINGS_FOLDER} in --output_dir."
        },
    )

    def __post_init__(self):
        check_arguments(self)
        check_used(self, {"embedding_cache_dir": bool(self.groups)}, "without a teacher or a guide")

    @property
    def groups(self) -> dict[str, list[str]]:
        """The encoders by what they are for."""
        given = {TEACHER: self.teacher, GUIDE: [] if self.guide is None else [self.guide]}
        return {group: names for group, names in given.items() if names}
