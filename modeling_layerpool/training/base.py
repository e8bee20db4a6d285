"""The arguments and the trainer that all kinds of training share."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
from accelerate.utils import DynamoBackend
from datasets import Dataset, IterableDataset
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments, get_scheduler
from transformers.integrations import get_available_reporting_integrations
from transformers.trainer_utils import IntervalStrategy

from ..common.command_line import Range, check_arguments, check_used
from ..common.errors import InputError
from .batching import EpochDataLoader, GlobalBatchSampler, StreamedBatches
from .compat import TrainerHooks, attention_implementation
from .fault_tolerance import init_worker, remove_if_incomplete, write_manifest
from .lora import check_checkpoint


# The ranges of the numbers among the arguments of transformers, which silently takes some invalid values for "off".
TRAINING_RANGES = {
    **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size"), Range(at_least=1)),
    **dict.fromkeys(("gradient_accumulation_steps", "eval_accumulation_steps"), Range(at_least=1)),
    **dict.fromkeys(("save_total_limit", "torch_empty_cache_steps", "ddp_bucket_cap_mb"), Range(at_least=1)),
    **dict.fromkeys(("ddp_timeout", "dataloader_prefetch_factor"), Range(at_least=1)),
    **dict.fromkeys(("logging_steps", "eval_steps", "save_steps"), Range(above=0)),
    **dict.fromkeys(("learning_rate", "weight_decay", "max_grad_norm", "adam_epsilon"), Range(at_least=0)),
    **dict.fromkeys(("warmup_steps", "eval_delay", "neftune_noise_alpha"), Range(at_least=0)),
    **dict.fromkeys(("adam_beta1", "adam_beta2"), Range(at_least=0, below=1)),
    **dict.fromkeys(("seed", "data_seed"), Range(at_least=0)),
    "num_train_epochs": Range(above=0, at_most=1_000_000),
    "max_steps": Range(at_least=1, or_equal_to=-1),
    "label_smoothing_factor": Range(at_least=0, at_most=1),
    "dataloader_num_workers": Range(at_least=0, at_most=1024),
}
COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")


class NonFiniteLossError(RuntimeError):
    """A loss or a weight became NaN or infinite. The message names the step and, if known, the rows of the batch."""


@dataclass
class RunArguments(TrainingArguments):
    """
    `transformers.TrainingArguments` with the options and defaults that all training scripts share.

    Raises:
        InputError: a value is out of its range, needs a package that is not installed, or has no effect.
    """

    RANGES: ClassVar = TRAINING_RANGES
    # Arguments of transformers that a kind of training does not read, in addition to those of its base classes.
    WITHOUT_EFFECT: ClassVar[tuple[str, ...]] = ("prediction_loss_only", "use_liger_kernel")

    overwrite_output_dir: bool = field(
        default=False,
        metadata={"help": "Write into an --output_dir that is not empty; its old checkpoints are removed."},
    )
    eval_strategy: str | None = field(
        default=None,
        metadata={
            "help": "When to evaluate: 'no', 'steps' or 'epoch'. Default: whenever a checkpoint is saved, if there is "
            "evaluation data.",
            "choices": [strategy.value for strategy in IntervalStrategy],
        },
    )
    # The filter of transformers would hide a loss that is not finite.
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Must stay off: a loss that is not finite stops the training."}
    )

    def __post_init__(self):
        check_arguments(self)
        for base in type(self).__mro__:
            check_used(self, dict.fromkeys(vars(base).get("WITHOUT_EFFECT", ()), False), "in this kind of training")
        of_workers = ("persistent_workers", "prefetch_factor", "multiprocessing_context")
        is_used = {f"dataloader_{name}": self.dataloader_num_workers > 0 for name in of_workers}
        check_used(self, is_used, "without dataloader_num_workers")
        if self.debug:  # one mode fails on boolean masks, the other without a TPU
            raise InputError("debug does not work in this kind of training; leave it out")
        if self.logging_nan_inf_filter:
            raise InputError("logging_nan_inf_filter must stay off: a loss that is not finite stops the training")
        if not torch.accelerator.is_available():
            self.use_cpu = True  # TrainingArguments rejects bf16 on a CPU unless use_cpu is set
        if self.fp16 and self.use_cpu:
            raise InputError("fp16 does nothing on a CPU; use bf16, or leave it out")
        # transformers fills in defaults, after which nobody can tell whether these were given.
        self.metric_was_given = self.metric_for_best_model is not None
        self.direction_was_given = self.greater_is_better is not None
        self.eval_strategy_was_given = self.eval_strategy is not None
        if self.eval_strategy is None:
            self.eval_strategy = "no"
            if self.load_best_model_at_end and self.save_strategy != "best":
                self.evaluate_when_saving()
        super().__post_init__()
        _check_reporting(self.report_to)
        if self.torch_compile:
            _check_compilation(self.torch_compile_backend, self.torch_compile_mode)
        _check_optimizer(self)

    def evaluate_when_saving(self) -> None:
        """Evaluate before every checkpoint, which is the default of the scripts."""
        self.eval_strategy, self.eval_steps = self.save_strategy, self.eval_steps or self.save_steps

    @property
    def sampling_seed(self) -> int:
        """The seed of the order of the rows and of their masks."""
        return self.seed if self.data_seed is None else self.data_seed

    def __getstate__(self) -> dict[str, Any]:
        # Checkpoints contain these arguments and may be published, so the token must not be pickled.
        return {**vars(self), "hub_token": None}


def _check_reporting(names: Sequence[str]) -> None:
    known = get_available_reporting_integrations()
    for name in names:
        if name not in known:
            raise InputError(f"report_to={name} is unknown or not installed; use one of {', '.join(['none', *known])}")


def _check_compilation(backend: str, mode: str | None) -> None:
    known = sorted({backend.value.lower() for backend in DynamoBackend} & set(torch.compiler.list_backends(())))
    if backend not in known:
        raise InputError(f"torch_compile_backend={backend} is unknown here; use one of {', '.join(known)}")
    if mode not in (None, *COMPILE_MODES):
        raise InputError(f"torch_compile_mode={mode} is unknown; use one of {', '.join(COMPILE_MODES)}")


def _check_optimizer(args: TrainingArguments) -> None:
    """Create the optimizer and the schedule for one weight, to find a missing package or a wrong option early."""
    layer = torch.nn.Linear(1, 1, device="meta")  # initializing it draws no random numbers
    try:
        Trainer.get_optimizer_cls_and_kwargs(args, layer)
    except ImportError as error:
        raise InputError(f"optim={args.optim.value} needs a package that is not installed: {error}") from error
    except (ValueError, TypeError) as error:
        raise InputError(f"optim={args.optim.value}: {error} (optim_args={args.optim_args})") from error
    optimizer = torch.optim.SGD(layer.parameters(), args.learning_rate)
    name, options = args.lr_scheduler_type, args.lr_scheduler_kwargs
    try:
        get_scheduler(name, optimizer, 1, 2, options)
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"lr_scheduler_type={name.value}: {error} (lr_scheduler_kwargs={options})") from error


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
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.watch(loss, rows)
        return loss

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
        """The optimizer of transformers, which refuses the state of an optimizer with other groups of parameters."""
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if is_new:
            optimizer.register_load_state_dict_pre_hook(self._check_groups)
        return optimizer

    def _check_groups(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        sizes = [[len(group["params"]) for group in of["param_groups"]] for of in (vars(optimizer), state)]
        if sizes[0] != sizes[1]:
            raise InputError(
                "the checkpoint cannot be resumed: its optimizer has other groups of parameters; resume with the "
                f"{self.grouped_by} and optimizer that it was saved with"
            )

    @contextmanager
    def writing_checkpoint(self, folder: str) -> Iterator[None]:
        self.check_finite()
        self.check_weights()
        with remove_if_incomplete(self, folder):
            yield

    def complete_checkpoint(self, folder: str) -> None:
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            write_manifest(folder)

    def before_resuming(self, checkpoint: str) -> None:
        check_checkpoint(checkpoint, self.model)

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


class _BestMetricCallback(TrainerCallback):
    """Raises an error that names the metrics of an evaluation if the one to choose the checkpoint by is missing."""

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        chosen = (args.metric_for_best_model or "").removeprefix("eval_")
        measured = [name.removeprefix("eval_") for name in metrics or () if name.startswith("eval_")]
        if chosen and measured and args.load_best_model_at_end and chosen not in measured:
            raise unknown_metric(chosen, measured)


def unknown_metric(name: str, measured: Sequence[str]) -> InputError:
    return InputError(f"metric_for_best_model={name!r} is not measured here; use one of {', '.join(measured)}")


def _check_attention(model: torch.nn.Module) -> None:
    config = getattr(model, "config", None)
    dropouts = (f"attention_{name}" for name in ("probs_dropout_prob", "probs_dropout", "dropout"))
    dropout = next((name for name in dropouts if getattr(config, name, 0)), None)
    if dropout is not None and attention_implementation(config) == "flex_attention":
        raise InputError(
            f"attn_implementation=flex_attention has no dropout, and {dropout} of the model is "
            f"{getattr(config, dropout)}; train with sdpa"
        )


def _null_for_undefined(metrics: dict[str, Any]) -> dict[str, Any]:
    return {name: None if _is_undefined(value) else value for name, value in metrics.items()}


def _is_undefined(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
