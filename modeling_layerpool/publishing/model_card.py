"""The model card of a training run: what its records say, and nothing else."""

import json
import math
import os
import platform
import re
import shlex
from collections.abc import Sized
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.utils import HFValidationError, validate_repo_id
from tabulate import tabulate

from ..rows import FORMATS


if TYPE_CHECKING:
    from ..training import ContrastiveTrainer


CARD_FILE = "README.md"
TEMPLATE = Path(__file__).with_name("model_card_template.md")
PACKAGES = ("modeling-layerpool", "torch", "transformers", "accelerate", "datasets", "tokenizers")
MAX_RESULT_ROWS = 10

# Metrics of our evaluators that are x 100: the task, as sentence-transformers names it on the Hub, and a title.
PERCENT = {
    "spearman": ("semantic-similarity", "Spearman"),
    "pearson": ("semantic-similarity", "Pearson"),
    "ndcg@10": ("information-retrieval", "nDCG@10"),
    "mrr@10": ("information-retrieval", "MRR@10"),
    "map": ("information-retrieval", "MAP"),
    "recall@100": ("information-retrieval", "Recall@100"),
}
TASK_NAMES = {
    "semantic-similarity": "Semantic Similarity",
    "information-retrieval": "Information Retrieval",
    "sentence-similarity": "Sentence Similarity",
}
# What an evaluation says beside its scores: how much was measured, and how fast.
COUNTS = ("pairs", "queries")
SPEED = re.compile(r"runtime|.*_per_second|model_preparation_time")

LAYER_ATTENTION_CITATION = """@inproceedings{oh2022layerpool,
  title = {Don't Judge a Language Model by Its Last Layer: Contrastive Learning with Layer-Wise Attention Pooling},
  author = {Oh, Dongsuk and Kim, Yejin and Lee, Hodong and Huang, H. Howie and Lim, Heuiseok},
  booktitle = {Proceedings of the 29th International Conference on Computational Linguistics},
  pages = {4585--4592},
  year = {2022},
  url = {https://aclanthology.org/2022.coling-1.405}
}"""

Evaluations = dict[int, dict[str, float]]


def write_model_card(
    trainer: "ContrastiveTrainer", *, base_model: str, train_data: str, validation_data: str | None, command: str
) -> Path:
    """
    Write `README.md` into `trainer.args.output_dir`, in one step, and return its path.

    The card names files and folders by their names, never by their place on this machine.

    Args:
        trainer: after its training.
        base_model: the checkpoint it started from, a folder or a name on the Hub.
        train_data: the training data, a file or a name on the Hub.
        validation_data: the development data, a file or a folder, or None if there was none.
        command: the command line of the run. Paths outside the working folder and tokens are taken out of it.
    """
    trained = trainer.model
    name = trainer.hub_model_id or trainer.args.hub_model_id or _name_of(trainer.args.output_dir)
    evaluations, kept_step = _evaluations(trainer)
    clean_command = _clean_command(command)
    card = ModelCard.from_template(
        _metadata(name, base_model, train_data, validation_data, evaluations.get(kept_step, {})),
        template_path=str(TEMPLATE),
        name=name,
        location=json.dumps(name, ensure_ascii=False),
        width=trained.embedding_dim,
        base=_base(base_model),
        model_table=_model_table(trainer, base_model),
        train_data=_source(train_data, "datasets/"),
        train_rows=_rows(trainer.train_dataset),
        settings_table=_settings_table(trainer),
        command=clean_command,
        command_was_changed=clean_command != command,
        versions=_versions(),
        validation_data=_source(validation_data) if validation_data else "not named",
        validation_size=_validation_size(evaluations, kept_step),
        percent=_percent_metrics(evaluations),
        has_loss=any("loss" in scores for scores in evaluations.values()),
        results_table=_results_table(evaluations, kept_step, trainer.state.best_global_step),
        selection=_selection(trainer, evaluations, kept_step),
        limits=_limits(trainer, base_model, evaluations),
        citations=_citations(trainer),
    )
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


