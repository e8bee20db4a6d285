"""Scores in percent: correlation with gold scores, and the quality of rankings, decisions and classifications.

Each is an [`evaluate.Metric`] that needs no network and writes no cache file. scipy and scikit-learn compute all but
the scores of rankings.
"""

import math
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import datasets
import evaluate
import numpy as np
from scipy import stats
from sklearn.metrics import accuracy_score, average_precision_score, f1_score, matthews_corrcoef

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
            f"similarities of shape {similarities.shape} and gold scores of shape {scores.shape}: expected two lists "
            "of the same length"
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
    # pytrec_eval gives the same numbers, but has no MRR@10, skips queries with an empty ranking, and is compiled C.
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


class _InMemoryMetric(evaluate.Metric):
    """A metric that keeps its inputs in memory, so that threads and processes never share a cache file.

    `keep_in_memory=False` restores the default of evaluate, which its distributed mode (`num_process`) needs. A
    subclass names the types of `predictions` and `references` and computes the scores.
    """

    types: ClassVar[tuple[Any, Any]]
    paper: ClassVar[str] = ""

    def __init__(
        self, config_name: str | None = None, keep_in_memory: bool = True, cache_dir: str | None = None, **kwargs: Any
    ):
        # evaluate creates an empty cache folder in any case, and the default one may be read-only.
        cache_dir = cache_dir or tempfile.gettempdir()
        super().__init__(config_name, keep_in_memory=keep_in_memory, cache_dir=cache_dir, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self.__doc__.splitlines()[0],
            citation=self.paper,
            inputs_description=self.__doc__,
            features=datasets.Features(dict(zip(("predictions", "references"), self.types, strict=True))),
        )


class SentenceSimilarityMetric(_InMemoryMetric):
    """Spearman and Pearson correlation (x 100) of predicted similarities with gold scores.

    `compute(predictions=similarities, references=gold_scores)` returns the result of [`similarity_scores`].
    """

    types = (datasets.Value("float64"), datasets.Value("float64"))
    paper = "Reimers et al., Task-Oriented Intrinsic Evaluation of Semantic Textual Similarity, COLING 2016"

    def _compute(self, predictions: Sequence[float], references: Sequence[float]) -> dict[str, float]:
        return similarity_scores(predictions, references)


class RetrievalMetric(_InMemoryMetric):
    """nDCG@10, MRR@10, MAP and Recall@100 (x 100) of rankings, as trec_eval and BEIR define them.

    `compute(predictions=[["d3", "d1"], ...], references=[{"ids": ["d1"], "relevance": [1]}, ...])` returns the result
    of [`ranking_scores`]. Each row is a query: a prediction lists document ids, best first; a reference names the
    judged documents and the relevance of each.
    """

    types = (
        datasets.List(datasets.Value("string")),
        {"ids": datasets.List(datasets.Value("string")), "relevance": datasets.List(datasets.Value("int64"))},
    )
    paper = "Thakur et al., BEIR, NeurIPS 2021 Datasets and Benchmarks, arXiv 2104.08663"

    def _compute(self, predictions: Sequence[Sequence[str]], references: Sequence[dict]) -> dict[str, float]:
        relevances = [dict(zip(judged["ids"], judged["relevance"], strict=True)) for judged in references]
        return ranking_scores(predictions, relevances)


class AveragePrecisionMetric(_InMemoryMetric):
    """How well similarities separate positive pairs from negative ones, at every threshold.

    `compute(predictions=similarities, references=labels)`, with labels 0 and 1, returns `{"average_precision"}` x 100:
    the precision at each similarity that occurs, weighted by the recall that it adds. Equal similarities count
    together. It is nan without a positive pair.
    """

    types = (datasets.Value("float64"), datasets.Value("int64"))

    def _compute(self, predictions: Sequence[float], references: Sequence[int]) -> dict[str, float]:
        if 1 not in references:
            return {"average_precision": math.nan}
        return {"average_precision": 100 * float(average_precision_score(references, predictions))}


class ClassificationMetric(_InMemoryMetric):
    """How well one class for each row is predicted.

    `compute(predictions=classes, references=classes, num_classes=c)`, with classes counted from 0, returns
    `{"accuracy", "f1", "macro_f1", "matthews", "rows"}`, all but the count x 100. `f1` is that of class 1 and exists
    for two classes only; `macro_f1` is the mean over the classes that occur in predictions or references. The F1 of a
    class that is never predicted correctly is 0; Matthews correlation is 0 where all predictions, or all true classes,
    are equal.
    """

    types = (datasets.Value("int64"), datasets.Value("int64"))
    paper = "Gorodkin, Comparing two K-category assignments by a K-category correlation coefficient, 2004"

    def _compute(self, predictions: Sequence[int], references: Sequence[int], num_classes: int) -> dict[str, float]:
        f1 = {"f1": 100 * f1_score(references, predictions, zero_division=0)} if num_classes == 2 else {}
        return {
            "accuracy": 100 * accuracy_score(references, predictions),
            **f1,
            "macro_f1": 100 * f1_score(references, predictions, average="macro", zero_division=0),
            "matthews": 100 * float(matthews_corrcoef(references, predictions)),
            "rows": len(references),
        }


class MultiLabelMetric(_InMemoryMetric):
    """How well any number of classes for each row are predicted.

    `compute(predictions=rows, references=rows)`, where a row has a 1 for each of its classes and a 0 for the others,
    returns `{"micro_f1", "macro_f1", "accuracy", "rows"}`, all but the count x 100: F1 over all decisions together,
    its mean over the classes, and the share of rows without any error. The F1 of a class that is neither in the
    references nor predicted is 0.
    """

    types = (datasets.List(datasets.Value("int64")), datasets.List(datasets.Value("int64")))

    def _compute(self, predictions: Sequence[Sequence[int]], references: Sequence[Sequence[int]]) -> dict[str, float]:
        predictions, references = np.asarray(predictions), np.asarray(references)
        # scikit-learn takes rows of a single class for another kind of task, so it sees one class at a time.
        of_classes = [f1_score(*columns, zero_division=0) for columns in zip(references.T, predictions.T, strict=True)]
        return {
            "micro_f1": 100 * f1_score(references.ravel(), predictions.ravel(), zero_division=0),
            "macro_f1": 100 * float(np.mean(of_classes)),
            "accuracy": 100 * accuracy_score(references, predictions),
            "rows": len(references),
        }
