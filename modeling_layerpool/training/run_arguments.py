"""The arguments of a run that all kinds of training share: those of transformers, checked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from accelerate.utils import DynamoBackend
from transformers import Trainer, TrainingArguments, get_scheduler
from transformers.integrations import get_available_reporting_integrations
from transformers.trainer_utils import IntervalStrategy
from transformers.training_args import trainer_log_levels

from ..common.command_line import Range, check_arguments, check_used
from ..common.errors import InputError
from ..common.licenses import check_languages, check_license


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
    "ema": Range(above=0, below=1),
    **dict.fromkeys(("seed", "data_seed"), Range(at_least=0)),
    "num_train_epochs": Range(above=0, at_most=1_000_000),
    "max_steps": Range(at_least=1, or_equal_to=-1),
    "label_smoothing_factor": Range(at_least=0, at_most=1),
    "dataloader_num_workers": Range(at_least=0, at_most=1024),
}
COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")


@dataclass
class RunArguments(TrainingArguments):
    """
    `transformers.TrainingArguments` with the options and defaults that all training scripts share.

    Raises:
        InputError: a value is out of its range, needs a package that is not installed, or has no effect.
    """

    GROUP: ClassVar = "training"
    SHOWN: ClassVar = {
        "output_dir": "Folder for the model, its card and the checkpoints",
        "per_device_train_batch_size": "Rows in a batch of each process",
        "num_train_epochs": "Number of passes over the data",
        "max_steps": "Number of steps, instead of passes",
        "learning_rate": "Highest learning rate",
        "warmup_steps": "Steps, or share of them, until it is reached",
        "bf16": "Train in bfloat16 autocast",
        "seed": "Seed of weights, dropout and row order",
        "logging_steps": "Log every so many steps, or share of them",
        "eval_strategy": "When to evaluate: no, steps or epoch. Default: at each save",
        "save_strategy": "When to save: no, steps or epoch",
        "save_steps": "Save every so many steps, or share of them",
        "metric_for_best_model": "Metric that chooses the checkpoint to keep",
        "resume_from_checkpoint": "A checkpoint, or true for the last one",
        "report_to": "Log to tensorboard, wandb, trackio",
        "push_to_hub": "Upload the finished folder to the Hub",
        "hub_model_id": "Name on the Hub, such as me/my-encoder",
    }
    DETAILS: ClassVar = ("ema", "dry_run", "license", "language")
    RANGES: ClassVar = TRAINING_RANGES
    # Arguments of transformers that a kind of training does not read, in addition to those of its base classes.
    WITHOUT_EFFECT: ClassVar[tuple[str, ...]] = ("label_names", "prediction_loss_only", "use_liger_kernel")
    # The arguments that were given on the command line, as `read_arguments` sets them.
    given: ClassVar[Mapping[str, Any]] = {}

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
    logging_steps: float = field(
        default=0.05,
        metadata={
            "help": "Log the loss and the learning rate after this many steps, or, below 1, after this share of all "
            "steps. Default: 0.05, which is 20 times in a run."
        },
    )
    log_level_replica: str = field(
        default="error",
        metadata={
            "help": "Log level of the processes other than the main one, which would only repeat its messages.",
            "choices": list(trainer_log_levels),
        },
    )
    ddp_find_unused_parameters: bool | None = field(
        default=False,
        metadata={
            "help": "With several processes, look for parameters without a gradient in each step. Models of this "
            "package have none; only a model of your own may need it."
        },
    )
    ema: float | None = field(
        default=None,
        metadata={
            "help": "Evaluate and save an exponential moving average of the weights, of which each step keeps this "
            "part: 0.99, for instance. Default: off. Not under FSDP and DeepSpeed."
        },
    )
    dry_run: bool = field(
        default=False,
        metadata={
            "help": "With --push_to_hub: list the files of the finished --output_dir that would be uploaded, and end. "
            "Nothing is trained or uploaded, and no network is needed."
        },
    )
    # The filter of transformers would hide a loss that is not finite.
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Must stay off: a loss that is not finite stops the training."}
    )

    license: str | None = field(
        default=None,
        metadata={"help": "License of the trained model for its card, such as apache-2.0; other for any."},
    )
    language: list[str] | None = field(
        default=None,
        metadata={"help": "Languages that the model is for, for its card: codes such as en de, or multilingual."},
    )

    def __post_init__(self):
        check_arguments(self)
        check_license(self.license)
        check_languages(self.language or ())
        for base in type(self).__mro__:
            check_used(self, dict.fromkeys(vars(base).get("WITHOUT_EFFECT", ()), False), "in this kind of training")
        of_workers = ("persistent_workers", "prefetch_factor", "multiprocessing_context")
        is_used = {f"dataloader_{name}": self.dataloader_num_workers > 0 for name in of_workers}
        check_used(self, is_used, "without dataloader_num_workers")
        check_used(self, {"dry_run": self.push_to_hub}, "without push_to_hub")
        if self.debug:  # one mode fails on boolean masks, the other without a TPU
            raise InputError("debug does not work in this kind of training; leave it out")
        if self.logging_nan_inf_filter:
            raise InputError("logging_nan_inf_filter must stay off: a loss that is not finite stops the training")
        if not torch.accelerator.is_available():
            self.use_cpu = True  # TrainingArguments rejects bf16 on a CPU unless use_cpu is set
        if self.fp16 and self.use_cpu:
            raise InputError("fp16 does nothing on a CPU; use bf16, or leave it out")
        # Recorded here, because transformers replaces None by its defaults below.
        self.metric_was_given = self.metric_for_best_model is not None
        self.direction_was_given = self.greater_is_better is not None
        self.eval_strategy_was_given = self.eval_strategy is not None
        if self.eval_strategy is None:
            self.eval_strategy = "no"
            if self.load_best_model_at_end and self.save_strategy != "best":
                self.evaluate_when_saving()
        for name in ("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs", "lr_scheduler_kwargs"):
            value = getattr(self, name, None)  # older releases have no activation_checkpointing_kwargs
            if isinstance(value, str) and not value.startswith("{"):
                raise InputError(f"{name}={value} must be a JSON object such as '{{\"name\": 1}}'")
        if self.eval_strategy == "steps" and self.eval_steps is None and self.logging_steps < 1:
            self.eval_steps = self.save_steps  # transformers would evaluate as often as it logs
        super().__post_init__()
        _check_reporting(self.report_to)
        if self.torch_compile:
            _check_compilation(self.torch_compile_backend, self.torch_compile_mode)
        _check_optimizer(self)

    def evaluate_when_saving(self) -> None:
        """Evaluate before every checkpoint, which is the default of the scripts."""
        self.eval_strategy, self.eval_steps = self.save_strategy, self.eval_steps or self.save_steps

    @property
    def least_rows(self) -> int:
        """The fewest rows that make a batch on all processes."""
        return self.world_size * (self.per_device_train_batch_size if self.dataloader_drop_last else 1)

    @property
    def sampling_seed(self) -> int:
        """The seed of the order of the rows and of their masks."""
        return self.seed if self.data_seed is None else self.data_seed

    def __getstate__(self) -> dict[str, Any]:
        # Checkpoints contain these arguments and may be published, so the token must not be pickled.
        return {name: value for name, value in vars(self).items() if name != "given"} | {"hub_token": None}


@dataclass
class PackedRunArguments(RunArguments):
    """[`RunArguments`] of a trainer that packs texts and whose collator reads columns the model does not know."""

    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Must stay off: the collator needs every column."}
    )

    def __post_init__(self):
        super().__post_init__()
        if self.train_sampling_strategy == "group_by_length":
            raise InputError("train_sampling_strategy=group_by_length does nothing with packed texts; leave it out")
        if self.remove_unused_columns:
            raise InputError("remove_unused_columns must stay off: the collator needs every column")


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
