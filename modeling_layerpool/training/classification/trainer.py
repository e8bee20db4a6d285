"""Fine-tuning a classifier on the pooled vector."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
import torch.distributed as dist
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import DataCollatorWithPadding, EarlyStoppingCallback, PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_utils import EvalPrediction, PredictionOutput

from ...common.card_facts import CardFacts, with_pooler
from ...common.errors import InputError
from ..base import LayerPoolTrainer, check_rows
from ..frozen import TRAINED_FROZEN, FrozenTexts, freeze_encoder, frozen_texts, keep_frozen
from .arguments import ClassificationTrainingArguments
from .data import LabelledTexts
from .labels import METRIC_NAMES, Labels
from .sampler import LengthGroupedBatchSampler


def tokenize_part(part: LabelledTexts, labels: Iterable[Any] | None, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """
    Tokenize the rows, cut at the tokenizer's `model_max_length`, into the inputs of the model, `length` in tokens,
    `labels` if they are given, and `row_number`.
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
    return Dataset.from_dict(columns).map(tokenize, batched=True, remove_columns=unneeded, desc="Tokenizing")


def restart_classifier(model: PreTrainedModel) -> None:
    """Initialize the classifier, and discard the weights that the checkpoint had for other classes."""
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
            Tokenized and labeled rows, from [`tokenize_part`].
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            The tokenizer that made them.
        compute_metrics (`Callable`, *optional*):
            Computes metrics from logits and labels, as in transformers.

    Other arguments, and the errors of a training, are those of
    [`~modeling_layerpool.training.base.LayerPoolTrainer`].

    Raises:
        InputError: there are fewer rows than processes, or label smoothing is set for anything but one class per row.
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
        if args.label_smoothing_factor != 0 and model.config.problem_type != "single_label_classification":
            raise InputError("--label_smoothing_factor needs one class per row; leave it out")
        if train_dataset is not None:
            check_rows(train_dataset, args.least_rows)
        if args.freeze_encoder:
            freeze_encoder(model)
        if eval_dataset is not None:
            eval_dataset = eval_dataset.select(_longest_first(eval_dataset))
        # Tensor cores are fastest with multiples of 8, but padding must not exceed the positions of the model.
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
        self.frozen = frozen_texts(self)
        if self.frozen is not None:
            self.data_collator = StatesCollator(self.frozen, self.data_collator)
        self._train_inputs = self._inputs_of(self.train_dataset)
        self.eval_dataset = self._inputs_of(self.eval_dataset)
        if args.early_stopping_patience is not None:
            self.add_callback(EarlyStoppingCallback(args.early_stopping_patience))

    def make_batch_sampler(self, batch_size: int, **options: Any) -> LengthGroupedBatchSampler:
        """Batches of rows of similar length, unless `train_sampling_strategy` says otherwise."""
        is_grouped = self.args.train_sampling_strategy == "group_by_length"
        lengths = list(self.train_dataset["length"]) if is_grouped else None
        return LengthGroupedBatchSampler(lengths, len(self.train_dataset), batch_size, **options)

    def rows_to_collate(self, sampler: LengthGroupedBatchSampler) -> Dataset:
        return self._train_inputs

    def _inputs_of(self, dataset: Dataset | None) -> Dataset | None:
        """The columns that the collator reads: the tokens, or the index of the states of a frozen encoder."""
        if dataset is None:
            return None
        labels = [name for name in ("labels",) if name in dataset.column_names]
        if self.frozen is None:
            names = self.processing_class.model_input_names
            return dataset.select_columns([*labels, *(name for name in names if name in dataset.column_names)])
        types = "token_type_ids"
        has_types = self.model.has_token_types and types in dataset.column_names
        indices = self.frozen.add(list(dataset["input_ids"]), list(dataset[types]) if has_types else None)
        # A name of the model's inputs, which transformers does not remove.
        return Dataset.from_dict({"encoder_states": indices} | {name: dataset[name] for name in labels})

    def get_eval_dataloader(self, eval_dataset: Dataset | None = None) -> DataLoader:
        with self._all_rows_in_order():
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Dataset) -> DataLoader:
        with self._all_rows_in_order():
            return super().get_test_dataloader(test_dataset)

    @contextmanager
    def _all_rows_in_order(self) -> Iterator[None]:
        # transformers applies these options of the training to evaluation and prediction, too.
        args = self.args
        kept = args.dataloader_drop_last, args.train_sampling_strategy
        args.dataloader_drop_last, args.train_sampling_strategy = False, "sequential"
        try:
            yield
        finally:
            args.dataloader_drop_last, args.train_sampling_strategy = kept

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ):
        """
        The loss of the model, weighted so that its mean over the processes is the mean over all rows of the batch.
        """
        keep_frozen(self)
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
        """The predictions of transformers, in the order of the rows; rows of similar length are computed together."""
        order = _longest_first(test_dataset)
        rows = self._inputs_of(test_dataset.select(order))
        output = super().predict(rows, ignore_keys, metric_key_prefix)
        back = np.argsort(order)
        labels = None if output.label_ids is None else output.label_ids[back]
        return output._replace(predictions=output.predictions[back], label_ids=labels)

    def is_finished(self) -> bool:
        """Whether the run had taken its last step, or had stopped early."""
        stopped = False
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, EarlyStoppingCallback) and self.args.early_stopping_patience is not None:
                # A resumed callback comes with the patience of the previous run.
                callback.early_stopping_patience = self.args.early_stopping_patience
                stopped |= callback.early_stopping_patience_counter >= callback.early_stopping_patience
        return stopped or super().is_finished()

    def card_facts(self) -> CardFacts:
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
        if args.freeze_encoder:
            settings["trained"] = TRAINED_FROZEN
        return replace(
            facts,
            task="text-classification",
            settings=settings | facts.settings,
            problem_type=labels.problem_type,
            labels=labels.names,
            is_head=args.save_head_only,
        )


class StatesCollator:
    """
    Reads the states of the rows of a batch: `encoder_states (b, n, 2, h)`, and `labels` if the rows have them.

    Args:
        frozen: the texts by their index, which a row has in `encoder_states`.
        of_tokens: collates rows that have tokens.
    """

    def __init__(self, frozen: FrozenTexts, of_tokens: Callable[[list[dict]], dict[str, Any]]):
        self.frozen, self.of_tokens = frozen, of_tokens

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        if "encoder_states" not in features[0]:
            return self.of_tokens(features)
        batch = {"encoder_states": self.frozen.states(np.array([row["encoder_states"] for row in features]))}
        if "labels" in features[0]:
            batch["labels"] = torch.tensor([row["labels"] for row in features])
        return batch


def _longest_first(dataset: Dataset) -> np.ndarray:
    return np.argsort(dataset["length"], kind="stable")[::-1]
