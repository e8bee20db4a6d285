"""The model card of a training run: what its records say, and nothing else."""

import importlib.util
import json
import logging
import math
import os
import platform
import random
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from importlib.metadata import PackageNotFoundError, version
from itertools import islice, takewhile
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.utils import HFValidationError, validate_repo_id
from tabulate import tabulate

from ..common.rows import FORMATS, read_rows
from ..evaluation.layers import average_by_length, layer_weights, weighs_layers
from ..training.classification import ClassificationTrainer, Labels
from ..training.masked_lm.token_contrast import CITATION
from .plots import plot_layer_weights, plot_learning_curves


if TYPE_CHECKING:
    from ..training.base import LayerPoolTrainer


logger = logging.getLogger(__name__)

CARD_FILE = "README.md"
LAYERS_PICTURE = "layer_weights.png"
CURVES_PICTURE = "learning_curves.png"
# Enough for means by length, and seconds on a CPU.
LAYER_TEXTS = 256
# Rows of a file of development data that those are drawn from.
MAX_ROWS_READ = 20_000
TEXT_COLUMNS = ("sentence1", "sentence2", "text", "anchor", "positive")
TEMPLATE = Path(__file__).with_name("model_card_template.md")
LANGUAGE_MODEL_TEMPLATE = Path(__file__).with_name("language_model_card_template.md")
PACKAGES = ("modeling-layerpool", "torch", "transformers", "accelerate", "datasets", "tokenizers")
MAX_RESULT_ROWS = 10

# Metrics that are x 100: the task, as the Hub names it (of similarity and retrieval sentence-transformers does), and a
# title. All metrics of a classifier are of its one task.
PERCENT = {
    "spearman": ("semantic-similarity", "Spearman"),
    "pearson": ("semantic-similarity", "Pearson"),
    "ndcg@10": ("information-retrieval", "nDCG@10"),
    "mrr@10": ("information-retrieval", "MRR@10"),
    "map": ("information-retrieval", "MAP"),
    "recall@100": ("information-retrieval", "Recall@100"),
    "average_precision": ("binary-classification", "Average precision"),
    "accuracy": ("text-classification", "Accuracy"),
    "f1": ("text-classification", "F1"),
    "micro_f1": ("text-classification", "Micro F1"),
    "macro_f1": ("text-classification", "Macro F1"),
    "matthews": ("text-classification", "Matthews correlation"),
    "masked_accuracy": ("fill-mask", "Accuracy on masked tokens"),
}
TASK_NAMES = {
    "semantic-similarity": "Semantic Similarity",
    "information-retrieval": "Information Retrieval",
    "sentence-similarity": "Sentence Similarity",
    "binary-classification": "Binary Classification",
    "text-classification": "Text Classification",
    "fill-mask": "Masked Language Modeling",
}
# Entries of an evaluation that are not scores: how much was measured, and how fast.
COUNTS = ("pairs", "queries", "rows")
SPEED = re.compile(r"runtime|.*_per_second|model_preparation_time")

LAYER_ATTENTION_CITATION = """@inproceedings{oh2022layerpool,
  title = {Don't Judge a Language Model by Its Last Layer: Contrastive Learning with Layer-Wise Attention Pooling},
  author = {Oh, Dongsuk and Kim, Yejin and Lee, Hodong and Huang, H. Howie and Lim, Heuiseok},
  booktitle = {Proceedings of the 29th International Conference on Computational Linguistics},
  pages = {4585--4592},
  year = {2022},
  url = {https://aclanthology.org/2022.coling-1.405}
}"""
HIRE_CITATION = """@article{yang2019deepening,
  title = {Deepening Hidden Representations from Pre-trained Language Models},
  author = {Yang, Junjie and Zhao, Hai},
  journal = {arXiv preprint arXiv:1911.01940},
  year = {2019}
}"""
LORA_CITATION = """@inproceedings{hu2022lora,
  title = {{LoRA}: Low-Rank Adaptation of Large Language Models},
  author = {Hu, Edward J. and Shen, Yelong and Wallis, Phillip and Allen-Zhu, Zeyuan and Li, Yuanzhi and Wang, Shean
            and Wang, Lu and Chen, Weizhu},
  booktitle = {ICLR},
  year = {2022}
}"""
POOLER_CITATIONS = {"layer_attention": LAYER_ATTENTION_CITATION, "hire": HIRE_CITATION}

