"""The numbers themselves, in percent: correlation with gold scores, quality of rankings and of classifications.

Each exists as a plain function and as an [`evaluate.Metric`] that needs no network and writes no cache file.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import evaluate
import numpy as np
from scipy import stats

from ..common.errors import InputError


NDCG_DEPTH = 10
MRR_DEPTH = 10
RECALL_DEPTH = 100
RANKING_DEPTH = 1000


def similarity_scores(similarities: Sequence[float], scores: Sequence[float]) -> dict[str, float]:
    """Correlation of predicted similarities with gold scores, over all pairs at once (the "all" aggregation).

    Args:
        similarities: (n,) predicted similarity of each pair; n is at least 2.
        scores: (n,) gold score of each pair, on any increasing scale.

    Returns:
        `{"spearman", "pearson", "pairs"}`: rank and linear correlation x 100, and n. Tied values share their mean
        rank. Both correlations are nan if all similarities are equal: such an encoder tells no pairs apart and no
        correlation is defined.

    Raises:
        InputError: the lengths differ, n < 2, a value is not finite, or all gold scores are equal.
    """
    similarities = np.asarray(similarities, dtype=np.float64)
    scores = np.asarray(scores, dtype=np.float64)
    if similarities.shape != scores.shape or similarities.ndim != 1:
        raise InputError(
            f"{similarities.shape} similarities and {scores.shape} gold scores: expected as many, in rows"
        )
    if len(scores) < 2:
        raise InputError(f"a correlation needs at least 2 pairs, got {len(scores)}")
    if not (np.isfinite(similarities).all() and np.isfinite(scores).all()):
        raise InputError("a correlation needs finite similarities and gold scores")
    if (scores == scores[0]).all():
        raise InputError(f"all {len(scores)} gold scores are {scores[0]:g}, so no correlation is defined")
    spearman = pearson = math.nan
    if (similarities != similarities[0]).any():
        spearman = 100 * float(stats.spearmanr(similarities, scores).statistic)
        pearson = 100 * float(stats.pearsonr(similarities, scores).statistic)
    return {"spearman": spearman, "pearson": pearson, "pairs": len(scores)}


def ranking_scores(rankings: Sequence[Sequence[str]], relevances: Sequence[Mapping[str, int]]) -> dict[str, float]:
    """Quality of rankings as trec_eval and BEIR define it, averaged over the queries with a relevant document.

    Args:
        rankings: for each query the ids of the retrieved documents, best first, without repeats. Only the first
            1000 count.
        relevances: for each query `{document id: relevance}`. Above 0 is relevant; a document not named is not.

    Returns:
        `{"ndcg@10", "mrr@10", "map", "recall@100", "queries"}`, all but the count x 100. nDCG: gain = relevance,
        discount = log2(rank + 1), ideal ranking over all relevant documents. MRR: 1 / rank of the first relevant
        document, 0 beyond rank 10. MAP: precision at each relevant document of the first 1000 ranks (BEIR's
        MAP@1000), summed and divided by the number of all relevant documents. Queries without a relevant document
        are left out of every mean.

    Raises:
        InputError: the lengths differ, or no query has a relevant document.
    """
    if len(rankings) != len(relevances):
        raise InputError(f"{len(rankings)} rankings for {len(relevances)} queries with relevances")
    scores = [
        _score_ranking(ranking, {document: gain for document, gain in relevance.items() if gain > 0})
        for ranking, relevance in zip(rankings, relevances, strict=True)
        if any(gain > 0 for gain in relevance.values())
    ]
    if not scores:
        raise InputError("no query has a relevant document (relevance above 0)")
    means = {name: 100 * math.fsum(score[name] for score in scores) / len(scores) for name in scores[0]}
    return {**means, "queries": len(scores)}


def _score_ranking(ranking: Sequence[str], gains: Mapping[str, int]) -> dict[str, float]:
    hits = [(rank, gains[document]) for rank, document in enumerate(ranking[:RANKING_DEPTH], 1) if document in gains]
    ideal = enumerate(sorted(gains.values(), reverse=True)[:NDCG_DEPTH], 1)
    return {
        f"ndcg@{NDCG_DEPTH}": _dcg(hit for hit in hits if hit[0] <= NDCG_DEPTH) / _dcg(ideal),
        f"mrr@{MRR_DEPTH}": next((1 / rank for rank, _ in hits if rank <= MRR_DEPTH), 0.0),
        "map": math.fsum(found / rank for found, (rank, _) in enumerate(hits, 1)) / len(gains),
        f"recall@{RECALL_DEPTH}": sum(rank <= RECALL_DEPTH for rank, _ in hits) / len(gains),
    }


def _dcg(ranked_gains) -> float:
    return math.fsum(gain / math.log2(rank + 1) for rank, gain in ranked_gains)


def classification_scores(
    predictions: Sequence[int], references: Sequence[int], num_classes: int | None = None
) -> dict[str, float]:
    """How well one class for each row is predicted, as scikit-learn defines it.

    Args:
        predictions, references: (n,) the predicted and the true class of each row, counted from 0; n is at least 1.
        num_classes: how many classes there are; by default as many as the highest one named here says.

    Returns:
        `{"accuracy", "f1", "macro_f1", "matthews", "rows"}`, all but the count x 100. `f1` is that of class 1 and is
        there for two classes only; `macro_f1` is the mean over the classes that occur here. A class that is never
        predicted rightly has an F1 of 0; Matthews correlation is 0 where all predictions, or all true classes, are
        equal.

    Raises:
        InputError: the lengths differ, there is no row, or a class is not one of `num_classes`.
    """
    predictions, references = np.asarray(predictions), np.asarray(references)
    if predictions.shape != references.shape or predictions.ndim != 1 or len(references) == 0:
        raise InputError(f"{predictions.shape} predictions and {references.shape} classes: expected as many, in rows")
    highest = int(max(predictions.max(), references.max()))
    num_classes = highest + 1 if num_classes is None else num_classes
    if highest >= num_classes or min(predictions.min(), references.min()) < 0:
        raise InputError(f"a class is not one of the {num_classes}, counted from 0")
    confusion = np.zeros((num_classes, num_classes), dtype=np.int64)  # true by predicted
    np.add.at(confusion, (references, predictions), 1)
    right, true, predicted = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    f1 = _f1(right, true, predicted)
    rows = len(references)
    # Matthews correlation of several classes (Gorodkin 2004); for two it is the usual one.
    covariance = int(right.sum()) * rows - int(true @ predicted)
    spread = math.sqrt(rows**2 - int(predicted @ predicted)) * math.sqrt(rows**2 - int(true @ true))
    return {
        "accuracy": 100 * float(right.sum() / rows),
        **({"f1": float(f1[1])} if num_classes == 2 else {}),
        "macro_f1": float(f1[(true + predicted) > 0].mean()),
        "matthews": 100 * covariance / spread if spread > 0 else 0.0,
        "rows": rows,
    }


def multi_label_scores(predictions: Sequence[Sequence[int]], references: Sequence[Sequence[int]]) -> dict[str, float]:
    """How well any number of classes for each row are predicted, as scikit-learn defines it.

    Args:
        predictions, references: (n, c) a 1 for each class that a row is said to have, and has, else 0; n is at least
            1.

    Returns:
        `{"micro_f1", "macro_f1", "accuracy", "rows"}`, all but the count x 100: F1 over all decisions together, its
        mean over the c classes, and the rows that are right as a whole. An F1 without anything to find and without
        anything found is 0.

    Raises:
        InputError: the shapes differ, there is no row, or a value is neither 0 nor 1.
    """
    predictions, references = np.asarray(predictions), np.asarray(references)
    if predictions.shape != references.shape or predictions.ndim != 2 or len(references) == 0:
        raise InputError(f"{predictions.shape} predictions and {references.shape} classes: expected as many, (n, c)")
    if not (np.isin(predictions, (0, 1)).all() and np.isin(references, (0, 1)).all()):
        raise InputError("a row has a class (1) or has it not (0); other values mean nothing")
    right, true, predicted = (predictions * references).sum(axis=0), references.sum(axis=0), predictions.sum(axis=0)
    return {
        "micro_f1": float(_f1(right.sum(), true.sum(), predicted.sum())),
        "macro_f1": float(_f1(right, true, predicted).mean()),
        "accuracy": 100 * float((predictions == references).all(axis=1).mean()),
        "rows": len(references),
    }


def regression_scores(predictions: Sequence[float], references: Sequence[float]) -> dict[str, float]:
    """[`similarity_scores`] of numbers that need not be similarities: `{"spearman", "pearson", "rows"}`."""
    scores = similarity_scores(predictions, references)
    return {"spearman": scores["spearman"], "pearson": scores["pearson"], "rows": scores["pairs"]}


def _f1(right: np.ndarray, true: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """F1 x 100 of the counts of each class: rightly predicted, true, predicted."""
    return 200 * right / np.maximum(true + predicted, 1)


class _InMemoryMetric(evaluate.Metric):
    """A metric that keeps its inputs in memory, so that threads and processes cannot meet in one cache file.

    `keep_in_memory=False` restores the default of evaluate, which its distributed mode (`num_process`) needs.
    """

    def __init__(self, config_name: str | None = None, keep_in_memory: bool = True, **kwargs: Any):
        super().__init__(config_name, keep_in_memory=keep_in_memory, **kwargs)


class SentenceSimilarityMetric(_InMemoryMetric):
    """[`similarity_scores`] as a metric: `compute(predictions=similarities, references=gold_scores)`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Spearman and Pearson correlation (x 100) of predicted similarities with gold scores.",
            citation="Reimers et al., Task-Oriented Intrinsic Evaluation of Semantic Textual Similarity, COLING 2016",
            inputs_description=similarity_scores.__doc__,
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("float64")}
            ),
        )

    def _compute(self, predictions: Sequence[float], references: Sequence[float]) -> dict[str, float]:
        return similarity_scores(predictions, references)


