"""The facts that a model card is made from: plain data that a trainer returns after a run."""

import math
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from transformers import PreTrainedModel, TrainerState, TrainingArguments


PACKAGES = ("modeling-layerpool", "torch", "transformers", "accelerate", "datasets", "tokenizers")
# Entries of an evaluation that are no scores: how much was measured, and how fast.
COUNTS = ("pairs", "queries", "rows")
SPEED = re.compile(r"runtime|.*_per_second|model_preparation_time")

Evaluations = dict[int, dict[str, float]]


@dataclass
class CardFacts:
    """
    A finished training run as strings, numbers, lists and dictionaries.

    Args:
        output_dir, hub_model_id: the folder of the run, and its name on the Hub if it has one.
        task: the task by its name on the Hub: `sentence-similarity`, `text-classification` or `fill-mask`.
        architecture: the name of the model's class.
        model: the rows of the table of the model.
        settings: the rows of the table of settings that belong to this kind of training.
        schedule: the rows that every kind of training has, from the learning rate to the device.
        train_rows: the number of training rows, or None for a stream.
        batch_size: rows in a batch of all processes together.
        max_tokens: tokens at which a text is cut.
        device: the device and the number of processes.
        seconds: duration of the training, or None if it is not over.
        was_resumed: whether that is only the part since the run was resumed.
        is_sharded: whether FSDP or DeepSpeed spreads the model over processes.
        versions: the version of each package.
        log_history: the log of the trainer.
        evaluations: the finite metrics of each evaluation by step, and of the kept weights after the training.
        test_scores: the last metrics of the test data; empty without labels.
        kept_step: the step whose weights were kept.
        best_step: the step of the best evaluation, whether or not its weights were saved.
        metric: the metric that chooses the checkpoint, or "".
        is_best_kept: whether the best checkpoint was loaded after the training.
        citations: BibTeX entries of the methods of the run.
        width: numbers in the vector of a sentence.
        pooler_type: as in the configuration of the model.
        pooler_weighting: whether the weights of the hidden states are `fixed`, `shared` by all texts or `per_text`.
        pooler_residual: as in the configuration of the model.
        problem_type, labels: the kind of labels of a classifier and their names; None and () for other models.
        mask_token: the mask token of a masked language model.
    """

    output_dir: str
    hub_model_id: str | None
    architecture: str
    model: dict[str, str]
    schedule: dict[str, str]
    train_rows: int | None
    batch_size: int
    max_tokens: int
    seed: int
    device: str
    seconds: float | None
    was_resumed: bool
    is_sharded: bool
    versions: dict[str, str]
    log_history: list[dict[str, Any]]
    evaluations: Evaluations
    test_scores: dict[str, float]
    kept_step: int
    best_step: int | None
    metric: str
    is_best_kept: bool
    # Facts that each kind of training adds.
    task: str = ""
    settings: dict[str, str] = field(default_factory=dict)
    citations: list[str] = field(default_factory=list)
    width: int | None = None
    pooler_type: str | None = None
    pooler_weighting: str | None = None
    pooler_residual: str | None = None
    problem_type: str | None = None
    labels: Sequence[str] = ()
    mask_token: str | None = None


def with_pooler(facts: CardFacts, model: PreTrainedModel, output: dict[str, str]) -> CardFacts:
    """
    The facts of a run, and those of its pooler.

    Args:
        model: a model with a pooler.
        output: rows of the table of the model, about the vector that the pooler makes.
    """
    config, states = model.config, model.pooler.states
    settings = {}
    if config.pooler_residual is not None:
        settings["pooler residual"] = f"the pooler adds to the {config.pooler_residual} of the highest state read"
    if config.pooler_normalize_inputs:
        settings["pooler inputs"] = "each hidden state normalized to mean 0 and variance 1"
    if config.pooler_output_activation is not None:
        settings["pooler output activation"] = f"`{config.pooler_output_activation}`"
    encoder = config.model_type.removeprefix("layerpool_")
    return replace(
        facts,
        model={
            "encoder": f"{encoder}, {config.hidden_size} wide, {states[-1]} layers",
            "pooler": f"`{config.pooler_type}`",
            "hidden states read": ", ".join(map(str, states)) + " (0 is the embedding output)",
            **output,
            **facts.model,
        },
        settings=settings,
        citations=[model.pooler.citation] if model.pooler.citation else [],
        width=model.embedding_dim,
        pooler_type=config.pooler_type,
        pooler_weighting=model.pooler.weighting,
        pooler_residual=config.pooler_residual,
    )


def schedule_rows(
    args: TrainingArguments, state: TrainerState, dtype: torch.dtype, max_tokens: int, *, has_epochs: bool
) -> dict[str, str]:
    """The settings that every kind of training has."""
    rows = {
        "learning rate": f"{args.learning_rate:g}, {args.lr_scheduler_type.value} schedule",
        "warmup steps": f"{args.get_warmup_steps(state.max_steps)}",
        "optimizer": f"{args.optim.value}, weight decay {args.weight_decay:g}",
        "steps": f"{state.global_step}",
    }
    if has_epochs and state.epoch is not None:
        rows["epochs"] = f"{state.epoch:.4g}"
    rows["seed"] = f"{args.seed}" + ("" if args.data_seed is None else f", data seed {args.data_seed}")
    rows["tokens in a text"] = f"at most {max_tokens}"
    weights = str(dtype).removeprefix("torch.")
    autocast = "bfloat16" if args.bf16 else "float16" if args.fp16 else None
    rows["precision"] = weights if autocast is None else f"{autocast} autocast, weights in {weights}"
    rows["device"] = device_name(args)
    return rows


def device_name(args: TrainingArguments) -> str:
    """The kind of device and the number of processes."""
    kind = torch.cuda.get_device_name(args.device) if args.device.type == "cuda" else args.device.type
    return f"{kind}, {args.world_size} process{'' if args.world_size == 1 else 'es'}"


def evaluations_by_step(log_history: Iterable[Mapping[str, Any]], kept_step: int) -> Evaluations:
    """The finite metrics of each evaluation by its step."""
    evaluations: Evaluations = {}
    is_training_over = False
    for log in log_history:
        is_training_over |= "train_runtime" in log
        scores = finite_scores(log, "eval_")
        if scores.keys() - set(COUNTS):
            # After the training the kept weights are measured, whatever step the log gives.
            evaluations[kept_step if is_training_over else log["step"]] = scores
    return evaluations


def last_test_scores(log_history: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """The metrics that were last measured on the test data."""
    measured = [scores for log in log_history if (scores := finite_scores(log, "test_"))]
    return measured[-1] if measured else {}


def finite_scores(log: Mapping[str, Any], prefix: str) -> dict[str, float]:
    """The finite metrics of a log entry whose names begin with `prefix`, without it."""
    metrics = {key.removeprefix(prefix): value for key, value in log.items() if key.startswith(prefix)}
    return {
        name: value
        for name, value in metrics.items()
        if isinstance(value, (int, float)) and math.isfinite(value) and not SPEED.fullmatch(name)
    }


def package_versions(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """The versions of Python and of those packages that are installed."""
    versions = {"python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:  # run from a copy that is not installed
            continue
    return versions