def _evaluations(trainer: "ContrastiveTrainer") -> tuple[Evaluations, int]:
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
        metrics = {key.removeprefix("eval_"): value for key, value in log.items() if key.startswith("eval_")}
        scores = {name: value for name, value in metrics.items() if _is_finite(value) and not SPEED.fullmatch(name)}
        if scores.keys() - set(COUNTS):
            # What is measured after the training are the kept weights, whatever step the log gives.
            evaluations[kept_step if is_training_over else log["step"]] = scores
    return evaluations, kept_step


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _metadata(
    name: str, base_model: str, train_data: str, validation_data: str | None, scores: dict[str, float]
) -> ModelCardData:
    dataset = _name_of(validation_data) if validation_data else "development data"
    results = []
    for metric, value in scores.items():
        if metric in COUNTS:
            continue
        task, title = PERCENT.get(metric, ("sentence-similarity", metric))
        results.append(
            EvalResult(
                task_type=task,
                task_name=TASK_NAMES[task],
                dataset_type=re.sub(r"[^\w.-]+", "-", dataset),
                dataset_name=dataset,
                metric_type=metric,
                metric_name=title,
                metric_value=float(value),
            )
        )
    return ModelCardData(
        # The Hub's widget and its "use this model" code for sentence-similarity come from sentence-transformers;
        # transformers has no pipeline of that name.
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        tags=["sentence-transformers", "transformers", "sentence-similarity", "feature-extraction", "custom_code"],
        base_model=base_model if _is_hub_name(base_model) else None,
        datasets=[train_data] if _is_hub_name(train_data) else None,
        model_name=name.rpartition("/")[2],
        eval_results=results or None,
    )


# --- the parts of the card ---


def _model_table(trainer: "ContrastiveTrainer", base_model: str) -> str:
    model = trainer.model
    states = model.pooler.states
    return _table(
        {
            "base model": _source(base_model),
            "encoder": f"{model.config.model_type.removeprefix('layerpool_')}, {model.config.hidden_size} wide, "
            f"{states[-1]} layers",
            "pooler": f"`{model.config.pooler_type}`",
            "hidden states read": ", ".join(map(str, states)) + " (0 is the embedding output)",
            "embedding": f"{model.embedding_dim} numbers, to be compared by cosine",
            "parameters": f"{sum(parameter.numel() for parameter in model.parameters()):,}",
        }
    )


def _settings_table(trainer: "ContrastiveTrainer") -> str:
    args, state, objective = trainer.args, trainer.state, trainer.objective
    columns = trainer.columns or []
    batch = (state.train_batch_size or args.per_device_train_batch_size) * args.world_size
    # Each further column of a row is one more negative for every anchor of the batch.
    negatives = batch - 1 + max(0, len(columns) - 2) * batch
    settings = {"objective": f"{objective.name}, on the columns {', '.join(dict.fromkeys(columns))}"}
    temperature = getattr(objective, "temperature", None)
    if isinstance(temperature, torch.Tensor):
        settings["temperature"] = f"learned: {args.temperature:g} at first, {temperature.item():.4g} in the end"
    elif temperature is not None:
        settings["temperature"] = f"{temperature:g}"
    if len(columns) > 2 and hasattr(objective, "hard_negative_weight"):
        settings["hard negative weight"] = f"{objective.hard_negative_weight:g}"
    for option in ("symmetric", "mask_duplicates"):
        if hasattr(objective, option):
            settings[option.replace("_", " ")] = "yes" if getattr(objective, option) else "no"
    settings["rows in a batch"] = f"{batch}, all processes together: at most {negatives} negatives for an anchor"
    if args.gradient_accumulation_steps > 1:
        settings["batches in a step"] = f"{args.gradient_accumulation_steps} (this adds no negatives)"
    settings["learning rate"] = f"{args.learning_rate:g}, {args.lr_scheduler_type.value} schedule"
    settings["warmup steps"] = f"{args.get_warmup_steps(state.max_steps)}"
    settings["optimizer"] = f"{args.optim.value}, weight decay {args.weight_decay:g}"
    settings["steps"] = f"{state.global_step}"
    if isinstance(trainer.train_dataset, Sized) and state.epoch is not None:
        settings["epochs"] = f"{state.epoch:.4g}"
    settings["seed"] = f"{args.seed}" + ("" if args.data_seed is None else f", of the data {args.data_seed}")
    settings["tokens in a text"] = f"at most {trainer.processing_class.model_max_length}"
    settings["precision"] = _precision(trainer)
    settings["device"] = _device(trainer)
    return _table(settings)