Evaluations = dict[int, dict[str, float]]


def write_model_card(
    trainer: "LayerPoolTrainer",
    *,
    base_model: str,
    train_data: str,
    validation_data: str | None,
    test_data: str | None = None,
    hub_parts: Mapping[str, str] | None = None,
    text_columns: Sequence[str] = (),
    adapter: Mapping[str, str] | None = None,
    command: str,
) -> Path:
    """
    Write `README.md` into `trainer.args.output_dir`, in one step, and return its path.

    The card names files and folders by their names, never by their place on this machine. With matplotlib (the extra
    `plots`) two pictures may be added: `learning_curves.png`, if the run measured itself twice at least; and
    `layer_weights.png`, if the pooler learned to weigh hidden states and the development data are on this machine. The
    latter is not drawn under FSDP and DeepSpeed, where the model is spread over processes.

    Args:
        trainer: after its training; a `ContrastiveTrainer`, or a `ClassificationTrainer`.
        base_model: the checkpoint it started from, a folder or a name on the Hub.
        train_data: the training data, a file or a name on the Hub.
        validation_data: the development data, a file, a folder or a name on the Hub, or None if there was none.
        test_data: the data of the metrics that the trainer has logged as `test_<name>`, if there are any.
        hub_parts: of data on the Hub, the configuration (`"config"`, if any) and the splits (`"train"`,
            `"validation"`, `"test"`) that were used.
        text_columns: of a classifier, the columns of the one or two texts of a row.
        adapter: of a run with LoRA, whose adapter is merged, what `lora_settings` says of it.
        command: the command line of the run. Paths outside the working folder and tokens are taken out of it.
    """
    trained = trainer.model
    name = trainer.hub_model_id or trainer.args.hub_model_id or _name_of(trainer.args.output_dir)
    evaluations, kept_step = _evaluations(trainer)
    test_scores = _test_scores(trainer)
    labels = Labels.from_config(trained.config.to_dict()) if isinstance(trainer, ClassificationTrainer) else None
    clean_command = _clean_command(command, trainer.args.hub_token)
    parts = hub_parts or {}
    card = ModelCard.from_template(
        _metadata(
            name,
            base_model,
            train_data,
            [
                *_eval_results(validation_data, "validation", parts, evaluations.get(kept_step, {}), labels),
                *_eval_results(test_data, "test", parts, test_scores, labels),
            ],
            is_classifier=labels is not None,
        ),
        template_path=str(TEMPLATE),
        name=name,
        location=json.dumps(name, ensure_ascii=False),
        width=trained.embedding_dim,
        base=_base(base_model),
        labels=labels,
        is_pair=len(text_columns) == 2,
        model_table=_model_table(trainer, base_model, labels),
        train_data=_data_source(train_data, "train", parts),
        train_rows=_rows(trainer.train_dataset),
        settings_table=_table(
            (_objective_settings(trainer) if labels is None else _classifier_settings(trainer, text_columns))
            | _pooler_settings(trainer)
            | dict(adapter or {})
            | _training_settings(trainer)
        ),
        duration=_duration(trainer),
        is_adapted=bool(adapter),
        command=clean_command,
        command_was_changed=clean_command != command,
        versions=_versions(("peft",) if adapter else ()),
        validation_data=_data_source(validation_data, "validation", parts) if validation_data else "not named",
        validation_size=_size(evaluations.get(kept_step) or next(iter(evaluations.values()), {})),
        percent=_percent_metrics([*evaluations.values(), test_scores]),
        has_loss=any("loss" in scores for scores in evaluations.values()),
        seed=trainer.args.seed,
        results_table=_results_table(evaluations, kept_step, trainer.state.best_global_step),
        curves=_picture(CURVES_PICTURE, _draw_curves, trainer, evaluations, kept_step),
        curves_picture=CURVES_PICTURE,
        layer_texts=_picture(LAYERS_PICTURE, _draw_layers, trainer, validation_data, text_columns),
        layers_picture=LAYERS_PICTURE,
        added_to=_added_to(trainer),
        test_data=_data_source(test_data, "test", parts) if test_data else "not named",
        test_size=_size(test_scores),
        test_table=_score_table(test_scores),
        selection=_selection(trainer, evaluations, kept_step),
        intended_use=_intended_use(labels, len(text_columns) == 2),
        limits=_limits(trainer, labels, evaluations, test_scores),
        citations=[*_citations(trainer), *([LORA_CITATION] if adapter else [])],
    )
    return _write(trainer, card)


