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
    """A finished training run as strings, numbers, lists and dictionaries."""

    output_dir: str
    hub_model_id: str | None  # the name on the Hub, if the run has one
    architecture: str  # the name of the model's class
    model: dict[str, str]  # rows of the table of the model
    schedule: dict[str, str]  # rows of the table of settings that every kind of training has
    train_rows: int | None  # None for a stream
    batch_size: int  # rows in a batch of all processes together
    max_tokens: int  # tokens at which a text is cut
    seed: int
    device: str  # the device and the number of processes
    seconds: float | None  # duration of the training since it was started or resumed; None if it is not over
    was_resumed: bool
    is_sharded: bool  # whether FSDP or DeepSpeed spreads the model over processes
    versions: dict[str, str]  # by package
    log_history: list[dict[str, Any]]
    evaluations: Evaluations  # by step; the one after the training belongs to the kept step
    test_scores: dict[str, float]  # the last metrics of the test data; empty without labels
    kept_step: int  # the step whose weights were kept
    best_step: int | None  # the step of the best evaluation, whether or not its weights were saved
    metric: str  # the metric that chooses the checkpoint, or ""
    is_best_kept: bool  # whether the best checkpoint was loaded after the training
    license: str | None = None  # a name of the Hub
    languages: Sequence[str] = ()  # codes of ISO 639
    # Facts that each kind of training adds.
    task: str = ""  # its name on the Hub: sentence-similarity, text-classification or fill-mask
    settings: dict[str, str] = field(default_factory=dict)  # rows of the table of settings of this kind of training
    citations: list[str] = field(default_factory=list)  # BibTeX entries of the methods of the run
    width: int | None = None  # numbers in the vector of a sentence
    pooler_type: str | None = None
    pooler_weighting: str | None = None  # of the hidden states: fixed, shared (by all texts) or per_text
    pooler_residual: str | None = None
    prompts: dict[str, str] | None = None  # those that an encoder keeps, by name
    include_prompt: bool = True  # whether token means count their tokens
    problem_type: str | None = None  # of a classifier
    labels: Sequence[str] = ()  # of a classifier
    is_head: bool = False  # whether a classifier was saved without its encoder
    mask_token: str | None = None  # of a masked language model


def with_pooler(facts: CardFacts, model: PreTrainedModel, output: dict[str, str]) -> CardFacts:
    """
    The facts of a run, and those of its pooler.

    Args:
        model: a model with a pooler.
        output: rows of the table of the model, about the vector that the pooler makes.
    """
    config, states = model.config, model.pooler.states
    settings = {}
    residual = model.pooler.residual
    if residual is not None:
        settings["pooler residual"] = f"the pooler adds to the {residual} of the highest state read"
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
        pooler_residual=residual,
        prompts=config.prompts,
        include_prompt=config.include_prompt,
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
    if args.ema is not None:
        rows["weights"] = f"exponential moving average, decay {args.ema:g}"
    rows["seed"] = f"{args.seed}" + ("" if args.data_seed is None else f", data seed {args.data_seed}")
    rows["tokens in a text"] = f"at most {max_tokens}"
    rows["precision"] = precision_name(args, dtype)
    rows["device"] = device_name(args)
    return rows


def precision_name(args: TrainingArguments, dtype: torch.dtype) -> str:
    """The precision of the computation, and of the weights if it is another one."""
    weights = str(dtype).removeprefix("torch.")
    autocast = "bfloat16" if args.bf16 else "float16" if args.fp16 else None
    return weights if autocast is None else f"{autocast} autocast, weights in {weights}"


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
