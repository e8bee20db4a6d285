"""
The trainer of masked language models.

Notation: `rows` blocks of `length` tokens in a batch. A sequence is a text between its special tokens, or the part of
one that lies in a block; sequences of one batch have different numbers, and -1 is the padding.
"""

import inspect
import logging
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from datasets import Dataset, IterableDataset
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_utils import EvalLoopOutput

from ...common.checkpoints import check_vocabulary
from ...common.errors import InputError
from ..batching import EpochDataLoader
from ..card_facts import CardFacts
from .arguments import MaskedLanguageArguments
from .blocks import BlockCollator, BlockReader, BlockSampler, StreamedBlocks, ValidationSampler
from .models import position_limit
from .token_contrast import CITATION, TokenContrastTrainer


# Of the masks of validation texts: not the run's seed, so that runs are measured on the same masks.
VALIDATION_SEED = 0

logger = logging.getLogger(__name__)


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
        """As in transformers but without logits, over the validation texts if there are any; then the evaluator."""
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

    def card_facts(self) -> CardFacts:
        """The facts of this run that a model card is made from."""
        args, facts, is_taco = self.args, super().card_facts(), self.args.objective == "taco"
        settings = {"objective": "masked language modelling"}
        if is_taco:
            settings["objective"] += f" + {args.token_contrast_weight:g} x token contrast (TACO)"
            settings["token contrast"] = (
                f"temperature {args.token_temperature:g}, window {args.token_window}, {args.token_negatives} "
                f"negatives, anchors: {args.token_anchors}, subtracted: {args.subtracted_state}"
            )
        settings["masked"] = (
            f"{args.mlm_probability:.0%} of the tokens: 80 % replaced by the mask, 10 % by random tokens, 10 % kept"
        )
        attention = "inside each text" if args.attend_within_documents else "over the whole block"
        settings["blocks"] = f"{args.max_seq_length} tokens, {args.block_packing}, attention {attention}"
        settings["blocks in a batch"] = f"{facts.batch_size}, all processes together"
        if args.gradient_accumulation_steps > 1:
            settings["batches in a step"] = f"{args.gradient_accumulation_steps}"
        return replace(
            facts,
            task="fill-mask",
            model={"vocabulary": f"{len(self.processing_class):,} tokens", **facts.model},
            settings=settings,
            citations=[CITATION] if is_taco else [],
            mask_token=self.processing_class.mask_token,
        )
