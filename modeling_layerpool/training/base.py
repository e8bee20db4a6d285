"""The trainer that all kinds of training share."""

import math
from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, ClassVar

import torch
from accelerate.utils import send_to_device
from datasets import Dataset, IterableDataset
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback

from ..common.card_facts import (
    CardFacts,
    device_name,
    evaluations_by_step,
    last_test_scores,
    package_versions,
    schedule_rows,
)
from ..common.errors import InputError
from ..models.modeling_layerpool_attention import attention_dropout
from .batching import EpochDataLoader, GlobalBatchSampler, StreamedBatches
from .compat import TrainerHooks, attention_implementation
from .dropout import fast_dropout
from .fault_tolerance import init_worker, remove_if_incomplete, write_manifest
from .lora import check_checkpoint
from .moving_average import MovingAverage, check_resumable
from .run_arguments import RunArguments


# Called with a model and its tokenizer; returns metrics by name.
Evaluator = Callable[[PreTrainedModel, PreTrainedTokenizerBase], dict[str, float]]


class NonFiniteLossError(RuntimeError):
    """A loss or a weight became NaN or infinite. The message names the step and, if known, the rows of the batch."""


class LayerPoolTrainer(TrainerHooks):
    r"""
    The Trainer of transformers with checkpoints that are complete or removed, a loss that must stay finite, and
    batches that depend on the seed and the epoch only.

    Args:
        write_model_card (`Callable`, *optional*):
            Called with this trainer to write the card of `args.output_dir`. Default: the card of transformers.

    Other arguments are the Trainer's.

    Raises:
        InputError: one process sees several devices.
        NonFiniteLossError: the loss is NaN or infinite; raised at the next logging or saving step.
        CheckpointWriteError: a checkpoint could not be written, for example on a full disk; older ones stay complete.
    """

    # Advice for the user when the loss is no longer finite.
    advice = "lower --learning_rate"
    # The options that decide which parameters are trained, and in which groups.
    grouped_by = "pooler_type"
    # The metrics that this kind of training computes itself, and whether higher is better.
    METRICS: ClassVar[dict[str, bool]] = {"loss": False}

    def __init__(
        self,
        model: torch.nn.Module,
        args: RunArguments,
        *,
        write_model_card: Callable[[Trainer], None] | None = None,
        **kwargs: Any,
    ):
        if args.n_gpu > 1:
            # transformers would wrap the model in DataParallel, which cuts every tensor of a batch by its first
            # dimension.
            raise InputError(
                f"{args.n_gpu} devices are visible to one process: start one process per device with `accelerate "
                "launch`, or choose one device with CUDA_VISIBLE_DEVICES"
            )
        if kwargs.get("train_dataset") is not None:
            _check_attention(model)
        self.write_model_card = write_model_card
        self._unchecked: list[tuple[int, Sequence[int], torch.Tensor]] = []
        if not args.direction_was_given and args.metric_for_best_model is not None:
            # transformers guesses the direction from the name, and takes a high perplexity for a good one.
            name = args.metric_for_best_model.removeprefix("eval_")
            args.greater_is_better = self.METRICS.get(name, args.greater_is_better)
        super().__init__(model, args, **kwargs)
        self.add_callback(_BestMetricCallback())
        self.average = None
        if args.ema is not None and self.train_dataset is not None:
            if self.is_fsdp_enabled or self.is_deepspeed_enabled:
                raise InputError("ema does not work under FSDP and DeepSpeed, where no process has all weights")
            self.average = MovingAverage(self.model, args.ema)
            self.add_callback(self.average)

    def watch(self, loss: torch.Tensor, rows: Sequence[int] = ()) -> None:
        """Keep the loss of a step for [`check_finite`]; reading it now would wait for the device."""
        self._unchecked.append((self.state.global_step + 1, rows, loss.detach()))

    def check_finite(self) -> None:
        """Raise a [`NonFiniteLossError`] if a loss since the last check was not finite. Synchronizes once."""
        if not self._unchecked:
            return
        steps = list(self._unchecked)
        self._unchecked.clear()
        finite = torch.isfinite(torch.stack([loss for _, _, loss in steps])).tolist()
        if not all(finite):
            step, rows, loss = steps[finite.index(False)]
            where = f"at step {step}" + (f", on rows {', '.join(map(str, rows))} of the training data" if rows else "")
            advice = self.advice + (", or look at these rows" if rows else "")
            raise NonFiniteLossError(f"the loss is {loss.item()} {where}; {advice}")

    def trained_parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """All parameters that this trainer changes, with their names."""
        return ((name, parameter) for name, parameter in self.model.named_parameters() if parameter.requires_grad)

    def check_weights(self) -> None:
        """Raise a [`NonFiniteLossError`] if the last update left a weight that is not finite. Synchronizes once."""
        names, weights = zip(*self.trained_parameters(), strict=True)
        # Under FSDP each process checks its part.
        parts = (weight.to_local() if isinstance(weight, DTensor) else weight for weight in weights)
        finite = torch.stack([part.detach().isfinite().all() for part in parts]).tolist()
        if not all(finite):
            raise NonFiniteLossError(
                f"{finite.count(False)} of the trained weights are not finite after step {self.state.global_step} "
                f"({names[finite.index(False)]}, for example), and they were not saved; {self.advice}"
            )

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """The step of transformers; its loss is kept for [`check_finite`]."""
        rows = inputs.get("row_numbers", ())
        with self.drawing_masks():
            loss = super().training_step(model, self.to_device(inputs), num_items_in_batch)
        self.watch(loss, rows)
        return loss

    def to_device(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """A batch on the device of the run. transformers would wait for the step before to copy it to a GPU."""
        device = self.args.device
        return send_to_device(inputs, device, non_blocking=device.type == "cuda")

    def drawing_masks(self) -> AbstractContextManager:
        """Around a training step: on a CPU the masks of dropout are drawn faster."""
        # torch.compile cannot trace these draws: its graph would end at each dropout. A frozen encoder draws none, and
        # preparing the draws would be a share of a step that takes milliseconds.
        is_frozen = getattr(self.args, "freeze_encoder", False)
        is_faster = self.args.device.type == "cpu" and not self.args.torch_compile and not is_frozen
        return fast_dropout(self.model) if is_faster else nullcontext()

    # --- data ---

    def get_train_dataloader(self) -> DataLoader:
        """
        The batches of this process, in an order that follows from the seed and the epoch.

        The sampler of transformers draws from the global random state, which differs in a resumed run. The data loader
        is not prepared by accelerate, which would divide each batch among the processes a second time.
        """
        args, options = self.args, self.worker_options()
        # Of all processes, without accumulation.
        batch_size = self.get_total_train_batch_size(args) // args.gradient_accumulation_steps
        if isinstance(self.train_dataset, IterableDataset):
            # A worker without a shard of the stream would have nothing to do.
            options["num_workers"] = min(options["num_workers"], self.train_dataset.num_shards)
            batches = self.stream_batches(batch_size, rank=args.process_index, world_size=args.world_size)
            return DataLoader(batches, batch_size=None, collate_fn=self.data_collator, **options)
        sampler = self.make_batch_sampler(
            batch_size,
            rank=args.process_index,
            world_size=args.world_size,
            shuffle=args.train_sampling_strategy != "sequential",
            seed=args.sampling_seed,
            drop_last=args.dataloader_drop_last,
        )
        dataset = self.rows_to_collate(sampler)
        return EpochDataLoader(dataset, batch_sampler=sampler, collate_fn=self.data_collator, **options)

    def stream_batches(self, batch_size: int, rank: int, world_size: int) -> torch.utils.data.IterableDataset:
        """Batches of a training dataset without length, from which this process takes its rows."""
        return StreamedBatches(self.train_dataset, batch_size, rank, world_size)

    def make_batch_sampler(self, batch_size: int, **options: Any) -> GlobalBatchSampler:
        """The sampler of a training dataset with a length; `options` are those of [`GlobalBatchSampler`]."""
        return GlobalBatchSampler(len(self.train_dataset), batch_size, **options)

    def rows_to_collate(self, sampler: GlobalBatchSampler) -> torch.utils.data.Dataset | Dataset:
        """The dataset that the indices of the sampler belong to."""
        return self.train_dataset

    def worker_options(self) -> dict[str, Any]:
        """The options of a data loader about its workers, which finish the current step after SIGTERM."""
        args = self.args
        return {
            "num_workers": args.dataloader_num_workers,
            "pin_memory": args.dataloader_pin_memory,
            "persistent_workers": args.dataloader_persistent_workers,
            "prefetch_factor": args.dataloader_prefetch_factor,
            "multiprocessing_context": args.dataloader_multiprocessing_context,
            "worker_init_fn": partial(init_worker, num_workers=args.dataloader_num_workers, rank=args.process_index),
        }

    # --- logs, evaluation and checkpoints ---

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        self.check_finite()
        super().log(logs, start_time)
        # The state is saved as JSON, which has no NaN.
        self.state.log_history[-1] = _null_for_undefined(self.state.log_history[-1])

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """The evaluation of transformers; in training an error, not a score, for a model that is no longer finite."""
        self.check_training()
        return super().evaluate(*args, **kwargs)

    def check_training(self) -> None:
        """In training: raise a [`NonFiniteLossError`] if a loss or a weight is not finite."""
        if self.is_in_train:
            self.check_finite()
            self.check_weights()

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimizer of transformers. It refuses the state of another optimizer or other groups of parameters."""
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if is_new:
            optimizer.register_load_state_dict_pre_hook(self._check_groups)
        return optimizer

    def _check_groups(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        all_groups = (optimizer.param_groups, state["param_groups"])
        own, saved = ([len(group["params"]) for group in groups] for groups in all_groups)
        # Each of two kinds of optimizer has options that the other lacks. A new release of torch only adds options.
        options, saved_options = (groups[0].keys() - {"initial_lr"} for groups in all_groups)
        if own != saved or (options - saved_options and saved_options - options):
            raise InputError(
                "the checkpoint cannot be resumed: it has another optimizer or other groups of parameters; resume "
                f"with the {self.grouped_by} and optim that it was saved with"
            )

    @contextmanager
    def writing_checkpoint(self, folder: str) -> Iterator[None]:
        self.check_finite()
        self.check_weights()
        with remove_if_incomplete(self, folder), self.evaluating():
            yield

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """With the weights in the model that are evaluated and saved: the average of `ema`, if there is one."""
        with nullcontext() if self.average is None else self.average.in_model():
            yield

    def complete_checkpoint(self, folder: str) -> None:
        if self.average is not None and self.args.should_save:
            self.average.save(folder)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            write_manifest(folder)

    def before_resuming(self, checkpoint: str) -> None:
        check_checkpoint(checkpoint, self.model)
        check_resumable(checkpoint, self.args.ema)

    def after_resuming(self, checkpoint: str) -> None:
        if self.average is not None:
            self.average.resume(checkpoint)

    def is_finished(self) -> bool:
        """Whether the run was interrupted after its last step."""
        return self.state.global_step >= self.state.max_steps

    def can_be_best(self, metrics: dict[str, float]) -> bool:
        """Whether the metric that the best checkpoint is chosen by is defined."""
        name = (self.args.metric_for_best_model or "").removeprefix("eval_")
        return not _is_undefined(metrics.get(f"eval_{name}"))

    def save_metrics(self, split: str, metrics: dict[str, float], combined: bool = True) -> None:
        """Write the metrics; undefined ones become null, because JSON has no NaN."""
        super().save_metrics(split, _null_for_undefined(metrics), combined)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write the card of `args.output_dir`, on the main process."""
        if self.write_model_card is None:
            super().create_model_card(*args, **kwargs)
        elif self.is_world_process_zero():
            self.write_model_card(self)

    def card_facts(self) -> CardFacts:
        """The facts of this run that a model card is made from. Each kind of training adds its own."""
        args, state, model = self.args, self.state, self.model
        is_best_kept = args.load_best_model_at_end and state.best_model_checkpoint is not None
        # Not `best_global_step`: a best evaluation whose step was not saved is not what was loaded.
        kept_step = int(state.best_model_checkpoint.rpartition("-")[2]) if is_best_kept else state.global_step
        rows = len(self.train_dataset) if isinstance(self.train_dataset, Sized) else None
        max_tokens = self.processing_class.model_max_length
        return CardFacts(
            output_dir=args.output_dir,
            hub_model_id=self.hub_model_id or args.hub_model_id,
            architecture=type(model).__name__,
            model={"parameters": f"{sum(parameter.numel() for parameter in model.parameters()):,}"},
            schedule=schedule_rows(args, state, model.dtype, max_tokens, has_epochs=rows is not None),
            train_rows=rows,
            batch_size=(state.train_batch_size or args.per_device_train_batch_size) * args.world_size,
            max_tokens=max_tokens,
            seed=args.seed,
            device=device_name(args),
            seconds=next((log["train_runtime"] for log in state.log_history[::-1] if "train_runtime" in log), None),
            was_resumed=bool(args.resume_from_checkpoint),
            is_sharded=self.is_fsdp_enabled or self.is_deepspeed_enabled,
            versions=package_versions(),
            log_history=state.log_history,
            evaluations=evaluations_by_step(state.log_history, kept_step),
            test_scores=last_test_scores(state.log_history),
            kept_step=kept_step,
            best_step=state.best_global_step,
            metric=(args.metric_for_best_model or "").removeprefix("eval_"),
            is_best_kept=is_best_kept,
            license=args.license,
            languages=args.language or (),
        )


class _BestMetricCallback(TrainerCallback):
    """Raises an error that names the metrics of an evaluation if the one to choose the checkpoint by is missing."""

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        chosen = (args.metric_for_best_model or "").removeprefix("eval_")
        measured = [name.removeprefix("eval_") for name in metrics or () if name.startswith("eval_")]
        if chosen and measured and args.load_best_model_at_end and chosen not in measured:
            raise unknown_metric(chosen, measured)


def check_rows(dataset: Dataset, needed: int, source: str | None = None) -> None:
    """Raise an `InputError` if the training rows do not make a batch. `source` names one of several datasets."""
    if len(dataset) < needed:
        begin = "" if source is None else f"{source}: "
        raise InputError(f"{begin}{len(dataset)} training row(s) do not make a batch; {needed} are needed")


def unknown_metric(name: str, measured: Sequence[str]) -> InputError:
    return InputError(f"metric_for_best_model={name!r} is not measured here; use one of {', '.join(measured)}")


def _check_attention(model: torch.nn.Module) -> None:
    config = getattr(model, "config", None)
    name, dropout = attention_dropout(config)
    if dropout > 0 and attention_implementation(config) == "flex_attention":
        raise InputError(
            f"attn_implementation=flex_attention has no dropout, and {name} of the model is {dropout}; train with sdpa"
        )


def _null_for_undefined(metrics: dict[str, Any]) -> dict[str, Any]:
    return {name: None if _is_undefined(value) else value for name, value in metrics.items()}


def _is_undefined(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
