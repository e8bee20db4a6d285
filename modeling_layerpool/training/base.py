"""The base trainer: whole checkpoints, a loss that is watched, and an honest card."""

import math
import os
from collections.abc import Callable, Iterator, Sequence, Sized
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
from accelerate.utils import DynamoBackend
from transformers import Trainer, TrainerCallback, TrainingArguments, get_scheduler
from transformers.integrations import get_available_reporting_integrations
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, IntervalStrategy

from ..common.command_line import Range, check_arguments, check_used
from ..common.errors import InputError
from .card_facts import (
    CardFacts,
    device_name,
    evaluations_by_step,
    last_test_scores,
    package_versions,
    schedule_rows,
)
from .fault_tolerance import init_worker, whole_or_gone, write_manifest
from .lora import check_checkpoint


# Of those fields of transformers' arguments that are numbers. Here nothing is silently taken for "off".
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
    """The loss or a weight became NaN or infinite. The message names the step and, if known, the rows of the batch."""


@dataclass
class RunArguments(TrainingArguments):
    """
    `transformers.TrainingArguments`, with what all of our scripts share.

    Raises:
        InputError: a value is out of its range, needs a package that is not installed, or has no effect.
    """

    RANGES: ClassVar = TRAINING_RANGES
    # Fields of transformers' that a kind of training does not read; those of its base classes are not read either.
    WITHOUT_EFFECT: ClassVar[tuple[str, ...]] = ("prediction_loss_only", "use_liger_kernel")

    overwrite_output_dir: bool = field(
        default=False,
        metadata={"help": "Write into an --output_dir that is not empty; its old checkpoints are removed."},
    )
    eval_strategy: str | None = field(
        default=None,
        metadata={
            "help": "When to evaluate: 'no', 'steps' or 'epoch'. Default: whenever a checkpoint is saved, if there is "
            "something to evaluate on.",
            "choices": [strategy.value for strategy in IntervalStrategy],
        },
    )
    # A loss that is not finite stops training here, so that it must not be smoothed over.
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
        if self.debug:  # both of its kinds fail: on masks of true and false, and without a TPU
            raise InputError("debug does not work in this kind of training; leave it out")
        if self.logging_nan_inf_filter:
            raise InputError("logging_nan_inf_filter must stay off: a loss that is not finite stops the training")
        if not torch.accelerator.is_available():
            self.use_cpu = True  # TrainingArguments rejects bf16 on a CPU unless use_cpu is set
        if self.fp16 and self.use_cpu:
            raise InputError("fp16 does nothing on a CPU; use bf16, or leave it out")
        # transformers fills these in, so that it cannot be told afterwards whether they were given.
        self.metric_was_given = self.metric_for_best_model is not None
        self.direction_was_given = self.greater_is_better is not None
        self.eval_strategy_was_given = self.eval_strategy is not None
        if self.eval_strategy is None:
            self.eval_strategy = "no"
            if self.load_best_model_at_end and self.save_strategy != "best":
                self.eval_strategy, self.eval_steps = self.save_strategy, self.eval_steps or self.save_steps
        super().__post_init__()
        _check_reporting(self.report_to)
        if self.torch_compile:
            _check_compilation(self.torch_compile_backend, self.torch_compile_mode)
        _check_optimizer(self)

    def __getstate__(self) -> dict[str, Any]:
        # Checkpoints hold these arguments, pickled, and are published: the token must not be among them.
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
    """Make the optimizer and the schedule once, of one weight: a package may be missing, or an option wrong."""
    layer = torch.nn.Linear(1, 1, device="meta")  # which draws no random number
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