def _precision(trainer: "ContrastiveTrainer") -> str:
    weights = str(trainer.model.dtype).removeprefix("torch.")
    for flag, name in (("bf16", "bfloat16"), ("fp16", "float16")):
        if getattr(trainer.args, flag):
            return f"{name} autocast, weights in {weights}"
    return weights


def _device(trainer: "ContrastiveTrainer") -> str:
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


def _percent_metrics(evaluations: Evaluations) -> str:
    return ", ".join(f"`{name}`" for name in PERCENT if any(name in scores for scores in evaluations.values()))


def _validation_size(evaluations: Evaluations, kept_step: int) -> str:
    scores = evaluations.get(kept_step) or next(iter(evaluations.values()), {})
    return "".join(f", {int(scores[name]):,} {name}" for name in COUNTS if name in scores)


def _selection(trainer: "ContrastiveTrainer", evaluations: Evaluations, kept_step: int) -> str:
    if trainer.args.load_best_model_at_end and trainer.state.best_model_checkpoint is not None:
        metric = trainer.args.metric_for_best_model.removeprefix("eval_")
        return (
            f"The checkpoint of step {kept_step} was kept because it has the best `{metric}` of those saved. It was "
            "chosen on this data, so its score here is optimistic: judge the model by data that had no part in this."
        )
    if kept_step in evaluations:
        return f"The weights are those of the last step, {kept_step}; they were not chosen by these scores."
    return f"The weights are those of the last step, {kept_step}. They were not measured themselves."


def _limits(trainer: "ContrastiveTrainer", base_model: str, evaluations: Evaluations) -> str:
    measured = (
        "Nothing was measured by this run but the development data above: no test set, no other task, no other domain."
        if evaluations
        else "This run measured nothing: how good the embeddings are is not known."
    )
    return "\n".join(
        (
            f"- {measured}",
            "- Languages: the run does not know which ones the base model and the data hold. None beyond them can be "
            "expected to work.",
            "- Bias and error of the base model and of the data were not examined, and may be in the embeddings.",
            f"- A text is cut at {trainer.processing_class.model_max_length} tokens.",
            "- The licence is not known to the run: see those of the base model and of the data.",
        )
    )


def _citations(trainer: "ContrastiveTrainer") -> list[str]:
    citations = [getattr(trainer.objective, "citation", None)]
    if trainer.model.config.pooler_type == "layer_attention":
        citations.append(LAYER_ATTENTION_CITATION)
    return [citation.strip() for citation in citations if citation]


def _rows(dataset: Any) -> str:
    return f"{len(dataset):,} rows" if isinstance(dataset, Sized) else "streamed, so that the rows were not counted"


def _versions() -> str:
    versions = [f"python {platform.python_version()}"]
    for package in PACKAGES:
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


def _name_of(path: str) -> str:
    """The last part of a path; or, which gives nothing away either, its part inside an installed package."""
    path = os.path.abspath(path)
    parts = Path(path).parts
    if "site-packages" in parts:
        return "/".join(parts[parts.index("site-packages") + 1 :])
    return os.path.basename(path)


# An absolute path, or one that leaves the working folder, at the start of a word or behind a quotation mark or "=".
_PATH = re.compile(r"""(?<![^\s="',\[({])(?:~|\.\.|[A-Za-z]:)?[/\\][^"',\])}]*""")
_TOKEN = re.compile(r"(--(?:push[_-]to[_-])?hub[_-]token)(?:=.*)?")


def _clean_command(command: str) -> str:
    try:
        words = shlex.split(command)
    except ValueError:  # joined without quoting
        words = command.split()
    cleaned: list[str] = []
    for word in words:
        if cleaned and "=" not in cleaned[-1] and _TOKEN.fullmatch(cleaned[-1]):
            cleaned.append("...")
        elif match := _TOKEN.fullmatch(word):
            cleaned.append(f"{match[1]}=..." if "=" in word else word)
        else:
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
