"""The transformers Trainer with a contrastive `compute_loss`; everything else is left to it."""

import copy
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import pyarrow.compute as pc
import torch
import torch.distributed as dist
import torch.nn.functional as F
from datasets import Dataset, IterableDataset
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from transformers.utils import logging

from ...common.errors import InputError
from ..base import LayerPoolTrainer
from ..batching import (
    EpochDataLoader,
    GlobalBatchSampler,
    NoDuplicatesBatchSampler,
    PackingCollator,
    StreamedBatches,
    share_of,
    text_id,
)
from ..distributed import average_gradients, gather_rows, rows_of_all
from ..lora import check_adapter, has_adapter
from ..masking import TokenMasking
from ..mlm_head import MaskedLanguageHead
from ..random_state import RandomState
from .arguments import ContrastiveTrainingArguments
from .data import is_tokenized, tokenize_dataset
from .neighbours import NeighbourBatchSampler
from .objectives import OBJECTIVES
from .objectives.base import EmbeddedBatch, Objective


OBJECTIVE_FILE = "objective.safetensors"
MLM_HEAD_FILE = "mlm_head.safetensors"
# The order of the rows of the epoch under way, where the model decides it.
PLAN_FILE = "batch_plan.safetensors"
# Batch fields that are not input of the model.
NOT_OF_THE_MODEL = ("text_ids", "row_numbers", "values", "mlm_input_ids", "mlm_places", "mlm_labels")

# Called with the model and its tokenizer; returns metrics by name.
Evaluator = Callable[[PreTrainedModel, PreTrainedTokenizerBase], dict[str, float]]


