"""The metadata of a card: the YAML that the Hub reads."""

import re
from collections.abc import Mapping, Sequence

from huggingface_hub import EvalResult, ModelCardData

from ..common.card_facts import COUNTS, CardFacts
from .card_names import is_hub_name, name_of


# Metrics that are x 100: the name of the task on the Hub (sentence-transformers' for similarity and retrieval), and a
# title. All metrics of a classifier belong to its one task.
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
    "mean": ("sentence-similarity", "Mean of the main metrics"),
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
LIBRARIES_AND_TAGS = {
    # The Hub's widget and its "use this model" code for sentence-similarity come from sentence-transformers;
    # transformers has no pipeline of that name.
    "sentence-similarity": (
        "sentence-transformers",
        ["sentence-transformers", "transformers", "sentence-similarity", "feature-extraction", "custom_code"],
    ),
    "text-classification": ("transformers", ["transformers", "text-classification", "custom_code"]),
    "fill-mask": ("transformers", ["transformers", "fill-mask"]),
}


def metadata(
    facts: CardFacts, name: str, base_model: str | None, train_data: Sequence[str], results: Sequence[EvalResult] = ()
) -> ModelCardData:
    """The metadata of a card. Models and data that are not on the Hub are left out."""
    library, tags = (None, [facts.task]) if facts.is_head else LIBRARIES_AND_TAGS[facts.task]
    return ModelCardData(
        library_name=library,
        license=facts.license,
        language=list(facts.languages) or None,
        pipeline_tag=facts.task,
        tags=list(tags),
        base_model=base_model if base_model and is_hub_name(base_model) else None,
        datasets=[data for data in train_data if is_hub_name(data)] or None,
        model_name=name.rpartition("/")[2],
        eval_results=list(results) or None,
    )


def metric_of(name: str) -> str:
    """The metric of a name in [`PERCENT`], without the name of its set: `stsb_spearman` is `spearman`."""
    return name if name in PERCENT else next((metric for metric in PERCENT if name.endswith(f"_{metric}")), name)


def scores_of_set(name: str, scores: Mapping[str, float]) -> dict[str, float]:
    """Those of the scores of several sets that belong to one of them, by metric."""
    own = {metric.removeprefix(f"{name}_"): value for metric, value in scores.items() if metric.startswith(f"{name}_")}
    return {metric: value for metric, value in own.items() if metric in PERCENT}


def eval_results(
    facts: CardFacts, data: str | None, part: str, hub_parts: Mapping[str, str], scores: Mapping[str, float]
) -> list[EvalResult]:
    """The scores on the data of one part, `validation` or `test`."""
    is_on_hub = data is not None and is_hub_name(data)
    name = {"validation": "development data", "test": "test data"}[part] if data is None else name_of(data)
    results = []
    for metric, value in scores.items():
        if metric in COUNTS:
            continue
        task, _ = PERCENT.get(metric, ("sentence-similarity", metric))
        task = "text-classification" if facts.task == "text-classification" else task
        config, split = (hub_parts.get("config"), hub_parts.get(part)) if is_on_hub else (None, None)
        on_hub = data if is_on_hub else None
        results.append(eval_result(task, metric, value, name, on_hub=on_hub, config=config, split=split))
    return results


def eval_result(
    task: str,
    metric: str,
    value: float,
    name: str,
    *,
    on_hub: str | None,
    config: str | None = None,
    split: str | None = None,
) -> EvalResult:
    """A score in the metadata, on the dataset `on_hub`, or on one that has a `name` only."""
    return EvalResult(
        task_type=task,
        task_name=TASK_NAMES[task],
        dataset_type=on_hub or re.sub(r"[^\w.-]+", "-", name),
        dataset_name=on_hub or name,
        dataset_config=config,
        dataset_split=split,
        metric_type=metric,
        metric_name=PERCENT[metric][1] if metric in PERCENT else metric,
        metric_value=float(value),
    )
