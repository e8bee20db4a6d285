"""
Masked language modelling: its arguments, texts, models and trainer.

Notation: `rows` blocks of `length` tokens in a batch. A sequence is a text between its special tokens, or the part of
one that lies in a block; sequences of one batch have different numbers, and -1 is the padding.
"""

import inspect
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from datasets import Dataset, IterableDataset
from datasets.exceptions import DatasetGenerationError
from torch.utils.data import DataLoader
from transformers import (
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoModelForMaskedLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.trainer_utils import EvalLoopOutput

from ..checkpoints import check_sizes, check_vocabulary, check_weights, load_tokenizer, loading_errors, read_config
from ..command_line import Range, check_arguments, check_used
from ..errors import InputError
from ..rows import check_text, read_rows, require_columns
from .arguments import DTYPES
from .batching import EpochDataLoader
from .blocks import BLOCK_PACKINGS, BlockCollator, BlockReader, BlockSampler, StreamedBlocks, ValidationSampler
from .data import file_identity
from .own_tokenizer import DEFAULT_VOCAB_SIZE
from .token_contrast import TokenContrastArguments, TokenContrastTrainer


# Of the masks of validation texts: not the run's seed, so that runs are measured on the same masks.
VALIDATION_SEED = 0

logger = logging.getLogger(__name__)


@dataclass
class LanguageModelArguments:
    """Which model to train: a new one of a type, or a checkpoint."""

    RANGES: ClassVar = {"vocab_size": Range(at_least=1, at_most=10_000_000)}

    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Go on from a checkpoint that AutoModelForMaskedLM opens: a folder or a Hub name."},
    )
    model_type: str | None = field(
        default=None, metadata={"help": "Start a new model of this type, as the library names it: bert, roberta, ..."}
    )
    config_overrides: str | None = field(
        default=None,
        metadata={
            "help": "Of a new model: fields of its configuration, such as hidden_size=256,num_hidden_layers=4. "
            "Default: the library's configuration of that type."
        },
    )
    tokenizer_name: str | None = field(
        default=None,
        metadata={"help": "Of a new model: its tokenizer. Default: one is trained on the training texts."},
    )
    vocab_size: int | None = field(
        default=None,
        metadata={"help": f"Tokens of a tokenizer that is trained. Default: {DEFAULT_VOCAB_SIZE:,}."},
    )
    attn_implementation: str | None = field(
        default=None, metadata={"help": "sdpa, eager, ... Default: the library's choice."}
    )
    dtype: str | None = field(
        default=None,
        metadata={
            "help": "Hold the weights in this type, or in the checkpoint's (auto). Default: float32 to train, which "
            "--bf16 and --fp16 leave so; else the checkpoint's.",
            "choices": DTYPES,
        },
    )
    revision: str = field(default="main", metadata={"help": "Branch, tag or commit of a checkpoint on the Hub."})
    allow_pickle: bool = field(
        default=False, metadata={"help": "Accept weights that are pickled, if there are no safetensors."}
    )

    def __post_init__(self):
        check_arguments(self)
        if (self.model_name_or_path is None) == (self.model_type is None):
            raise InputError("give either --model_name_or_path, to go on from it, or --model_type, for a new model")
        for name in ("config_overrides", "tokenizer_name", "vocab_size"):
            if self.model_name_or_path is not None and getattr(self, name) is not None:
                raise InputError(f"--{name} is for a new model (--model_type); {self.model_name_or_path} has its own")
        if self.model_type is not None and self.dtype == "auto":
            raise InputError("--dtype auto is that of a checkpoint; a new model (--model_type) has none yet")
        if self.vocab_size is not None and self.tokenizer_name is not None:
            raise InputError(
                "--vocab_size is for a tokenizer that is trained; --tokenizer_name has its own vocabulary"
            )
        check_used(self, {"revision": self.model_name_or_path is not None}, "without model_name_or_path")