class RetrievalMetric(_InMemoryMetric):
    """[`ranking_scores`] as a metric, one query a row.

    `compute(predictions=[["d3", "d1"], ...], references=[{"ids": ["d1"], "relevance": [1]}, ...])`: a prediction is
    a list of document ids, best first; a reference names the judged documents and the relevance of each.
    """

    def _info(self) -> evaluate.MetricInfo:
        ids = datasets.List(datasets.Value("string"))
        return evaluate.MetricInfo(
            description="nDCG@10, MRR@10, MAP and Recall@100 (x 100) of rankings, as trec_eval and BEIR define them.",
            citation="Thakur et al., BEIR, NeurIPS 2021 Datasets and Benchmarks, arXiv 2104.08663",
            inputs_description=ranking_scores.__doc__,
            features=datasets.Features(
                {"predictions": ids, "references": {"ids": ids, "relevance": datasets.List(datasets.Value("int64"))}}
            ),
        )

    def _compute(self, predictions: Sequence[Sequence[str]], references: Sequence[dict]) -> dict[str, float]:
        relevances = [dict(zip(judged["ids"], judged["relevance"], strict=True)) for judged in references]
        return ranking_scores(predictions, relevances)


class ClassificationMetric(_InMemoryMetric):
    """[`classification_scores`] as a metric: `compute(predictions=classes, references=classes, num_classes=c)`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Accuracy, F1 and Matthews correlation (x 100) of one predicted class for each row.",
            citation="Gorodkin, Comparing two K-category assignments by a K-category correlation coefficient, 2004",
            inputs_description=classification_scores.__doc__,
            features=datasets.Features(
                {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
            ),
        )

    def _compute(
        self, predictions: Sequence[int], references: Sequence[int], num_classes: int | None = None
    ) -> dict[str, float]:
        return classification_scores(predictions, references, num_classes)


class MultiLabelMetric(_InMemoryMetric):
    """[`multi_label_scores`] as a metric: `compute(predictions=rows of 0 and 1, references=rows of 0 and 1)`."""

    def _info(self) -> evaluate.MetricInfo:
        row = datasets.List(datasets.Value("int64"))
        return evaluate.MetricInfo(
            description="Micro and macro F1 and exact-match accuracy (x 100) of any number of classes for each row.",
            citation="",
            inputs_description=multi_label_scores.__doc__,
            features=datasets.Features({"predictions": row, "references": row}),
        )

    def _compute(self, predictions: Sequence[Sequence[int]], references: Sequence[Sequence[int]]) -> dict[str, float]:
        return multi_label_scores(predictions, references)


class RegressionMetric(_InMemoryMetric):
    """[`regression_scores`] as a metric: `compute(predictions=numbers, references=numbers)`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Spearman and Pearson correlation (x 100) of predicted with true numbers.",
            citation="",
            inputs_description=regression_scores.__doc__,
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("float64")}
            ),
        )

    def _compute(self, predictions: Sequence[float], references: Sequence[float]) -> dict[str, float]:
        return regression_scores(predictions, references)
