"""The transformers Trainer with a contrastive loss on packed batches."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from accelerate.utils import send_to_device
from datasets import Dataset, IterableDataset
from torch import nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from ...common.card_facts import CardFacts
from ...common.errors import InputError
from ...common.text_embeddings import TextEmbeddings
from ..base import Evaluator, LayerPoolTrainer, check_rows
from ..batching import (
    GlobalBatchSampler,
    StreamedBatches,
    chunks_of,
    local_rows,
    model_inputs,
)
from ..data import set_max_seq_length
from ..distributed import gather_rows, rows_of_all, same_on_all
from ..frozen import frozen_texts, keep_frozen
from ..lora import check_adapter, has_adapter
from ..mlm_head import MaskedLanguageHead
from .arguments import ContrastiveTrainingArguments
from .card import contrastive_facts
from .data import check_row_length, is_tokenized, make_collator, text_names, tokenize_dataset
from .embedded_rows import EmbeddingCollator, check_groups, other_embeddings, prepare_distillation, with_indices
from .engines import WholeModel, check_engine
from .extra_modules import ExtraModules, ExtraModulesCallback
from .frozen_batches import read_states, states_of
from .gradient_cache import cached_step
from .mlm_term import MaskedLanguageTerm
from .neighbours import NeighbourBatchSampler, load_plan
from .objectives import OBJECTIVES
from .objectives.base import EmbeddedBatch, Objective
from .parameter_groups import add_parameter_groups, choose_trained_parameters
from .prompts import RunPrompts
from .representation import Representation
from .sampling import Mixture, make_batch_sampler


# The Trainer requires an evaluation dataset, even if only the evaluator is to run.
_NO_ROWS = Dataset.from_dict({})


class ContrastiveTrainer(LayerPoolTrainer):
    r"""
    Trains a layer-pooled encoder on packed batches with a contrastive objective.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            A layer-pooled encoder, or a `peft.PeftModel` of one.
        args ([`ContrastiveTrainingArguments`]):
            The options of the run and of its objective.
        train_dataset, eval_dataset (`datasets.Dataset` or `datasets.IterableDataset`, *optional*):
            Rows with the text columns that the objective names; tokenized here, unless they are already. An evaluation
            dataset gives `eval_loss`, the mean over its rows. A dictionary of training datasets is mixed: each batch
            comes from one of them. They may differ in their columns.
        dataset_weights (`Mapping[str, float]`, *optional*):
            The share of each of these datasets in the batches; defaults to the number of its batches.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            The tokenizer. Its `model_max_length` becomes `args.max_seq_length`, if given.
        data_collator (`Callable`, *optional*):
            Makes a batch of tokenized rows; defaults to a [`PackingCollator`].
        objective ([`Objective`], *optional*):
            Defaults to the one that `args` names.
        mlm_head ([`MaskedLanguageHead`], *optional*):
            The head that `args.mlm_weight` trains; defaults to a new one. It is saved next to the model, as the
            parameters of an objective are.
        text_embeddings ([`TextEmbeddings`], *optional*):
            Embeddings of all texts by other encoders ([`embed_texts`]). Those of the group `"teacher"` are learned, in
            addition to the objective or with the objective `distill`. The group `"guide"` says which texts are no
            negatives.
        evaluator (`Callable`, *optional*):
            Called with model and tokenizer at each evaluation; its metrics are logged as `eval_<name>`.

    Other arguments, and the errors of a training, are those of
    [`~modeling_layerpool.training.base.LayerPoolTrainer`].

    Raises:
        InputError: a batch has one row, a needed column is missing, a text is empty, `max_seq_length` is beyond the
            positions of the model, an adapter changes a layer that the pooler does not read, or an option does not
            work with FSDP or DeepSpeed.
    """

    # The loss is a mean over the batch, so the Trainer has to divide it by the accumulation steps.
    loss_is_scaled_for_ga = False
    advice = "lower --learning_rate, raise --temperature"
    grouped_by = "pooler_type, pooler_learning_rate, freeze_encoder"

    def __init__(
        self,
        model: PreTrainedModel,
        args: ContrastiveTrainingArguments,
        *,
        train_dataset: Dataset | IterableDataset | Mapping[str, Dataset] | None = None,
        dataset_weights: Mapping[str, float] | None = None,
        eval_dataset: Dataset | None = None,
        processing_class: PreTrainedTokenizerBase,
        data_collator: Callable[[list[dict[str, Any]]], dict[str, Any]] | None = None,
        objective: Objective | None = None,
        mlm_head: MaskedLanguageHead | None = None,
        text_embeddings: TextEmbeddings | None = None,
        evaluator: Evaluator | None = None,
        **kwargs: Any,
    ):
        if args.per_device_train_batch_size * args.world_size < 2:
            raise InputError("per_device_train_batch_size=1 leaves a batch without negatives; use at least 2")
        if has_adapter(model):
            check_adapter(model)
        choose_trained_parameters(model, args)
        self.objective = objective or OBJECTIVES[args.objective].from_arguments(args)
        self.representation = Representation(model, getattr(self.objective.options, "layer_negatives", None))
        self.text_embeddings = text_embeddings
        has_rows = train_dataset is not None or eval_dataset is not None
        check_groups(self.objective, args, text_embeddings.files if text_embeddings else (), has_rows)
        self.distillation = prepare_distillation(self.objective, args, text_embeddings, model.embedding_dim)
        self.mlm_head = None
        if args.mlm_weight > 0 and train_dataset is not None:
            self.mlm_head = mlm_head or MaskedLanguageHead.of_encoder(model)
        self.extra_modules = ExtraModules({"objective": self.objective})
        if self.distillation is not None:
            self.extra_modules["distillation"] = self.distillation.objective
        if self.mlm_head is not None:
            self.extra_modules["mlm_head"] = self.mlm_head
        self.evaluator = evaluator
        self._neighbours: NeighbourBatchSampler | None = None
        self._saved_plan: tuple[list[int], int] | None = None
        self.columns: list[str] | None = None
        self.mixture: Mixture | None = None
        set_max_seq_length(model, processing_class, args.max_seq_length)
        self.prompts = RunPrompts(model, processing_class, args)
        with args.main_process_first(desc="tokenizing"):
            if isinstance(train_dataset, Mapping):
                columns = {name: self._columns_of(part, name) for name, part in train_dataset.items()}
                self.prompts.choose(list(dict.fromkeys(column for own in columns.values() for column in own)))
                parts = {}
                for name, part in train_dataset.items():
                    self.columns = columns[name]
                    parts[name] = self._tokenize(part, processing_class, name), self.columns
                self.mixture = Mixture(parts, dataset_weights, args)
                train_dataset, self.columns = self.mixture.dataset, self.mixture.columns
            elif dataset_weights is not None:
                raise InputError("dataset_weights are for a dictionary of training datasets")
            else:
                train_dataset = self._tokenize(train_dataset, processing_class, "train_dataset")
            eval_dataset = self._tokenize(eval_dataset, processing_class, "eval_dataset")
        self.prompts.check_chosen()
        for dataset in (train_dataset, eval_dataset):
            check_row_length(args.row_length, dataset, processing_class.model_max_length)
        if isinstance(train_dataset, Dataset):
            check_rows(train_dataset, max(2, args.least_rows))
        if data_collator is None:
            columns = (self.columns or []) if self.mixture is None else self.mixture.every_column
            crop = getattr(self.objective.options, "crop", 1.0)
            masks = self.mlm_head is not None
            data_collator = make_collator(columns, model, processing_class, args, self.prompts, masks, crop)
        if evaluator is not None and eval_dataset is None:
            eval_dataset = _NO_ROWS
        super().__init__(
            model,
            args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        check_engine(self)
        model.choose_attention(args.device)
        self.frozen = frozen_texts(self)
        if self.frozen is not None:
            self.train_states, self.eval_dataset, self.data_collator = read_states(self)
        if text_embeddings is not None:
            columns = (self.columns or []) if self.mixture is None else self.mixture.every_column
            self.data_collator = EmbeddingCollator(self.data_collator, columns, text_embeddings)
        self._whole_model = WholeModel(self) if self.is_fsdp_enabled else None
        self.extra_modules.to(args.device)
        self.add_callback(ExtraModulesCallback(self.extra_modules))
        self.mlm_term = None
        if self.mlm_head is not None:
            self.mlm_term = MaskedLanguageTerm(self.mlm_head, args.mlm_weight, self.accelerator)

    # --- data ---

    def _columns_of(self, dataset: Dataset | IterableDataset, name: str) -> list[str]:
        return self.objective.select_columns(text_names(dataset), name)

    def _tokenize(
        self, dataset: Dataset | IterableDataset | None, tokenizer: PreTrainedTokenizerBase, name: str
    ) -> Dataset | IterableDataset | None:
        if dataset is None:
            return None
        columns = self._columns_of(dataset, name)
        if self.columns is None:
            self.columns = columns
            self.prompts.choose(columns)
        elif columns != self.columns:
            raise InputError(f"{name} has the columns {columns}, but the training data {self.columns}")
        if is_tokenized(dataset):
            if self.text_embeddings is not None:
                raise InputError(f"{name} is tokenized, and text_embeddings need its texts; give the texts instead")
            return dataset
        value_column = self.objective.value_column(text_names(dataset), name)
        value_range = self.objective.prepare(dataset, value_column, name)
        numbers, prompts = (value_column, value_range), self.prompts.by_column
        tokenized = tokenize_dataset(dataset, columns, tokenizer, tokenizer.model_max_length, name, *numbers, prompts)
        if self.text_embeddings is None:
            return tokenized
        return with_indices(tokenized, dataset, columns, self.text_embeddings, name)

    def stream_batches(self, batch_size: int, **options: Any) -> StreamedBatches:
        if self.args.no_duplicates or self.args.shuffling != "random":
            name = "no_duplicates" if self.args.no_duplicates else "shuffling"
            raise InputError(f"{name} needs a dataset with a length, not a stream")
        return super().stream_batches(batch_size, **options)

    def make_batch_sampler(self, batch_size: int, **options: Any) -> GlobalBatchSampler:
        sampler = make_batch_sampler(self, batch_size, **options)
        if isinstance(sampler, NeighbourBatchSampler):
            if self._saved_plan is not None:
                sampler.plan, sampler.plan_epoch = self._saved_plan
            self._neighbours = sampler
        return sampler

    def rows_to_collate(self, sampler: GlobalBatchSampler) -> Dataset:
        return self.train_dataset if self.frozen is None else self.train_states

    def embed(self, texts: list[list[int]]) -> torch.Tensor:
        """Embeddings of tokenized texts. Each process computes a part of them."""
        own = list(local_rows(texts, self.args.process_index, self.args.world_size))
        with self.compute_loss_context_manager():
            if self.frozen is None:
                lengths = self.prompts.lengths(self.columns[0], len(own))
                embeddings = self.model.encode_token_ids(
                    own, prompt_lengths=lengths, show_progress_bar=not self.args.disable_tqdm
                )
            else:
                embeddings = self.model.pool_states(states_of(own, self.columns[0], self))
        return gather_rows(embeddings.clone(), rows_of_all(len(own)))

    # --- loss ---

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ):
        """The loss of the objective, and of masked language modeling if that is trained too."""
        keep_frozen(self)
        chunks = chunks_of(inputs)
        embeddings = torch.cat([self.representation.embed(model, model_inputs(chunk)) for chunk in chunks])
        loss = self.objective_loss(model, embeddings, inputs)
        if self.mlm_term is not None and model.training:
            loss = loss + self.mlm_term.loss(model, chunks)
        return (loss, {"embeddings": self.representation.split(embeddings)[0]}) if return_outputs else loss

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """The step of transformers, or the cached one with `gradient_cache`."""
        try:
            if self.args.gradient_cache is None:
                return super().training_step(model, inputs, num_items_in_batch)
            model.train()
            keep_frozen(self)
            with self.drawing_masks():
                loss = cached_step(self, model, self.to_device(inputs))
            self.watch(loss, inputs["row_numbers"])
            return loss
        except torch.OutOfMemoryError as error:
            raise torch.OutOfMemoryError(
                f"{error}\nThe batch does not fit. Give --gradient_cache a number of tokens that does (a smaller one, "
                "if it is given already): memory then does not grow with the batch, and the negatives stay."
            ) from error

    def objective_loss(self, model: torch.nn.Module, embeddings: torch.Tensor, inputs: dict[str, Any]) -> torch.Tensor:
        text_ids = inputs["text_ids"]
        if "sentence_indices" in inputs:
            embeddings = embeddings[inputs["sentence_indices"]]
        embeddings, states = self.representation.split(embeddings.view(*text_ids.shape, -1))
        rows = len(embeddings)
        # Only the main process evaluates, where gathering would wait forever.
        sizes, rank = (rows_of_all(rows), self.args.process_index) if model.training else ([rows], 0)
        others = other_embeddings(inputs)
        batch = EmbeddedBatch.gather(embeddings, text_ids, inputs.get("values"), sizes, rank, others, states)
        # Processes average their gradients, so a process with more rows needs a larger weight.
        share = rows * len(sizes) / sum(sizes)
        loss = share * self.objective(batch)
        if self.distillation is not None and model.training:
            loss = loss + self.distillation.loss(batch, share)
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self._neighbours is not None and "train_runtime" in logs:
            logs["shuffling_percent"] = 100 * self._neighbours.seconds / logs["train_runtime"]
        if "loss" in logs:
            logs |= self.objective.logs()
            for term in filter(None, (self.distillation, self.mlm_term)):
                logs |= term.logs()
        super().log(logs, start_time)

    # --- evaluation ---

    def evaluate(
        self,
        eval_dataset: Dataset | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """
        Metrics of the evaluator and the objective's loss on the evaluation rows, computed by the main process.

        The loss is the mean over the rows. Each row is compared with its batch of `per_device_eval_batch_size`; a last
        batch of one row has no negatives and is left out.
        """
        self.check_training()
        metrics: dict[str, float] = {}
        model = self.model if self._whole_model is None else self._whole_model.gather()
        if self.args.process_index == 0:
            dataset = self._tokenize(eval_dataset, self.processing_class, "eval_dataset")
            dataset = self.eval_dataset if dataset is None else dataset
            if dataset is not None and dataset is not _NO_ROWS:
                metrics["loss"] = self._mean_loss(model, dataset)
            if self.evaluator is not None:
                metrics |= self.evaluator(model, self.processing_class)
            if self._whole_model is not None:
                model.cpu()
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in same_on_all(metrics).items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    @torch.no_grad()
    def _mean_loss(self, model: torch.nn.Module, dataset: Dataset) -> float:
        sampler = GlobalBatchSampler(len(dataset), self.args.eval_batch_size, shuffle=False)
        if len(sampler) == 0:
            raise InputError(f"{len(dataset)} evaluation rows do not make one batch; at least 2 are needed")
        loader = DataLoader(dataset, batch_sampler=sampler, collate_fn=self.data_collator)
        total = torch.zeros((), device=self.args.device)
        rows = 0
        was_training = model.training
        model.eval()
        for inputs in logging.tqdm(loader, desc="Evaluation loss", disable=self.args.disable_tqdm, leave=False):
            count = len(inputs["row_numbers"])
            total += self.compute_loss(model, send_to_device(inputs, self.args.device)) * count
            rows += count
        model.train(was_training)
        return total.item() / rows

    # --- what is trained and saved ---

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimizer of transformers, with our groups of parameters."""
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if is_new:
            add_parameter_groups(optimizer, self)
        return optimizer

    def complete_checkpoint(self, folder: str) -> None:
        if self._neighbours is not None and self.args.should_save:
            self._neighbours.save_plan(folder)
        super().complete_checkpoint(folder)

    def model_to_save(self) -> nn.Module:
        return self.model if self._whole_model is None else self._whole_model.model or self.model

    def save_next_to_model(self, folder: str) -> None:
        if self.args.should_save:
            self.extra_modules.save(folder)

    def after_resuming(self, checkpoint: str) -> None:
        super().after_resuming(checkpoint)
        self.extra_modules.load(checkpoint)
        if self.args.shuffling != "random":
            self._saved_plan = load_plan(checkpoint)

    def trained_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        yield from super().trained_parameters()
        yield from self.extra_modules.named_parameters()

    def most_negatives(self, batch_size: int) -> int:
        """The most negatives that an anchor can have in a batch of all processes; 0 if rows are not compared."""
        # Each further column of a row is one more negative for every anchor of the batch.
        columns = self.columns or []
        further = max(0, len(columns) - 2) + len(columns) * len(self.representation.places)
        return batch_size - 1 + further * batch_size if self.objective.compares_batch else 0

    def card_facts(self) -> CardFacts:
        return contrastive_facts(self, super().card_facts())