class LayerPoolTrainer(Trainer):
    r"""
    The transformers Trainer with checkpoints that are whole or gone, and a loss that must stay finite.

    Args:
        write_model_card (`Callable`, *optional*):
            Called with this trainer to write the card of `args.output_dir`. Default: the card of transformers.

    Other arguments are the Trainer's.

    Raises:
        NonFiniteLossError: the loss is NaN or infinite; raised at the next logging or saving step.
        CheckpointWriteError: a checkpoint could not be written, as on a full disk; older ones stay whole.
    """

    # What to try when the loss is no longer finite.
    advice = "lower --learning_rate"
    # The options that decide which parameters are trained, and in which groups.
    grouped_by = "pooler_type"
    # What this kind of training measures by itself, and whether more of it is better.
    METRICS: ClassVar[dict[str, bool]] = {"loss": False}

    def __init__(
        self,
        model: torch.nn.Module,
        args: RunArguments,
        *,
        write_model_card: Callable[[Trainer], None] | None = None,
        **kwargs: Any,
    ):
        if kwargs.get("train_dataset") is not None:
            _check_attention(model)
        self.write_model_card = write_model_card
        self._unchecked: list[tuple[int, Sequence[int], torch.Tensor]] = []
        if not args.direction_was_given and args.metric_for_best_model is not None:
            # transformers guesses it from the name, which calls a high perplexity a good one.
            name = args.metric_for_best_model.removeprefix("eval_")
            args.greater_is_better = self.METRICS.get(name, args.greater_is_better)
        super().__init__(model, args, **kwargs)
        self.add_callback(_BestMetricCallback())

    def watch(self, loss: torch.Tensor, rows: Sequence[int] = ()) -> None:
        """Remember a step's loss for [`check_finite`]; looking at it now would wait for the device."""
        self._unchecked.append((self.state.global_step + 1, rows, loss.detach()))

    def check_finite(self) -> None:
        """Raise a [`NonFiniteLossError`] if a loss since the last check was not finite. Synchronises once."""
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
        """All that this trainer changes, by name."""
        return ((name, parameter) for name, parameter in self.model.named_parameters() if parameter.requires_grad)

    def check_weights(self) -> None:
        """Raise a [`NonFiniteLossError`] if the last update left a weight that is not finite. Synchronises once."""
        names, weights = zip(*self.trained_parameters(), strict=True)
        # Under FSDP each process looks at its part.
        parts = (weight.to_local() if hasattr(weight, "to_local") else weight for weight in weights)
        finite = torch.stack([part.detach().isfinite().all() for part in parts]).tolist()
        if not all(finite):
            raise NonFiniteLossError(
                f"{finite.count(False)} of the trained weights are not finite after step {self.state.global_step} "
                f"({names[finite.index(False)]} for one), and nothing was saved of them; {self.advice}"
            )

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """The step of transformers, whose loss is watched."""
        rows = inputs.get("row_numbers", ())
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.watch(loss, rows)
        return loss

    def worker_options(self) -> dict[str, Any]:
        """What a data loader is told of its workers: transformers' arguments, and to end after the step on SIGTERM."""
        args = self.args
        return {
            "num_workers": args.dataloader_num_workers,
            "pin_memory": args.dataloader_pin_memory,
            "persistent_workers": args.dataloader_persistent_workers,
            "prefetch_factor": args.dataloader_prefetch_factor,
            "multiprocessing_context": args.dataloader_multiprocessing_context,
            "worker_init_fn": partial(init_worker, num_workers=args.dataloader_num_workers, rank=args.process_index),
        }

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        self.check_finite()
        super().log(logs, start_time)
        # JSON, as which the state is saved, has no NaN.
        self.state.log_history[-1] = _null_for_undefined(self.state.log_history[-1])

    def _evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        # In the middle of training. A broken model is an error of its own, not a broken score.
        self.check_finite()
        self.check_weights()
        return super()._evaluate(*args, **kwargs)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        # transformers would keep a first NaN as the best for ever, as no other number is better than it.
        name = f"eval_{(self.args.metric_for_best_model or '').removeprefix('eval_')}"
        return not _is_undefined(metrics.get(name)) and super()._determine_best_metric(metrics, trial)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        self.check_finite()
        self.check_weights()
        folder = os.path.join(self._get_output_dir(trial), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        with whole_or_gone(self, folder):
            super()._save_checkpoint(model, trial)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        # Each process has written its part, and nothing older has been removed yet.
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            write_manifest(output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        check_checkpoint(resume_from_checkpoint, self.model)
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        try:
            super()._load_optimizer_and_scheduler(checkpoint)
        except ValueError as error:
            if "parameter group" not in str(error):
                raise
            raise InputError(
                f"{checkpoint}: its optimizer has other groups of parameters; resume with the {self.grouped_by} and "
                "optimizer that it was saved with"
            ) from error

    def _init_training_state(self, max_steps: int, steps_an_epoch: int, epochs: int, *args: Any) -> tuple[int, int]:
        epochs_trained, steps_trained = super()._init_training_state(max_steps, steps_an_epoch, epochs, *args)
        if self.state.global_step >= max_steps:
            # A run that was interrupted after its last step: transformers would train one more.
            return epochs, 0
        return epochs_trained, steps_trained

    def save_metrics(self, split: str, metrics: dict[str, float], combined: bool = True) -> None:
        """Write the metrics; one that is not defined becomes null, as JSON has no NaN."""
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
        )


class _BestMetricCallback(TrainerCallback):
    """Names the metrics that there are when the one to choose the checkpoint by is not among them."""

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
    if dropout is not None and config._attn_implementation == "flex_attention":
        raise InputError(
            f"attn_implementation=flex_attention has no dropout, and {dropout} of the model is "
            f"{getattr(config, dropout)}; take sdpa to train"
        )


def _null_for_undefined(metrics: dict[str, Any]) -> dict[str, Any]:
    return {name: None if _is_undefined(value) else value for name, value in metrics.items()}


def _is_undefined(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