@dataclass
class LanguageDataArguments:
    """Which texts to train on, and what to measure on."""

    RANGES: ClassVar = dict.fromkeys(("max_train_samples", "shuffle_buffer_size"), Range(at_least=1))

    train_file: list[str] | None = field(
        default=None,
        metadata={"help": "One or more files: txt, one text a line, or jsonl, csv, tsv with a column text; also .gz."},
    )
    dataset_name: str | None = field(
        default=None, metadata={"help": "A dataset on the Hub with a column text, in place of files."}
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Its configuration."})
    dataset_split: str = field(default="train", metadata={"help": "Its split."})
    streaming: bool = field(default=False, metadata={"help": "Read the texts as needed; needs --max_steps."})
    shuffle_buffer_size: int = field(default=10_000, metadata={"help": "Texts among which a stream is shuffled."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Use the first texts only."})
    validation_file: list[str] | None = field(
        default=None,
        metadata={"help": "Texts, like --train_file: loss, perplexity and accuracy on masks that stay the same."},
    )
    probe_file: str | None = field(
        default=None,
        metadata={
            "help": "Rows with sentence1, sentence2, score: how well the encoder's mean-pooled last layer tells "
            "similar sentences, as it is, at each evaluation."
        },
    )

    def __post_init__(self):
        check_arguments(self)
        if self.train_file is not None and self.dataset_name is not None:
            raise InputError("give the training texts as either --train_file or --dataset_name")
        if self.streaming and self.max_train_samples is not None:
            raise InputError("--max_train_samples does nothing with --streaming; use --max_steps")
        check_used(self, {"shuffle_buffer_size": self.streaming}, "without streaming")
        of_hub = dict.fromkeys(("dataset_config_name", "dataset_split"), self.dataset_name is not None)
        check_used(self, of_hub, "without dataset_name")

    @property
    def has_train_data(self) -> bool:
        return self.train_file is not None or self.dataset_name is not None

    @property
    def evaluation_files(self) -> list[str]:
        """All that is measured on."""
        return [*(self.validation_file or []), *([self.probe_file] if self.probe_file else [])]

    @property
    def hub_parts(self) -> dict[str, str]:
        """Of texts on the Hub: the configuration, if any, under `config`, and the split under `train`."""
        if self.dataset_name is None:
            return {}
        config = self.dataset_config_name
        return ({} if config is None else {"config": config}) | {"train": self.dataset_split}


@dataclass
class MaskedLanguageArguments(TokenContrastArguments):
    """[`TokenContrastArguments`], and how texts are laid into blocks and masked."""

    RANGES: ClassVar = {
        "max_seq_length": Range(at_least=3, at_most=1_000_000),  # a text needs room between its special tokens
        "mlm_probability": Range(above=0, below=1),
    }

    max_seq_length: int = field(
        default=256, metadata={"help": "Tokens in a block, special tokens included: at most the model's positions."}
    )
    block_packing: str = field(
        default="pack",
        metadata={
            "help": "How texts are laid into blocks: 'pack' (each whole in one block, where it fits; longer ones are "
            "cut) or 'concatenate' (one behind the other, cut wherever a block is full).",
            "choices": BLOCK_PACKINGS,
        },
    )
    attend_within_documents: bool = field(
        default=False,
        metadata={"help": "Attend to the own text only, with positions that restart. Default: to the whole block."},
    )
    mlm_probability: float = field(default=0.15, metadata={"help": "Share of the tokens that are masked."})
    plot_curves: bool = field(
        default=False, metadata={"help": "Write curves.png at the end, with matplotlib (the extra 'plots')."}
    )

    def __post_init__(self):
        check_arguments(self)
        if self.block_packing not in BLOCK_PACKINGS:
            raise InputError(f"block_packing={self.block_packing!r} is unknown; use {' or '.join(BLOCK_PACKINGS)}")
        super().__post_init__()


# --- texts ---


def load_texts(paths: Sequence[str], streaming: bool = False) -> Dataset | IterableDataset:
    """
    The texts of local files, one file behind the other (see [`~modeling_layerpool.rows.read_rows`]): rows with `text`.

    Args:
        paths: txt files, or jsonl, csv or tsv ones with a column `text`, also gzipped.
        streaming: read the files as they are needed, and check them then; several data workers share them.

    Raises:
        InputError: a file is missing, empty or broken, or a row has no text; with file and line.
    """
    for path in paths:
        _, first = next(read_rows(path), (0, None))
        if first is None:
            raise InputError(f"{path}: the file is empty")
    if streaming:
        return IterableDataset.from_generator(_checked_texts, gen_kwargs={"paths": list(paths)})  # a list is shards
    identities = tuple(file_identity(path) for path in paths)
    try:
        return Dataset.from_generator(_checked_texts, gen_kwargs={"paths": tuple(paths), "identities": identities})
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, InputError):
            raise error.__cause__ from None
        raise


def _checked_texts(paths: Sequence[str], identities: Any = None) -> Iterator[dict[str, str]]:
    for path in paths:
        for line, row in read_rows(path):
            where = f"{path}, line {line}"
            require_columns(row, ("text",), where)
            yield {"text": check_text(row["text"], where, "text")}


def tokenize_texts(
    dataset: Dataset | IterableDataset, tokenizer: PreTrainedTokenizerBase, piece_length: int | None, source: str
) -> Dataset | IterableDataset:
    """
    Tokenise texts, once: `datasets` caches the result, or does it on the fly when streaming.

    Args:
        dataset: rows with `text`. Empty texts, as a dataset on the Hub may have, are left out.
        piece_length: a longer text is cut into pieces of at most so many tokens, each between special tokens of its
            own. None: texts stay whole.
        source: the name of the data, for errors.

    Returns:
        Rows with `input_ids`, special tokens included, and their number, `length`; one for each text or piece.

    Raises:
        InputError: there is no column `text`, a text is of another type, or the tokenizer cannot cut.
    """
    if piece_length is not None and not tokenizer.is_fast:
        # Of a long text the other kind gives the first piece only.
        raise InputError("texts are cut by a fast tokenizer only; give one, or --block_packing concatenate")
    # A text whose every letter is dropped by the tokenizer would be special tokens around nothing.
    empty = len(tokenizer("")["input_ids"])

    def tokenize(batch: dict[str, list]) -> dict[str, list]:
        texts = [check_text(text, source, "text") for text in batch["text"] if text not in (None, "") and text.strip()]
        options = {"return_attention_mask": False, "return_token_type_ids": False, "verbose": False}
        if piece_length is not None:
            options |= {"truncation": True, "max_length": piece_length, "return_overflowing_tokens": True}
        pieces = [ids for ids in tokenizer(texts, **options)["input_ids"] if len(ids) > empty] if texts else []
        return {"input_ids": pieces, "length": [len(ids) for ids in pieces]}

    columns = dataset.column_names or list(next(iter(dataset)))
    require_columns(dict.fromkeys(columns), ("text",), source)
    options = {} if isinstance(dataset, IterableDataset) else {"desc": "Tokenising"}
    return dataset.map(tokenize, batched=True, remove_columns=columns, **options)


# --- models ---


def position_limit(model: PreTrainedModel) -> float:
    """How many tokens a model has positions for."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding):
            # RoBERTa and its kin count from behind the padding index.
            return module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
    return getattr(model.config, "max_position_embeddings", math.inf)


def new_config(model_type: str, overrides: str | None = None) -> PreTrainedConfig:
    """
    The library's configuration of a new masked language model.

    Args:
        model_type: as the library names it: `bert`, `roberta`, `modernbert`, ...
        overrides: fields and values, as in `hidden_size=256,num_hidden_layers=4`.

    Raises:
        InputError: there is no such model, field or value, or the values do not go together.
    """
    known = {config.model_type for config in MODEL_FOR_MASKED_LM_MAPPING}
    if model_type not in known:
        raise InputError(f"--model_type {model_type}: is unknown; use one of {', '.join(sorted(known))}")
    config = AutoConfig.for_model(model_type)
    values = {}
    for override in overrides.split(",") if overrides else ():
        name, equals, _ = override.partition("=")
        if not equals:
            raise InputError(f"--config_overrides {overrides}: {override!r} must read name=value")
        if not hasattr(config, name) or callable(getattr(config, name)):
            raise InputError(f"--config_overrides {overrides}: {model_type} has no field {name!r}")
        try:
            config.update_from_string(override)
        except (ValueError, TypeError) as error:
            raise InputError(f"--config_overrides {overrides}: {override} does not fit ({error})") from error
        values[name] = getattr(config, name)
    with loading_errors(f"--config_overrides {overrides}", "makes no configuration"):
        # Made anew, as some fields follow from others: ModernBERT's kinds of layers from their number.
        return AutoConfig.for_model(model_type, **values)


def start_model(
    config: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    attn_implementation: str | None = None,
    dtype: str | torch.dtype = torch.float32,
) -> PreTrainedModel:
    """
    A new model, whose vocabulary and special tokens are the tokenizer's.

    Args:
        config: of the model; it is changed in place.
        tokenizer: of the texts.
        attn_implementation: `sdpa`, `eager`, ... Default: the choice of transformers.
        dtype: of the weights. Default: `torch.float32`.

    Raises:
        InputError: no model can be made of the configuration.
    """
    config.vocab_size = len(tokenizer)
    for name in ("pad", "bos", "eos", "cls", "sep", "mask"):
        if hasattr(config, f"{name}_token_id"):
            setattr(config, f"{name}_token_id", getattr(tokenizer, f"{name}_token_id"))
    attention = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    with loading_errors(f"--model_type {config.model_type}", "no model can be made of this"):
        model = AutoModelForMaskedLM.from_config(config, dtype=dtype, **attention)
    _check_encoder(model, f"--model_type {config.model_type}")
    return model


def load_masked_language_model(
    name: str,
    *,
    revision: str = "main",
    allow_pickle: bool = False,
    attn_implementation: str | None = None,
    dtype: str | torch.dtype = torch.float32,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """
    Open a checkpoint that `AutoModelForMaskedLM` opens, with its tokenizer, for training. A head that it lacks starts
    anew.

    Args:
        name: a folder, or a name on the Hub.
        revision: branch, tag or commit on the Hub. Default: `"main"`.
        allow_pickle: accept weights that are pickled, if there are no safetensors. Default: False.
        attn_implementation: `sdpa`, `eager`, ... Default: the choice of transformers.
        dtype: of the weights, or `"auto"` for that of the file, as in transformers. Default: `torch.float32`, as
            weights in half precision lose small updates; mixed precision in training is autocast's.

    Raises:
        InputError: there is no such checkpoint, it is broken, it has no weights or tokenizer, its weights are pickled
            or not those of the encoder, or transformers has no masked language model of its type.
    """
    config = read_config(name, revision)
    classes = {known.model_type: known for known in MODEL_FOR_MASKED_LM_MAPPING}
    model_type = config.get("model_type")
    if model_type not in classes:
        raise InputError(f"{name}: there is no masked language model of type {model_type!r}")
    check_sizes(name, config, classes[model_type])
    if Path(name).is_dir():
        check_weights(Path(name), allow_pickle=allow_pickle)
    attention = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    with loading_errors(name):
        model, info = AutoModelForMaskedLM.from_pretrained(
            name,
            revision=revision,
            use_safetensors=None if allow_pickle else True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below, by name
            dtype=dtype,
            **attention,
        )
    absent = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
    of_encoder = sorted(key for key in absent if key.startswith(f"{model.base_model_prefix}."))
    if of_encoder:
        raise InputError(
            f"{name}: the weights are not those of the encoder that config.json describes: {len(of_encoder)} tensors "
            f"are missing or of another shape ({of_encoder[0]} for one)"
        )
    if absent:
        logger.warning(
            f"{name}: has no head for masked language modelling; it starts anew ({', '.join(sorted(absent))})"
        )
    tokenizer = load_tokenizer(name, revision)
    _check_encoder(model, name)
    return model, tokenizer


def _check_encoder(model: PreTrainedModel, name: str) -> None:
    if model.config.is_encoder_decoder:
        raise InputError(f"{name}: is no encoder but an encoder with a decoder")


# --- training ---


class MaskedLanguageTrainer(TokenContrastTrainer):
    r"""
    [`TokenContrastTrainer`] on texts that it lays into blocks, with masks of its own.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            A masked language model, as `AutoModelForMaskedLM` gives it.
        args ([`MaskedLanguageArguments`]):
            The options of the run. `per_device_train_batch_size` counts blocks.
        train_dataset, eval_dataset (`datasets.Dataset` or, to train on, `datasets.IterableDataset`, *optional*):
            The rows of [`tokenize_texts`]. Of validation texts the loss (`eval_mlm_loss`), `eval_perplexity`, its
            exponential, and `eval_masked_accuracy`, in percent, are measured, always on the same masks.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            The tokenizer that made them.
        evaluator (`Callable`, *optional*):
            Called with model and tokenizer at each evaluation, on the main process; its metrics are logged as
            `eval_<name>`.

    Other arguments are the Trainer's.

    Raises:
        InputError: as [`TokenContrastTrainer`], and if the texts do not make a batch, `max_seq_length` is beyond the
            positions of the model, the tokenizer has no mask token or more tokens than the model, or the model takes
            no positions, which `attend_within_documents` needs.
    """

    METRICS: ClassVar = {
        "loss": False,
        "mlm_loss": False,
        "perplexity": False,
        "masked_accuracy": True,
        "token_contrast_loss": False,
        "similarity_within": True,
        "similarity_between": False,
    }

    @classmethod
    def metrics_of(cls, args: MaskedLanguageArguments) -> dict[str, bool]:
        """What is measured on validation texts with these arguments, and whether more of it is better."""
        unmeasured = set() if args.measure_similarity else {"similarity_within", "similarity_between"}
        if args.objective == "mlm" and not args.measure_similarity:
            unmeasured.add("token_contrast_loss")
        return {name: more_is_better for name, more_is_better in cls.METRICS.items() if name not in unmeasured}

    def __init__(
        self,
        model: PreTrainedModel,
        args: MaskedLanguageArguments,
        *,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset | None = None,
        processing_class: PreTrainedTokenizerBase,
        evaluator: Callable[[PreTrainedModel, PreTrainedTokenizerBase], dict[str, float]] | None = None,
        **kwargs: Any,
    ):
        limit = position_limit(model)
        if args.max_seq_length > limit:
            raise InputError(f"max_seq_length={args.max_seq_length} is beyond the {limit} positions of the model")
        check_vocabulary(model, processing_class)
        if args.attend_within_documents and "position_ids" not in inspect.signature(model.forward).parameters:
            raise InputError(
                f"a model of type {model.config.model_type!r} takes no positions, which attend_within_documents "
                "needs; leave it out"
            )
        self.evaluator = evaluator
        self._predicted = torch.zeros(2, dtype=torch.long, device=args.device)  # correctly, and in all
        seed = args.seed if args.data_seed is None else args.data_seed
        super().__init__(
            model,
            args,
            data_collator=self._collator(args, processing_class, seed),
            train_dataset=train_dataset,
            # The Trainer wants a dataset wherever it is to evaluate; an empty one is not looked at.
            eval_dataset=Dataset.from_dict({"length": []}) if eval_dataset is None and evaluator else eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        if isinstance(train_dataset, Dataset):
            needed = args.world_size * (args.per_device_train_batch_size if args.dataloader_drop_last else 1)
            blocks = self._sampler(train_dataset, needed).rows
            if blocks < needed:
                raise InputError(
                    f"the training texts make {blocks} block(s) of {args.max_seq_length} tokens, and "
                    f"{needed} are needed"
                )

    @staticmethod
    def _collator(args: MaskedLanguageArguments, tokenizer: PreTrainedTokenizerBase, seed: int) -> BlockCollator:
        return BlockCollator(
            tokenizer,
            args.max_seq_length,
            args.mlm_probability,
            attend_within_documents=args.attend_within_documents,
            seed=seed,
        )

    def _sampler(self, dataset: Dataset, batch_size: int, **options: Any) -> BlockSampler:
        return BlockSampler(
            dataset["length"][:], self.args.max_seq_length, self.args.block_packing, batch_size, **options
        )

    def get_train_dataloader(self) -> DataLoader:
        """Batches of this process. Not prepared by accelerate: they are already its share, and it would cut again."""
        args, workers = self.args, self.worker_options()
        place = {"rank": args.process_index, "world_size": args.world_size, "seed": self.data_collator.masking.seed}
        batch_size = self._train_batch_size * args.world_size
        if isinstance(self.train_dataset, IterableDataset):
            batches = StreamedBlocks(self.train_dataset, args.max_seq_length, args.block_packing, batch_size, **place)
            # A worker without a shard of the stream would have nothing to do.
            workers["num_workers"] = min(workers["num_workers"], self.train_dataset.num_shards)
            return DataLoader(batches, batch_size=None, collate_fn=self.data_collator, **workers)
        sampler = self._sampler(
            self.train_dataset,
            batch_size,
            **place,
            shuffle=args.train_sampling_strategy != "sequential",
            drop_last=args.dataloader_drop_last,
        )
        reader = BlockReader(self.train_dataset, sampler.rows)
        return EpochDataLoader(reader, batch_sampler=sampler, collate_fn=self.data_collator, **workers)

    # --- evaluation ---

    def get_eval_dataloader(self, eval_dataset: Dataset | None = None) -> DataLoader:
        """This process's share of the validation blocks, in the order of the texts, masked by a seed of their own."""
        args = self.args
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        sampler = ValidationSampler(
            dataset["length"][:],
            args.max_seq_length,
            args.block_packing,
            args.eval_batch_size * args.world_size,
            rank=args.process_index,
            world_size=args.world_size,
            shuffle=False,
        )
        collator = self._collator(args, self.processing_class, VALIDATION_SEED)
        return DataLoader(
            BlockReader(dataset, sampler.rows), batch_sampler=sampler, collate_fn=collator, **self.worker_options()
        )

    def _count(self, logits: torch.Tensor, labels: torch.Tensor) -> None:
        right = (logits.argmax(dim=-1) == labels).sum()
        self._predicted += torch.stack([right, torch.full_like(right, len(labels))])

    def evaluation_loop(
        self, dataloader: DataLoader, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any
    ) -> EvalLoopOutput:
        """The library's, which keeps no logits, over the validation texts if there are any; then the evaluator."""
        metrics: dict[str, float] = {}
        output = EvalLoopOutput(predictions=None, label_ids=None, metrics={}, num_samples=0)
        if len(dataloader) > 0:
            self._predicted.zero_()
            output = super().evaluation_loop(dataloader, *args, metric_key_prefix=metric_key_prefix, **kwargs)
            if self.args.world_size > 1:
                dist.all_reduce(self._predicted)
            right, predicted = self._predicted.tolist()
            metrics["masked_accuracy"] = 100 * right / max(1, predicted)
            metrics["perplexity"] = math.exp(min(700.0, output.metrics[f"{metric_key_prefix}_mlm_loss"]))
        if self.evaluator is not None:
            metrics |= self._evaluate_on_main_process()
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in metrics.items()})
        return output

    def _evaluate_on_main_process(self) -> dict[str, float]:
        shared = [{}]
        if self.args.process_index == 0:
            was_training = self.model.training
            self.model.eval()
            shared = [self.evaluator(self.model, self.processing_class)]
            self.model.train(was_training)
        if self.args.world_size > 1:
            dist.broadcast_object_list(shared, src=0)
        return shared[0]