class ContrastiveTrainer(LayerPoolTrainer):
    r"""
    Trains a layer-pooled encoder on packed batches with a contrastive objective.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            A layer-pooled encoder, or a `peft.PeftModel` of one.
        args ([`ContrastiveTrainingArguments`]):
            The options of the run and of its objective.
        train_dataset, eval_dataset (`datasets.Dataset` or `datasets.IterableDataset`, *optional*):
            Rows with the text columns that the objective names; tokenised here, unless they are already. An evaluation
            dataset gives `eval_loss`, the mean over its rows.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            The tokenizer. Its `model_max_length` becomes `args.max_seq_length`, if given.
        data_collator (`Callable`, *optional*):
            Makes a batch of tokenised rows; defaults to a [`PackingCollator`].
        objective ([`Objective`], *optional*):
            Defaults to the one that `args` names.
        mlm_head ([`MaskedLanguageHead`], *optional*):
            What `args.mlm_weight` trains; defaults to a new one. Like an objective with parameters it is no part of
            the model, and is saved next to it.
        evaluator (`Callable`, *optional*):
            Called with model and tokenizer at each evaluation; its metrics are logged as `eval_<name>`.
        write_model_card (`Callable`, *optional*):
            Called with this trainer to write the card of `args.output_dir`. Default: the card of transformers.

    Other arguments are the Trainer's.

    Raises:
        InputError: several devices without `accelerate launch`, a batch of one row, a needed column is missing, a text
            is empty, `max_seq_length` is beyond the positions of the model, an adapter stands where the pooler cannot
            read it, or FSDP or DeepSpeed cannot do an option.
        NonFiniteLossError: the loss is NaN or infinite; raised at the next logging or saving step.
        CheckpointWriteError: a checkpoint could not be written, as on a full disk; older ones stay whole.
    """

    # The loss is a mean over the batch: the Trainer divides it by the accumulation steps.
    loss_is_scaled_for_ga = False
    advice = "lower --learning_rate, raise --temperature"
    grouped_by = "pooler_type, pooler_learning_rate, freeze_encoder"

    def __init__(
        self,
        model: PreTrainedModel,
        args: ContrastiveTrainingArguments,
        *,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset | None = None,
        processing_class: PreTrainedTokenizerBase,
        data_collator: Callable[[list[dict[str, Any]]], dict[str, Any]] | None = None,
        objective: Objective | None = None,
        mlm_head: MaskedLanguageHead | None = None,
        evaluator: Evaluator | None = None,
        write_model_card: Callable[["ContrastiveTrainer"], None] | None = None,
        **kwargs: Any,
    ):
        if args.n_gpu > 1:
            raise InputError(
                f"{args.n_gpu} devices are visible to one process, which would tear packed batches apart: start one "
                "process for each device with `accelerate launch`, or choose one with CUDA_VISIBLE_DEVICES"
            )
        if args.per_device_train_batch_size * args.world_size < 2:
            raise InputError("per_device_train_batch_size=1 leaves a batch without negatives; use at least 2")
        if has_adapter(model):
            check_adapter(model)
        if args.freeze_encoder:
            _freeze_encoder(model)
        if args.pooler_learning_rate is not None and not list(model.pooler.parameters()):
            raise InputError(
                f"pooler_learning_rate does nothing: pooler_type={model.config.pooler_type} has no weights of its own"
            )
        self.objective = objective or OBJECTIVES[args.objective].from_arguments(args)
        self.mlm_head = None
        if args.mlm_weight > 0 and train_dataset is not None:
            self.mlm_head = mlm_head or MaskedLanguageHead.of_encoder(model)
        self._logged = torch.zeros(2, device=args.device)  # the sum of the masked-LM losses, and batches
        # Modules trained in addition to the model, by the file that keeps each.
        self._companions: dict[str, nn.Module] = {OBJECTIVE_FILE: self.objective}
        if self.mlm_head is not None:
            self._companions[MLM_HEAD_FILE] = self.mlm_head
        self.evaluator = evaluator
        self._neighbours: NeighbourBatchSampler | None = None
        self._saved_plan: tuple[list[int], int] | None = None
        self.columns: list[str] | None = None
        set_max_seq_length(model, processing_class, args.max_seq_length)
        with args.main_process_first(desc="tokenising"):
            train_dataset = self._tokenize(train_dataset, processing_class, "train_dataset")
            eval_dataset = self._tokenize(eval_dataset, processing_class, "eval_dataset")
        if args.row_length is not None:
            for dataset in (train_dataset, eval_dataset):
                _check_row_length(args.row_length, dataset, self.columns, processing_class.model_max_length)
        if isinstance(train_dataset, Dataset):
            batch_size = args.per_device_train_batch_size * args.world_size
            needed = batch_size if args.dataloader_drop_last else max(2, args.world_size)
            if len(train_dataset) < needed:
                raise InputError(f"{len(train_dataset)} training row(s) do not make a batch; {needed} are needed")
        if data_collator is None:
            masking = None
            if self.mlm_head is not None:
                seed = args.seed if args.data_seed is None else args.data_seed
                masking = TokenMasking(processing_class, args.mlm_probability, seed)
            data_collator = PackingCollator(
                self.columns or [], model.config.pad_token_id or 0, args.row_length, args.gradient_cache, masking
            )
        if evaluator is not None and eval_dataset is None:
            # The Trainer wants a dataset wherever it is to evaluate; `evaluate` below knows better.
            eval_dataset = _NO_ROWS
        super().__init__(
            model,
            args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            write_model_card=write_model_card,
            **kwargs,
        )
        self._check_engine()
        # FSDP leaves no process with all weights, and the model with a class of torch's own. On the main process this
        # copy takes its place where a whole model is evaluated or saved.
        needs_copy = self.is_fsdp_enabled and args.process_index == 0
        self._whole_model = copy.deepcopy(model) if needs_copy else None
        for companion in self._companions.values():
            companion.to(args.device)
        self.add_callback(_CompanionsCallback(self.objective, list(self._companions.values())))

    def _check_engine(self) -> None:
        """Refuse what FSDP or DeepSpeed would do wrongly or not at all."""
        if (self.is_deepspeed_enabled or self.is_fsdp_enabled) and has_adapter(self.model):
            raise InputError(
                "use_lora does not work under FSDP or DeepSpeed, where adapters were not tried; use DDP, or leave it "
                "out"
            )
        if self.is_deepspeed_enabled and self.args.pooler_learning_rate is not None:
            raise InputError(
                "pooler_learning_rate does not work under DeepSpeed, whose own optimizer has one rate for all; use "
                "DDP, or leave it out"
            )
        if self.is_deepspeed_enabled and self.args.gradient_cache is not None:
            raise InputError(
                "gradient_cache does not work under DeepSpeed, whose engine has to see every backward pass; leave it "
                "out, or use DDP"
            )
        if self.is_fsdp_enabled and self.args.gradient_cache is not None:
            # Each forward pass gathers weights, and processes may cut their rows into different numbers of groups.
            raise InputError(
                "gradient_cache does not work under FSDP, where all processes must make the same number of forward "
                "passes; leave it out, or use DDP"
            )
        if (self.is_deepspeed_enabled or self.is_fsdp_enabled) and self.args.shuffling in ("neighbours", "clusters"):
            raise InputError(
                f"shuffling={self.args.shuffling} does not work under FSDP or DeepSpeed, where no process has all "
                "weights to embed with; use DDP, or shuffling=words"
            )
        if (self.is_deepspeed_enabled or self.is_fsdp_enabled) and self._companion_parameters():
            option = "learn_temperature" if self.mlm_head is None else "mlm_weight"
            raise InputError(
                f"{option} does not work under FSDP or DeepSpeed, whose optimizers know the parameters of the "
                "model only; use DDP, or leave it out"
            )
        if self.is_fsdp_enabled:
            plugin = self.accelerator.state.fsdp_plugin
            if plugin.fsdp_version != 2:
                raise InputError(f"FSDP {plugin.fsdp_version} is not supported; set fsdp_version: 2")
            if "FULL_STATE_DICT" not in str(plugin.state_dict_type):
                raise InputError(
                    "under FSDP the model is saved as a whole only with fsdp_state_dict_type: FULL_STATE_DICT; set it"
                )

    # --- data ---

    def _tokenize(
        self, dataset: Dataset | IterableDataset | None, tokenizer: PreTrainedTokenizerBase, name: str
    ) -> Dataset | IterableDataset | None:
        if dataset is None:
            return None
        available = [column.removesuffix("_input_ids") for column in dataset.column_names or next(iter(dataset))]
        columns = self.objective.select_columns(available, name)
        if self.columns is None:
            self.columns = columns
        elif columns != self.columns:
            raise InputError(f"{name} has the columns {columns}, but the training data {self.columns}")
        if is_tokenized(dataset):
            return dataset
        value_column = self.objective.value_column(available, name)
        value_range = self.objective.prepare(dataset, value_column, name)
        return tokenize_dataset(
            dataset, columns, tokenizer, tokenizer.model_max_length, name, value_column, value_range
        )

    def get_train_dataloader(self) -> DataLoader:
        """Batches of this process. Not prepared by accelerate: they are already its share, and it would cut again."""
        workers = self.worker_options()
        place = {"rank": self.args.process_index, "world_size": self.args.world_size}
        batch_size = self._train_batch_size * self.args.world_size
        if isinstance(self.train_dataset, IterableDataset):
            if self.args.no_duplicates or self.args.shuffling != "random":
                name = "no_duplicates" if self.args.no_duplicates else "shuffling"
                raise InputError(f"{name} needs a dataset with a length, not a stream")
            batches = StreamedBatches(self.train_dataset, batch_size, **place)
            # A worker without a shard of the stream would have nothing to do.
            workers["num_workers"] = min(workers["num_workers"], self.train_dataset.num_shards)
            return DataLoader(batches, batch_size=None, collate_fn=self.data_collator, **workers)
        options = place | {
            "shuffle": self.args.train_sampling_strategy != "sequential",
            "seed": self.args.seed if self.args.data_seed is None else self.args.data_seed,
            "drop_last": self.args.dataloader_drop_last,
        }
        if self.args.shuffling != "random":
            sampler = NeighbourBatchSampler(
                list(self.train_dataset[f"{self.columns[0]}_input_ids"]),
                self._embed,
                batch_size,
                shuffling=self.args.shuffling,
                group_size=self.args.group_size,
                search=self.args.neighbour_search,
                refresh_steps=self.args.refresh_steps,
                show_progress_bar=not self.args.disable_tqdm and self.is_world_process_zero(),
                **options,
            )
            if self._saved_plan is not None:
                sampler.plan, sampler.plan_epoch = self._saved_plan
            self._neighbours = sampler
        elif self.args.no_duplicates:
            columns = [self.train_dataset[f"{column}_input_ids"] for column in dict.fromkeys(self.columns)]
            texts = [{text_id(text) for text in row} for row in zip(*columns, strict=True)]
            sampler = NoDuplicatesBatchSampler(texts, batch_size, **options)
        else:
            sampler = GlobalBatchSampler(len(self.train_dataset), batch_size, **options)
        return EpochDataLoader(self.train_dataset, batch_sampler=sampler, collate_fn=self.data_collator, **workers)

    def _embed(self, texts: list[list[int]]) -> torch.Tensor:
        """Embeddings of tokenised texts, each process making its share of them."""
        own = list(share_of(texts, self.args.process_index, self.args.world_size))
        with self.compute_loss_context_manager():
            embeddings = self.model.encode_token_ids(own, show_progress_bar=not self.args.disable_tqdm)
        return gather_rows(embeddings.clone(), rows_of_all(len(own)))

    # --- loss ---

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ):
        """The objective over the embeddings of one packed batch, with the texts of all processes as columns."""
        embeddings = torch.cat([model(**group).pooler_output for group in self._groups(inputs)])
        loss = self._objective_loss(model, embeddings, inputs)
        if self.mlm_head is not None and model.training:
            groups = self._packed(inputs)
            predicted = self._predicted(groups)
            mlm_loss = sum(self._mlm_loss(model, group, predicted) for group in groups)
            self._logged += torch.stack([mlm_loss.detach(), torch.ones_like(mlm_loss)])
            loss = loss + self.args.mlm_weight * mlm_loss
        return (loss, {"embeddings": embeddings}) if return_outputs else loss

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """The step of transformers; with `gradient_cache`, one whose memory does not grow with the batch."""
        try:
            if self.args.gradient_cache is None:
                return super().training_step(model, inputs, num_items_in_batch)
            loss = self._cached_step(model, self._prepare_inputs(inputs))
            self.watch(loss, inputs["row_numbers"])
            return loss
        except torch.OutOfMemoryError as error:
            raise torch.OutOfMemoryError(
                f"{error}\nThe batch does not fit. Give --gradient_cache a number of tokens that does (a smaller one, "
                "if it is given already): memory then does not grow with the batch, and the negatives stay."
            ) from error

    def _cached_step(self, model: torch.nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
        """
        Gradient caching (Gao et al. 2021, arXiv 2101.06983): embed without graph, take the loss and its gradient at
        the embeddings, then embed each group again under the same random state and send its part of the gradient back.
        A masked-LM loss adds up over the groups, and needs no caching.
        """
        model.train()
        groups, random_states, embedded = self._groups(inputs), [], []
        with torch.no_grad():
            for group in groups:
                random_states.append(RandomState(*group.values()))
                embedded.append(model(**group).pooler_output)
        embeddings = torch.cat(embedded).requires_grad_()
        loss = self._objective_loss(model, embeddings, inputs) / self.current_gradient_accumulation_steps
        self.accelerator.backward(loss)
        loss = loss.detach()
        if self.mlm_head is not None:
            packed = self._packed(inputs)
            predicted, mlm_loss = self._predicted(packed), torch.zeros_like(loss)
            for group in packed:
                with self.accelerator.no_sync(model):
                    part = self._mlm_loss(model, group, predicted) / self.current_gradient_accumulation_steps
                    self.accelerator.backward(self.args.mlm_weight * part)
                mlm_loss += part.detach()
            self._logged += torch.stack([mlm_loss * self.current_gradient_accumulation_steps, torch.ones_like(loss)])
            loss = loss + self.args.mlm_weight * mlm_loss
        gradients = embeddings.grad.split([len(part) for part in embedded])
        for number, (group, state, gradient) in enumerate(zip(groups, random_states, gradients, strict=True)):
            is_last = number == len(groups) - 1
            # Processes exchange their gradients once, with the last group.
            with nullcontext() if is_last else self.accelerator.no_sync(model), state.restored():
                model(**group).pooler_output.backward(gradient)
        return loss

    @staticmethod
    def _packed(inputs: dict[str, Any]) -> list[dict[str, torch.Tensor]]:
        """The packed inputs of a batch: one, or the groups that it was cut into."""
        return inputs.get("groups") or [inputs]

    @classmethod
    def _groups(cls, inputs: dict[str, Any]) -> list[dict[str, torch.Tensor]]:
        """Those, as the model takes them."""
        return [
            {name: packed[name] for name in packed if name not in NOT_OF_THE_MODEL} for packed in cls._packed(inputs)
        ]

    @staticmethod
    def _predicted(groups: list[dict[str, torch.Tensor]]) -> float:
        """The masked tokens of all processes, over their number: processes average their gradients."""
        counts = rows_of_all(sum(len(group["mlm_places"]) for group in groups))
        return max(1, sum(counts)) / len(counts)

    def _mlm_loss(self, model: torch.nn.Module, group: dict[str, Any], predicted: float) -> torch.Tensor:
        """The cross-entropy of the masked tokens of one packed input, summed, over `predicted`."""
        [inputs] = self._groups(group | {"input_ids": group["mlm_input_ids"]})
        states = model(**inputs).last_hidden_state.flatten(0, 1)[group["mlm_places"]]
        with self.accelerator.autocast():
            logits = self.mlm_head(states)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return F.cross_entropy(logits, group["mlm_labels"], reduction="sum") / predicted

    def _objective_loss(
        self, model: torch.nn.Module, embeddings: torch.Tensor, inputs: dict[str, Any]
    ) -> torch.Tensor:
        text_ids = inputs["text_ids"]
        if "sentence_places" in inputs:
            embeddings = embeddings[inputs["sentence_places"]]
        embeddings = embeddings.view(*text_ids.shape, -1)
        # Evaluation runs on one process alone, where gathering would wait for ever.
        sizes = rows_of_all(len(embeddings)) if model.training else [len(embeddings)]
        all_embeddings, all_text_ids = gather_rows(embeddings, sizes), gather_rows(text_ids, sizes)
        first_row = sum(sizes[: self.args.process_index]) if model.training else 0
        values = inputs.get("values")
        all_values = None if values is None else gather_rows(values, sizes)
        loss = self.objective(
            EmbeddedBatch(embeddings, text_ids, all_embeddings, all_text_ids, first_row, values, all_values)
        )
        if model.training:
            # Processes average their gradients: a process with more rows than another counts for more.
            loss = loss * (len(embeddings) * self.args.world_size / len(all_embeddings))
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self._neighbours is not None and "train_runtime" in logs:
            logs["shuffling_percent"] = 100 * self._neighbours.seconds / logs["train_runtime"]
        if "loss" in logs:
            logs |= self.objective.logs()
        if self._logged[1] > 0 and "loss" in logs:
            sums = self._logged.clone()
            if self.args.world_size > 1:
                dist.all_reduce(sums)
            logs["mlm_loss"] = (sums[0] / sums[1]).item()
            self._logged.zero_()
        super().log(logs, start_time)

    # --- evaluation ---

    def evaluate(
        self,
        eval_dataset: Dataset | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """
        Metrics of the evaluator, and the objective's loss on the evaluation rows, computed by the main process.

        The loss is the mean over the rows, each against the other rows of its batch of `per_device_eval_batch_size`;
        a last batch of one row, which has no negatives, is left out.
        """
        self.check_finite()
        metrics: dict[str, float] = {}
        model = self._gather_model() if self.is_fsdp_enabled else self.model
        if self.args.process_index == 0:
            dataset = self._tokenize(eval_dataset, self.processing_class, "eval_dataset")
            dataset = self.eval_dataset if dataset is None else dataset
            if dataset is not None and dataset is not _NO_ROWS:
                metrics["loss"] = self._mean_loss(model, dataset)
            if self.evaluator is not None:
                metrics |= self.evaluator(model, self.processing_class)
            if self.is_fsdp_enabled:
                model.cpu()
        if self.args.world_size > 1:
            shared = [metrics]
            dist.broadcast_object_list(shared, src=0)
            metrics = shared[0]
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _gather_model(self) -> PreTrainedModel | None:
        """
        A whole model with the weights of all processes, which must all call this; on the main process, else None.

        Evaluating the sharded model itself is no way: `encode` runs under `torch.inference_mode`, and the weights that
        FSDP gathers there cannot be trained on afterwards.
        """
        weights = self.accelerator.get_state_dict(self.model)
        if self._whole_model is None:
            return None
        self._whole_model.load_state_dict(weights)
        return self._whole_model.to(self.args.device)

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
            total += self.compute_loss(model, self._prepare_inputs(inputs)) * count
            rows += count
        model.train(was_training)
        return total.item() / rows

    # --- the objective's own parameters, and the card ---

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimizer of transformers, with extra groups for what is trained in addition to the model."""
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if is_new and self.args.pooler_learning_rate is not None:
            pooler = {id(parameter) for parameter in self.model.pooler.parameters()}
            for group in list(optimizer.param_groups):
                own = [parameter for parameter in group["params"] if id(parameter) in pooler]
                group["params"] = [parameter for parameter in group["params"] if id(parameter) not in pooler]
                rate = {"params": own, "weight_decay": group["weight_decay"], "lr": self.args.pooler_learning_rate}
                optimizer.add_param_group(rate)
        if is_new and self.mlm_head is not None:
            decaying = set(self.get_decay_parameter_names(self.mlm_head.language_model))
            for decays, weight_decay in ((True, self.args.weight_decay), (False, 0.0)):
                own = [p for name, p in self.mlm_head.own_parameters() if (name in decaying) == decays]
                optimizer.add_param_group({"params": own, "weight_decay": weight_decay})
        parameters = list(self.objective.parameters())
        if is_new and parameters:
            rate = self.args.temperature_learning_rate
            rate = self.args.learning_rate if rate is None else rate
            optimizer.add_param_group({"params": parameters, "weight_decay": 0.0, "lr": rate})
        return optimizer

    def _save_rng_state(self, output_dir: str) -> None:
        if self._neighbours is not None and self.args.should_save:
            plan = {"rows": torch.tensor(self._neighbours.plan), "epoch": torch.tensor(self._neighbours.plan_epoch)}
            save_file(plan, os.path.join(output_dir, PLAN_FILE))
        super()._save_rng_state(output_dir)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        sharded = self.model
        if self._whole_model is not None:
            self.model = self._whole_model  # so that the checkpoint carries its code, and not that of FSDP
        try:
            super()._save(output_dir, state_dict)
        finally:
            self.model = sharded
        for name, companion in self._companions.items():
            state = companion.state_dict()
            if state and self.args.should_save:
                save_file(state, os.path.join(output_dir or self.args.output_dir, name))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._load_companions(resume_from_checkpoint)
        path = os.path.join(resume_from_checkpoint, PLAN_FILE)
        if self.args.shuffling != "random":
            if not os.path.isfile(path):
                raise InputError(f"{path}: no such file, but shuffling={self.args.shuffling} needs its order of rows")
            plan = load_file(path)
            self._saved_plan = (plan["rows"].tolist(), plan["epoch"].item())

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self._load_companions(self.state.best_model_checkpoint)

    def trained_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        yield from super().trained_parameters()
        for companion in self._companions.values():
            yield from companion.named_parameters()

    def _companion_parameters(self) -> list[nn.Parameter]:
        return [parameter for companion in self._companions.values() for parameter in companion.parameters()]

    def _load_companions(self, checkpoint: str) -> None:
        for name, companion in self._companions.items():
            path = os.path.join(checkpoint, name)
            if companion.state_dict():
                if not os.path.isfile(path):
                    what = "objective" if companion is self.objective else "head of masked language modelling"
                    raise InputError(f"{path}: no such file, but the {what} has learned parameters to resume")
                companion.load_state_dict(load_file(path))


class _CompanionsCallback(TrainerCallback):
    """Handles the parameters trained in addition to the model as the Trainer handles the model's."""

    def __init__(self, objective: Objective, companions: list[nn.Module]):
        self.objective = objective
        self.companions = companions

    def on_step_begin(self, args, state, control, **kwargs):
        self.objective.on_step_begin(state.global_step / state.max_steps)

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        average_gradients([parameter for companion in self.companions for parameter in companion.parameters()])

    def on_optimizer_step(self, args, state, control, **kwargs):
        for companion in self.companions:
            companion.zero_grad()


def _check_row_length(
    row_length: int, dataset: Dataset | IterableDataset | None, columns: Sequence[str], max_seq_length: int
) -> None:
    """Refuse packed rows that a text of the data does not fit into. A stream may hold texts of any length."""
    if dataset is None:
        return
    longest = max_seq_length
    if isinstance(dataset, Dataset):
        names = [f"{column}_input_ids" for column in dict.fromkeys(columns)]
        batches = dataset.select_columns(names).with_format("arrow").iter(batch_size=10_000)
        longest = max(pc.max(pc.list_value_length(batch[name])).as_py() for batch in batches for name in names)
    if longest > row_length:
        raise InputError(
            f"row_length={row_length} is shorter than the longest text, {longest} tokens; raise it, or lower "
            "max_seq_length"
        )


_NO_ROWS = Dataset.from_dict({})


def _freeze_encoder(model: PreTrainedModel) -> None:
    if has_adapter(model):
        raise InputError("freeze_encoder leaves the adapter of use_lora nothing to do; drop one of them")
    if not list(model.pooler.parameters()):
        raise InputError(
            f"freeze_encoder leaves nothing to train: pooler_type={model.config.pooler_type} has no weights of its own"
        )
    model.base_model.requires_grad_(False)


def set_max_seq_length(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_seq_length: int | None, texts: int = 1
) -> None:
    """
    Make `tokenizer.model_max_length` the length at which this model's texts are cut, and are cut ever after.

    Args:
        max_seq_length: tokens, special ones included; by default the tokenizer's own limit, at most the model's.
        texts: how many texts are read together, 1 or 2.

    Raises:
        InputError: the model has fewer positions, or no token of a text is left between the special ones.
    """
    if max_seq_length is None:
        max_seq_length = min(tokenizer.model_max_length, model.max_tokens)
    if max_seq_length > model.max_tokens:
        raise InputError(f"max_seq_length={max_seq_length} is beyond the {model.max_tokens} positions of the model")
    special = tokenizer.num_special_tokens_to_add(pair=texts == 2)
    if max_seq_length < special + texts:
        raise InputError(
            f"max_seq_length={max_seq_length} leaves no token of {'each' if texts == 2 else 'the'} text next to "
            f"{special} special ones; use at least {special + texts}"
        )
    tokenizer.model_max_length = max_seq_length
