"""Fine-tuning a classifier on the pooled vector."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
import torch.distributed as dist
from datasets import Dataset
from torch.utils.data import DataLoader, SequentialSampler
from transformers import DataCollatorWithPadding, EarlyStoppingCallback, PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_utils import EvalPrediction, PredictionOutput

from ...common.errors import InputError
from ..base import LayerPoolTrainer
from ..batching import EpochDataLoader
from ..card_facts import CardFacts, with_pooler
from .arguments import ClassificationTrainingArguments
from .data import LabelledTexts
from .labels import METRIC_NAMES, Labels
from .sampler import LengthGroupedBatchSampler


def tokenize_part(part: LabelledTexts, labels: Iterable[Any] | None, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """
    The model's input of each row, cut at the tokenizer's `model_max_length`: its own columns, `length` in tokens,
    `labels` where they are given, and `row_number`.
    """
    columns = {"row_number": part.row_numbers, "text": part.texts[0]}
    if len(part.texts) == 2:
        columns["text_pair"] = part.texts[1]
    if labels is not None:
        columns["labels"] = list(labels)

    def tokenize(batch: dict[str, list]) -> dict[str, list]:
        inputs = tokenizer(batch["text"], batch.get("text_pair"), truncation=True, verbose=False)
        return {**inputs, "length": [len(ids) for ids in inputs["input_ids"]]}

    unneeded = [column for column in ("text", "text_pair") if column in columns]
    return Dataset.from_dict(columns).map(tokenize, batched=True, remove_columns=unneeded, desc="Tokenising")


def restart_classifier(model: PreTrainedModel) -> None:
    """Start the classifier afresh, whatever the checkpoint had there for other classes or another vector."""
    torch.nn.init.normal_(model.classifier.weight, std=model.config.initializer_range)
    torch.nn.init.zeros_(model.classifier.bias)


class ClassificationTrainer(LayerPoolTrainer):
    r"""
    Trains a layer-pooled classifier on padded batches.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            A layer-pooled classifier.
        args ([`ClassificationTrainingArguments`]):
            The options of the run.
        train_dataset, eval_dataset (`datasets.Dataset`, *optional*):
            Tokenised and labelled rows, from [`tokenize_part`].
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            The tokenizer that made them.
        compute_metrics (`Callable`, *optional*):
            As in transformers: metrics by name, of logits and labels.
        write_model_card (`Callable`, *optional*):
            Called with this trainer to write the card of `args.output_dir`. Default: the card of transformers.

    Other arguments are the Trainer's.

    Raises:
        InputError: several devices without `accelerate launch`, fewer rows than processes, or label smoothing of
            anything but one class a row.
        NonFiniteLossError: the loss is NaN or infinite; raised at the next logging or saving step.
        CheckpointWriteError: a checkpoint could not be written, as on a full disk; older ones stay whole.
    """

    METRICS: ClassVar = {name: name != "loss" for names in METRIC_NAMES.values() for name in names}

    def __init__(
        self,
        model: PreTrainedModel,
        args: ClassificationTrainingArguments,
        *,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | None = None,
        processing_class: PreTrainedTokenizerBase,
        compute_metrics: Callable[[EvalPrediction], dict[str, float]] | None = None,
        **kwargs: Any,
    ):
        if args.n_gpu > 1:
            raise InputError(
                f"{args.n_gpu} devices are visible to one process: start one process for each with `accelerate "
                "launch`, or choose one with CUDA_VISIBLE_DEVICES"
            )
        if args.label_smoothing_factor != 0 and model.config.problem_type != "single_label_classification":
            raise InputError("--label_smoothing_factor needs labels that are one class a row; leave it out")
        if train_dataset is not None:
            needed = args.world_size * (args.per_device_train_batch_size if args.dataloader_drop_last else 1)
            if len(train_dataset) < needed:
                raise InputError(f"{len(train_dataset)} training row(s) do not make a batch; {needed} are needed")
        if eval_dataset is not None:
            eval_dataset = _inputs_of(eval_dataset.select(_longest_first(eval_dataset)), processing_class)
        # Tensor cores want widths in eights; but a row must not grow beyond the positions of the model.
        fits = -(-processing_class.model_max_length // 8) * 8 <= model.max_tokens
        super().__init__(
            model,
            args,
            data_collator=DataCollatorWithPadding(processing_class, pad_to_multiple_of=8 if fits else None),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            compute_metrics=compute_metrics,
            **kwargs,
        )
        if args.early_stopping_patience is not None:
            self.add_callback(EarlyStoppingCallback(args.early_stopping_patience))

    def get_train_dataloader(self) -> DataLoader:
        """
        Batches of this process, of rows of similar length unless `train_sampling_strategy` says otherwise.

        The sampler of transformers draws from the global random state: a resumed run would get other batches, and
        processes could disagree about them. Not prepared by accelerate: they are already this process's share.
        """
        args, dataset = self.args, self.train_dataset
        sampler = LengthGroupedBatchSampler(
            list(dataset["length"]) if args.train_sampling_strategy == "group_by_length" else None,
            len(dataset),
            self._train_batch_size * args.world_size,
            rank=args.process_index,
            world_size=args.world_size,
            shuffle=args.train_sampling_strategy != "sequential",
            seed=args.seed if args.data_seed is None else args.data_seed,
            drop_last=args.dataloader_drop_last,
        )
        return EpochDataLoader(
            _inputs_of(dataset, self.processing_class),
            batch_sampler=sampler,
            collate_fn=self.data_collator,
            **self.worker_options(),
        )

    def _get_dataloader(self, *args: Any, **kwargs: Any) -> DataLoader:
        # For rows to measure or to predict, of which `dataloader_drop_last` would leave some out.
        drop_last, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            return super()._get_dataloader(*args, **kwargs)
        finally:
            self.args.dataloader_drop_last = drop_last

    def _get_eval_sampler(self, eval_dataset: Dataset) -> SequentialSampler:
        # With group_by_length transformers shuffles here, too, and predictions would belong to other rows.
        return SequentialSampler(eval_dataset)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ):
        """The model's loss, so weighted that the mean over the processes is that over all rows of the batch."""
        rows = len(inputs["labels"])
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if model.training and self.args.world_size > 1:
            total = torch.tensor(float(rows), device=loss.device)
            dist.all_reduce(total)
            loss = loss * (rows * self.args.world_size / total)
        return (loss, outputs) if return_outputs else loss

    def predict(
        self, test_dataset: Dataset, ignore_keys: list[str] | None = None, metric_key_prefix: str = "test"
    ) -> PredictionOutput:
        """As in transformers, in the order of the rows; on the way rows of similar length are computed together."""
        order = _longest_first(test_dataset)
        rows = _inputs_of(test_dataset.select(order), self.processing_class)
        output = super().predict(rows, ignore_keys, metric_key_prefix)
        back = np.argsort(order)
        labels = None if output.label_ids is None else output.label_ids[back]
        return output._replace(predictions=output.predictions[back], label_ids=labels)

    def _init_training_state(self, max_steps: int, steps_an_epoch: int, epochs: int, *args: Any) -> tuple[int, int]:
        trained = super()._init_training_state(max_steps, steps_an_epoch, epochs, *args)
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, EarlyStoppingCallback) and self.args.early_stopping_patience is not None:
                # A resumed callback comes with the patience of the run before.
                callback.early_stopping_patience = self.args.early_stopping_patience
                if callback.early_stopping_patience_counter >= callback.early_stopping_patience:
                    return epochs, 0  # that run had stopped; transformers would train on to the next evaluation
        return trained

    def card_facts(self) -> CardFacts:
        """The facts of this run that a model card is made from."""
        args, labels = self.args, Labels.from_config(self.model.config.to_dict())
        output = {"pooled vector": f"{self.model.embedding_dim} wide", "problem type": f"`{labels.problem_type}`"}
        if labels.problem_type != "regression":
            output["classes"] = ", ".join(f"`{name}`" for name in labels.names)
        facts = with_pooler(super().card_facts(), self.model, output)
        sampling = args.train_sampling_strategy
        settings = {"rows in a batch": f"{facts.batch_size}, all processes together; sampling: {sampling}"}
        if args.gradient_accumulation_steps > 1:
            settings["batches in a step"] = f"{args.gradient_accumulation_steps}"
        if args.early_stopping_patience is not None:
            settings["early stopping"] = f"after {args.early_stopping_patience} evaluations without improvement"
        return replace(
            facts,
            task="text-classification",
            settings=settings | facts.settings,
            problem_type=labels.problem_type,
            labels=labels.names,
        )


def _inputs_of(dataset: Dataset, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """What the collator makes batches of."""
    columns = {*tokenizer.model_input_names, "labels"}
    return dataset.select_columns([column for column in dataset.column_names if column in columns])


def _longest_first(dataset: Dataset) -> np.ndarray:
    return np.argsort(dataset["length"], kind="stable")[::-1]