def write_language_model_card(
    trainer: "LayerPoolTrainer",
    *,
    base_model: str | None,
    train_data: Sequence[str],
    validation_data: Sequence[str],
    hub_parts: Mapping[str, str] | None = None,
    command: str,
) -> Path:
    """
    Write the card of a masked language model into `trainer.args.output_dir`, in one step, and return its path.

    Args:
        trainer: after its training; a `MaskedLanguageTrainer`.
        base_model: the checkpoint it started from, a folder or a name on the Hub, or None for a new model.
        train_data: the files of the training texts, or a name on the Hub.
        validation_data: the files of validation texts and probe, if there were any.
        hub_parts, command: as in [`write_model_card`].
    """
    args, model = trainer.args, trainer.model
    name = trainer.hub_model_id or args.hub_model_id or _name_of(args.output_dir)
    evaluations, kept_step = _evaluations(trainer)
    clean_command = _clean_command(command, trainer.args.hub_token)
    parts = hub_parts or {}
    settings = {"objective": "masked language modelling"}
    if args.objective == "taco":
        settings["objective"] += f" + {args.token_contrast_weight:g} x token contrast (TACO)"
        settings["token contrast"] = (
            f"temperature {args.token_temperature:g}, window {args.token_window}, {args.token_negatives} negatives, "
            f"anchors: {args.token_anchors}, subtracted: {args.subtracted_state}"
        )
    settings["masked"] = f"{args.mlm_probability:.0%} of the tokens: 80 % by the mask, 10 % by random ones, 10 % kept"
    settings["blocks"] = f"{args.max_seq_length} tokens, {args.block_packing}, attention " + (
        "inside each text" if args.attend_within_documents else "over the whole block"
    )
    settings["blocks in a batch"] = f"{_batch(trainer)}, all processes together"
    if args.gradient_accumulation_steps > 1:
        settings["batches in a step"] = f"{args.gradient_accumulation_steps}"
    card = ModelCard.from_template(
        ModelCardData(
            library_name="transformers",
            pipeline_tag="fill-mask",
            tags=["transformers", "fill-mask"],
            base_model=base_model if base_model and _is_hub_name(base_model) else None,
            datasets=[data for data in train_data if _is_hub_name(data)] or None,
            model_name=name.rpartition("/")[2],
        ),
        template_path=str(LANGUAGE_MODEL_TEMPLATE),
        name=name,
        location=json.dumps(name, ensure_ascii=False),
        mask_token=trainer.processing_class.mask_token,
        base=None if base_model is None else _base(base_model),
        model_table=_table(
            {
                "architecture": f"`{type(model).__name__}`",
                "started from": "random weights" if base_model is None else _source(base_model),
                "vocabulary": f"{len(trainer.processing_class):,} tokens",
                "parameters": f"{sum(parameter.numel() for parameter in model.parameters()):,}",
            }
        ),
        train_data=", ".join(_data_source(data, "train", parts) for data in train_data),
        train_rows=_rows(trainer.train_dataset).replace("rows", "texts (or pieces of long ones)"),
        settings_table=_table(settings | _training_settings(trainer)),
        command=clean_command,
        command_was_changed=clean_command != command,
        versions=_versions(),
        validation_data=", ".join(_source(data) for data in validation_data),
        percent=_percent_metrics(evaluations.values()),
        results_table=_results_table(evaluations, kept_step, trainer.state.best_global_step),
        selection=_selection(trainer, evaluations, kept_step),
        is_measured=bool(evaluations),
        citations=[CITATION] if args.objective == "taco" else [],
    )
    return _write(trainer, card)


def _write(trainer: "LayerPoolTrainer", card: ModelCard) -> Path:
    path = Path(trainer.args.output_dir) / CARD_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{CARD_FILE}.{os.getpid()}")
    try:
        temporary.write_text(f"{card}\n", encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


# --- what the run recorded ---


def _evaluations(trainer: "LayerPoolTrainer") -> tuple[Evaluations, int]:
    """The finite metrics of each evaluation by its step, and the step whose weights were kept."""
    state = trainer.state
    kept_step = state.global_step
    if trainer.args.load_best_model_at_end and state.best_model_checkpoint is not None:
        # Not `best_global_step`: a best evaluation whose step was not saved is not what was loaded.
        kept_step = int(state.best_model_checkpoint.rpartition("-")[2])
    evaluations: Evaluations = {}
    is_training_over = False
    for log in state.log_history:
        is_training_over |= "train_runtime" in log
        scores = _scores(log, "eval_")
        if scores.keys() - set(COUNTS):
            # What is measured after the training are the kept weights, whatever step the log gives.
            evaluations[kept_step if is_training_over else log["step"]] = scores
    return evaluations, kept_step


def _test_scores(trainer: "LayerPoolTrainer") -> dict[str, float]:
    """What was last measured on the test data; nothing if they have no labels."""
    measured = [scores for log in trainer.state.log_history if (scores := _scores(log, "test_"))]
    return measured[-1] if measured else {}


def _scores(log: dict[str, Any], prefix: str) -> dict[str, float]:
    metrics = {key.removeprefix(prefix): value for key, value in log.items() if key.startswith(prefix)}
    return {name: value for name, value in metrics.items() if _is_finite(value) and not SPEED.fullmatch(name)}


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _eval_results(
    data: str | None, part: str, hub_parts: Mapping[str, str], scores: dict[str, float], labels: Labels | None
) -> list[EvalResult]:
    """Scores as the Hub's metadata have them."""
    is_on_hub = data is not None and _is_hub_name(data)
    name = {"validation": "development data", "test": "test data"}[part] if data is None else _name_of(data)
    results = []
    for metric, value in scores.items():
        if metric in COUNTS:
            continue
        task, title = PERCENT.get(metric, ("sentence-similarity", metric))
        task = task if labels is None else "text-classification"
        results.append(
            EvalResult(
                task_type=task,
                task_name=TASK_NAMES[task],
                dataset_type=data if is_on_hub else re.sub(r"[^\w.-]+", "-", name),
                dataset_name=data if is_on_hub else name,
                dataset_config=hub_parts.get("config") if is_on_hub else None,
                dataset_split=hub_parts.get(part) if is_on_hub else None,
                metric_type=metric,
                metric_name=title,
                metric_value=float(value),
            )
        )
    return results


def _metadata(
    name: str,
    base_model: str,
    train_data: str,
    results: list[EvalResult],
    *,
    is_classifier: bool,
) -> ModelCardData:
    if is_classifier:
        library, task, tags = "transformers", "text-classification", ["transformers", "text-classification"]
    else:
        # The Hub's widget and its "use this model" code for sentence-similarity come from sentence-transformers;
        # transformers has no pipeline of that name.
        library, task = "sentence-transformers", "sentence-similarity"
        tags = ["sentence-transformers", "transformers", "sentence-similarity", "feature-extraction"]
    return ModelCardData(
        library_name=library,
        pipeline_tag=task,
        tags=[*tags, "custom_code"],
        base_model=base_model if _is_hub_name(base_model) else None,
        datasets=[train_data] if _is_hub_name(train_data) else None,
        model_name=name.rpartition("/")[2],
        eval_results=results or None,
    )


# --- pictures ---


def _picture(name: str, draw: Callable[..., Any], trainer: "LayerPoolTrainer", *args: Any) -> Any:
    """What `draw` returns, or None: without matplotlib, or if it fails, the card does without the picture."""
    Path(trainer.args.output_dir, name).unlink(missing_ok=True)  # of a run that this one overwrites
    if importlib.util.find_spec("matplotlib") is None:
        return None
    try:
        return draw(trainer, *args)
    except Exception as error:  # of whatever kind: it must not cost a finished run its card
        logger.warning("the model card is written without a picture: %s", error)
        return None


def _draw_curves(trainer: "LayerPoolTrainer", evaluations: Evaluations, kept_step: int) -> str | None:
    """Draw loss and score by step; returns the name of the score, or None if there is no curve."""
    names = list(dict.fromkeys(name for scores in evaluations.values() for name in scores if name not in COUNTS))
    best = (trainer.args.metric_for_best_model or "").removeprefix("eval_")
    metric = best if best in names else next(iter(names), None)
    in_training = takewhile(lambda log: "train_runtime" not in log, trainer.state.log_history)
    if sum(metric in _scores(log, "eval_") for log in in_training) < 2:
        return None
    path = Path(trainer.args.output_dir, CURVES_PICTURE)
    plot_learning_curves(trainer.state.log_history, path, metric=metric, best_step=kept_step)
    return metric


def _draw_layers(trainer: "LayerPoolTrainer", validation_data: str | None, text_columns: Sequence[str]) -> int | None:
    """Draw the weights of the hidden states; returns the number of texts, or None if there is nothing to see."""
    model = trainer.model
    is_spread = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    if is_spread or validation_data is None or not weighs_layers(model):
        return None
    texts = _texts_of(Path(validation_data), text_columns)
    if not texts:
        return None
    weights, lengths = layer_weights(model, trainer.processing_class, texts, max_tokens_per_batch=4096)
    rows, averages = "length in tokens", average_by_length(weights, lengths)
    if model.config.pooler_type == "weighted_layers":
        rows, averages = "", {"every text": weights[0]}
    path = Path(trainer.args.output_dir, LAYERS_PICTURE)
    plot_layer_weights(averages, path, rows=rows, states=model.pooler.states)
    return len(texts)


def _added_to(trainer: "LayerPoolTrainer") -> str | None:
    """What the weights of the hidden states leave out: those of attention do, while `weighted_layers` counts it."""
    config = trainer.model.config
    names = {"mean": "the mean of the last state", "cls": "the first token of the last state"}
    return names.get(config.pooler_residual) if config.pooler_type == "layer_attention" else None


def _texts_of(data: Path, text_columns: Sequence[str]) -> list:
    """A random sample of the texts of a file, or of a folder in BEIR's layout; pairs if there are two columns."""
    files = [*data.glob("corpus.jsonl*"), *data.glob("queries.jsonl*")] if data.is_dir() else [data]
    texts = []
    for file in files:
        if not file.is_file():  # the name of a dataset on the Hub
            continue
        rows = [row for _, row in islice(read_rows(file), MAX_ROWS_READ)]
        if text_columns:
            found = [tuple(row[column] for column in text_columns) for row in rows]
            found = found if len(text_columns) == 2 else [text for (text,) in found]
        else:
            found = [row[column] for row in rows for column in TEXT_COLUMNS if row.get(column)]
        found = list(dict.fromkeys(found))
        texts += random.Random(0).sample(found, min(len(found), LAYER_TEXTS // len(files)))
    return texts


# --- the parts of the card ---


def _model_table(trainer: "LayerPoolTrainer", base_model: str, labels: Labels | None) -> str:
    model = trainer.model
    states = model.pooler.states
    output = {"embedding": f"{model.embedding_dim} numbers, to be compared by cosine"}
    if labels is not None:
        output = {"pooled vector": f"{model.embedding_dim} wide", "problem type": f"`{labels.problem_type}`"}
        if labels.problem_type != "regression":
            output["classes"] = ", ".join(f"`{name}`" for name in labels.names)
    return _table(
        {
            "base model": _source(base_model),
            "encoder": f"{model.config.model_type.removeprefix('layerpool_')}, {model.config.hidden_size} wide, "
            f"{states[-1]} layers",
            "pooler": f"`{model.config.pooler_type}`",
            "hidden states read": ", ".join(map(str, states)) + " (0 is the embedding output)",
            **output,
            "parameters": f"{sum(parameter.numel() for parameter in model.parameters()):,}",
        }
    )


def _batch(trainer: "LayerPoolTrainer") -> int:
    """Rows in a batch of all processes together."""
    return (trainer.state.train_batch_size or trainer.args.per_device_train_batch_size) * trainer.args.world_size


def _pooler_settings(trainer: "LayerPoolTrainer") -> dict[str, str]:
    """Of what is not a pooler's own default: its options, and how it was trained."""
    config, args = trainer.model.config, trainer.args
    settings = {}
    if config.pooler_residual is not None:
        settings["pooler residual"] = f"{config.pooler_residual} of the highest state read, to which the pooler adds"
    if config.pooler_normalize_inputs:
        settings["pooler inputs"] = "each state brought to mean 0 and variance 1"
    if config.pooler_output_activation is not None:
        settings["pooler output activation"] = f"`{config.pooler_output_activation}`"
    if getattr(args, "freeze_encoder", False):  # not of a classifier
        settings["trained"] = "the pooler alone; the encoder stayed as it was"
    if getattr(args, "pooler_learning_rate", None) is not None:
        settings["learning rate of the pooler"] = f"{args.pooler_learning_rate:g}"
    return settings


def _classifier_settings(trainer: "LayerPoolTrainer", text_columns: Sequence[str]) -> dict[str, str]:
    args = trainer.args
    settings = {
        "texts of a row": f"column {' and '.join(text_columns)}",
        "rows in a batch": f"{_batch(trainer)}, all processes together; sampling: {args.train_sampling_strategy}",
    }
    if args.gradient_accumulation_steps > 1:
        settings["batches in a step"] = f"{args.gradient_accumulation_steps}"
    if args.early_stopping_patience is not None:
        settings["early stopping"] = f"after {args.early_stopping_patience} evaluations without a better one"
    return settings


def _objective_settings(trainer: "LayerPoolTrainer") -> dict[str, str]:
    args, objective = trainer.args, trainer.objective
    columns = trainer.columns or []
    batch = _batch(trainer)
    # Each further column of a row is one more negative for every anchor of the batch.
    negatives = batch - 1 + max(0, len(columns) - 2) * batch
    settings = objective.settings(columns)
    if args.mlm_weight > 0:
        settings["masked language modelling"] = f"weight {args.mlm_weight:g}, {args.mlm_probability:.0%} of the tokens"
    compared = f": at most {negatives} negatives for an anchor" if objective.compares_batch else ""
    settings["rows in a batch"] = f"{batch}, all processes together{compared}"
    if args.shuffling != "random":
        settings["order of the rows"] = f"by {args.shuffling} of the first texts, {args.group_size} of them together"
    if args.gradient_accumulation_steps > 1:
        settings["batches in a step"] = f"{args.gradient_accumulation_steps} (this adds no negatives)"
    return settings


def _training_settings(trainer: "LayerPoolTrainer") -> dict[str, str]:
    args, state = trainer.args, trainer.state
    settings = {
        "learning rate": f"{args.learning_rate:g}, {args.lr_scheduler_type.value} schedule",
        "warmup steps": f"{args.get_warmup_steps(state.max_steps)}",
        "optimizer": f"{args.optim.value}, weight decay {args.weight_decay:g}",
        "steps": f"{state.global_step}",
    }
    if isinstance(trainer.train_dataset, Sized) and state.epoch is not None:
        settings["epochs"] = f"{state.epoch:.4g}"
    settings["seed"] = f"{args.seed}" + ("" if args.data_seed is None else f", of the data {args.data_seed}")
    settings["tokens in a text"] = f"at most {trainer.processing_class.model_max_length}"
    settings["precision"] = _precision(trainer)
    settings["device"] = _device(trainer)
    return settings


def _duration(trainer: "LayerPoolTrainer") -> str:
    """How long the training took, by the clock, and on what; nothing if it is not over."""
    seconds = [log["train_runtime"] for log in trainer.state.log_history if "train_runtime" in log]
    if not seconds:
        return ""
    minutes, rest = divmod(round(seconds[-1]), 60)
    hours, minutes = divmod(minutes, 60)
    time = f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
    what = "The part of the training since it was resumed" if trainer.args.resume_from_checkpoint else "The training"
    return f"{what} took {time} by the clock, evaluation and saving included, on {_device(trainer)}."


def _precision(trainer: "LayerPoolTrainer") -> str:
    weights = str(trainer.model.dtype).removeprefix("torch.")
    for flag, name in (("bf16", "bfloat16"), ("fp16", "float16")):
        if getattr(trainer.args, flag):
            return f"{name} autocast, weights in {weights}"
    return weights


def _device(trainer: "LayerPoolTrainer") -> str:
    device = trainer.args.device
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    processes = trainer.args.world_size
    return f"{kind}, {processes} {'process' if processes == 1 else 'processes'}"


def _results_table(evaluations: Evaluations, kept_step: int, best_step: int | None) -> str:
    """The evaluations by step, evenly thinned; the kept, the best and the last one are always there."""
    if not evaluations:
        return ""
    steps = sorted(evaluations)
    shown = {step for step in (kept_step, best_step, steps[-1]) if step in evaluations}
    others = [step for step in steps if step not in shown]
    places = MAX_RESULT_ROWS - len(shown)
    shown |= {others[index * len(others) // places] for index in range(places)} if len(others) > places else {*others}
    names = list(dict.fromkeys(name for step in steps for name in evaluations[step] if name not in COUNTS))
    rows = [
        [f"**{step}** (kept)" if step == kept_step else f"{step}"]
        + [_score(name, evaluations[step].get(name)) for name in names]
        for step in sorted(shown)
    ]
    table = _markdown([["step", *names], *rows])
    return table if len(shown) == len(steps) else f"{table}\n\n{len(shown)} of {len(steps)} evaluations are shown."


def _score(name: str, value: float | None) -> str:
    if value is None:
        return "undefined"
    return f"{value:.2f}" if name in PERCENT else f"{value:.4g}"


def _score_table(scores: dict[str, float]) -> str:
    names = [name for name in scores if name not in COUNTS]
    return _markdown([names, [_score(name, scores[name]) for name in names]]) if names else ""


def _percent_metrics(measured: Iterable[dict[str, float]]) -> str:
    names = {name for scores in measured for name in scores}
    return ", ".join(f"`{name}`" for name in PERCENT if name in names)


def _size(scores: dict[str, float]) -> str:
    return "".join(f", {int(scores[name]):,} {name}" for name in COUNTS if name in scores)


def _selection(trainer: "LayerPoolTrainer", evaluations: Evaluations, kept_step: int) -> str:
    if trainer.args.load_best_model_at_end and trainer.state.best_model_checkpoint is not None:
        metric = trainer.args.metric_for_best_model.removeprefix("eval_")
        return (
            f"The checkpoint of step {kept_step} was kept because it has the best `{metric}` of those saved. It was "
            "chosen on this data, so its score here is optimistic: judge the model by data that had no part in this."
        )
    if kept_step in evaluations:
        return f"The weights are those of the last step, {kept_step}; they were not chosen by these scores."
    return f"The weights are those of the last step, {kept_step}. They were not measured themselves."


def _intended_use(labels: Labels | None, is_pair: bool) -> str:
    if labels is None:
        use = (
            "To compare texts by the cosine of their embeddings, as in search, clustering and finding paraphrases, "
            "where they are like the texts of the training data. A cosine is no probability: a threshold for it "
            "has to be chosen on data of one's own."
        )
    else:
        what = "a number" if labels.problem_type == "regression" else "these classes"
        use = (
            f"To give {what} to {'pairs of texts' if is_pair else 'texts'} like those of the training data, or to be "
            "trained further on others."
        )
    return f"{use} It is not meant to decide about people without a person who checks."


def _limits(
    trainer: "LayerPoolTrainer", labels: Labels | None, evaluations: Evaluations, test_scores: dict[str, float]
) -> str:
    output = "embeddings" if labels is None else "predictions"
    if test_scores:
        what = "the development and the test data" if evaluations else "the test data"
        measured = f"Nothing was measured by this run but {what} above: no other task, no other domain."
    elif evaluations:
        measured = (
            "Nothing was measured by this run but the development data above: no test set, no other task, no other "
            "domain."
        )
    else:
        measured = f"This run measured nothing: how good the {output} are is not known."
    limits = [
        measured,
        "Languages: the run does not know which ones the base model and the data hold. None beyond them can be "
        "expected to work.",
        f"Bias and error of the base model and of the data were not examined, and may be in the {output}.",
        f"A text{' or a pair' if labels else ''} is cut at {trainer.processing_class.model_max_length} tokens.",
        "The licence is not known to the run: see those of the base model and of the data.",
    ]
    if labels is not None and labels.problem_type != "regression":
        limits.insert(1, "The scores of the classes were not calibrated: they are no probabilities of being right.")
    if trainer.model.config.pooler_type == "hire":
        limits.append(
            "The authors of HIRE published no code: its pooler here follows the paper, and may differ in details."
        )
    return "\n".join(f"- {limit}" for limit in limits)


def _citations(trainer: "LayerPoolTrainer") -> list[str]:
    objective = getattr(trainer, "objective", None)
    citations = [getattr(objective, "citation", None), POOLER_CITATIONS.get(trainer.model.config.pooler_type)]
    return [citation.strip() for citation in citations if citation]


def _rows(dataset: Any) -> str:
    return f"{len(dataset):,} rows" if isinstance(dataset, Sized) else "streamed, so that the rows were not counted"


def _versions(further: Sequence[str] = ()) -> str:
    versions = [f"python {platform.python_version()}"]
    for package in (*PACKAGES, *further):
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:  # run from a copy that is not installed
            continue
    return ", ".join(versions)


# --- names in place of paths ---


def _is_hub_name(name: str) -> bool:
    """Whether this is a name on the Hub: the libraries, too, take a folder of that name first."""
    if Path(name).exists() or Path(name.removesuffix(".gz")).suffix in FORMATS:
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def _base(base_model: str) -> str:
    return f"[{base_model}](https://huggingface.co/{base_model})" if _is_hub_name(base_model) else "an encoder"


def _source(name: str, kind: str = "") -> str:
    """A model or a data set in the text: linked if on the Hub, else the bare name of the file or folder."""
    if _is_hub_name(name):
        return f"[{name}](https://huggingface.co/{kind}{name})"
    return f"`{_name_of(name)}` (local)"


def _data_source(name: str, part: str, hub_parts: Mapping[str, str]) -> str:
    """[`_source`] of data, with what of a dataset on the Hub was used."""
    used = [hub_parts[key] for key in ("config", part) if _is_hub_name(name) and key in hub_parts]
    return ", ".join([_source(name, "datasets/"), *(f"`{what}`" for what in used)])


def _name_of(path: str) -> str:
    """The last part of a path; or, which gives nothing away either, its part inside an installed package."""
    path = os.path.abspath(path)
    parts = Path(path).parts
    if "site-packages" in parts:
        return "/".join(parts[parts.index("site-packages") + 1 :])
    return os.path.basename(path)


# An absolute path, or one that leaves the working folder, at the start of a word or behind a quotation mark or "=".
_PATH = re.compile(r"""(?<![^\s="',\[({])(?:~|\.\.|[A-Za-z]:)?[/\\][^"',\])}]*""")
# A flag that takes a token, and what a token of the Hub looks like.
_TOKEN_FLAG = re.compile(r"(--[\w-]*token)(?:=.*)?")
_TOKEN = re.compile(r"\bhf_\w{8,}")


def _clean_command(command: str, token: str | None = None) -> str:
    """The command without paths outside the working folder, and without tokens: neither by flag nor by value."""
    try:
        words = shlex.split(command)
    except ValueError:  # joined without quoting
        words = command.split()
    cleaned: list[str] = []
    for word in words:
        if cleaned and "=" not in cleaned[-1] and _TOKEN_FLAG.fullmatch(cleaned[-1]):
            cleaned.append("...")
        elif match := _TOKEN_FLAG.fullmatch(word):
            cleaned.append(f"{match[1]}=..." if "=" in word else word)
        else:
            word = _TOKEN.sub("...", word.replace(token, "...") if token else word)
            cleaned.append(_PATH.sub(lambda found: _command_path(found[0]), word))
    return command if cleaned == words else shlex.join(cleaned)


def _command_path(path: str) -> str:
    if "\\" in path:
        return PureWindowsPath(path).name
    is_ours = os.path.isabs(path) and Path(path).is_relative_to(Path.cwd())
    return str(Path(path).relative_to(Path.cwd())) if is_ours and "site-packages" not in path else _name_of(path)


# --- tables ---


def _table(rows: dict[str, str]) -> str:
    return _markdown([["", "of this model"], *rows.items()])


def _markdown(rows: list) -> str:
    header, *body = [[str(cell).replace("|", r"\|") for cell in row] for row in rows]
    return tabulate(body, header, tablefmt="github", disable_numparse=True)
