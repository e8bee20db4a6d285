"""Scored or labeled pairs: correlation, classification by a threshold on the cosine, ranking of a text's partners."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from sklearn.metrics import confusion_matrix_at_thresholds

from ..common.columns import ColumnNames
from ..common.errors import InputError
from ..common.rows import check_number, check_text, read_rows, require_columns, row_name
from .encoders import CachingEncoder, Encoder, pair_cosines
from .metrics import AveragePrecisionMetric, ClassificationMetric, SentenceSimilarityMetric


HITS_DEPTHS = (1, 5)
# Metrics of labeled pairs without thresholds, the main one first, and whether more is better.
METRICS = {"average_precision": True}
RANKING_METRICS = dict.fromkeys(("map", "mrr", *(f"has_positives@{depth}" for depth in HITS_DEPTHS)), True)


class Pairs(NamedTuple):
    """Pairs of texts with a score each, or with a label that is 1 for positive pairs and 0 for negative ones."""

    sentences1: list[str]
    sentences2: list[str]
    values: list[float]
    are_labels: bool


def read_pairs_file(path: str | Path, columns: ColumnNames | None = None) -> Pairs:
    """
    Read scored or labeled pairs.

    Args:
        path: jsonl, csv, tsv or parquet, with the columns `sentence1`, `sentence2`, and `score` or `label`.
        columns: the names of the columns in the file. Default: those above.

    Raises:
        InputError: the file is missing or has fewer than 2 rows, all its values are equal, a label is neither 0 nor 1,
            or a row (named by its line) lacks a column or has an empty text.
    """
    sentences1, sentences2, values, needed = [], [], [], []
    for number, row in read_rows(path):
        where = row_name(path, number)
        if not needed:  # the first row decides
            names = (columns or ColumnNames()).of(row)
            are_labels = "label" in names and "score" not in names
            needed = [names.get(name, name) for name in ("sentence1", "sentence2", "label" if are_labels else "score")]
        require_columns(row, needed, where)
        first, second, column = needed
        sentences1.append(check_text(row[first], where, first))
        sentences2.append(check_text(row[second], where, second))
        values.append(check_number(row[column], where, column))
        if are_labels and values[-1] not in (0, 1):
            raise InputError(f"{where}: the label must be 0 or 1, got {row[column]!r}")
    if len(values) < 2:
        raise InputError(f"{path}: {len(values)} pairs, and at least 2 are needed")
    if min(values) == max(values):
        raise InputError(f"{path}: every {column} is {values[0]:g}; at least two different values are needed")
    return Pairs(sentences1, sentences2, values, are_labels)


def pairs_metrics(pairs: Pairs) -> dict[str, bool]:
    """The metrics of [`evaluate_pairs`] for labeled pairs without `dev`, and whether more is better."""
    labels = np.asarray(pairs.values) > 0
    can_rank = pair_ranking_scores(pairs.sentences1, np.zeros(len(labels)), labels)
    return METRICS | (RANKING_METRICS if can_rank else {})


def evaluate_pairs(encoder: Encoder, pairs: Pairs, dev: Pairs | None = None) -> dict[str, float]:
    """
    How well the cosine of two embeddings follows scores, or separates positive pairs from negative ones.

    Args:
        encoder: embeds each distinct text once.
        pairs: the pairs to evaluate.
        dev: labeled pairs that choose the thresholds of the highest accuracy and the highest F1. Without them there
            is no accuracy and no F1, since a threshold chosen on the evaluated pairs would flatter them.

    Returns:
        `{"spearman", "pearson", "pairs"}` for scores. For labels `average_precision` and `pairs`, with `dev` also
        `accuracy`, `f1`, `accuracy_threshold` and `f1_threshold`, and [`pair_ranking_scores`] if texts have several
        partners. All but counts and thresholds x 100.

    Raises:
        InputError: `dev` is given, and `pairs` or `dev` have scores.
    """
    if dev is not None and not (dev.are_labels and pairs.are_labels):
        raise InputError("a dev part is for labels: neither the pairs nor the dev part may have scores")
    encoder = CachingEncoder(encoder)
    cosines = pair_cosines(encoder, pairs.sentences1, pairs.sentences2)
    if not pairs.are_labels:
        return SentenceSimilarityMetric().compute(predictions=cosines, references=pairs.values)
    labels = np.asarray(pairs.values) > 0
    scores = AveragePrecisionMetric().compute(predictions=cosines, references=labels)
    if dev is not None:
        cosines_of_dev = pair_cosines(encoder, dev.sentences1, dev.sentences2)
        thresholds = best_thresholds(cosines_of_dev, np.asarray(dev.values) > 0)
        for name in ("accuracy", "f1"):
            predictions = cosines >= thresholds[f"{name}_threshold"]
            found = ClassificationMetric().compute(predictions=predictions, references=labels, num_classes=2)
            scores[name] = found[name]
        scores |= thresholds
    ranking = pair_ranking_scores(pairs.sentences1, cosines, labels)
    return scores | ranking | {"pairs": len(labels)}


def best_thresholds(similarities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """
    The thresholds of the highest accuracy and of the highest F1: `{"accuracy_threshold", "f1_threshold"}`. Pairs are
    positive from the threshold on, which is halfway between two similarities that occur.
    """
    true_negatives, false_positives, false_negatives, true_positives, values = confusion_matrix_at_thresholds(
        labels, similarities
    )
    accuracy = true_positives + true_negatives
    f1 = 2 * true_positives / (2 * true_positives + false_positives + false_negatives)
    between = np.append((values[:-1] + values[1:]) / 2, values[-1])  # from the last one on, all pairs are positive
    # If no pair is positive, all negative ones are correct.
    none_is_best = accuracy.max() < len(labels) - labels.sum()
    above = float(np.nextafter(values[0], math.inf))
    return {
        "accuracy_threshold": above if none_is_best else float(between[accuracy.argmax()]),
        "f1_threshold": float(between[f1.argmax()]),
    }


def pair_ranking_scores(queries: Sequence[str], similarities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """
    How high the positive partners of each first text rank among all of its partners.

    Only first texts with a positive and a negative partner count. Equal similarities rank in the worst order.

    Returns:
        `{"map", "mrr", "has_positives@1", "has_positives@5", "queries"}`, all but the count x 100: mean average
        precision, reciprocal rank of the first positive, and the share with a positive among the first k. Empty if no
        first text counts.
    """
    partners: dict[str, list[int]] = {}
    for index, query in enumerate(queries):
        partners.setdefault(query, []).append(index)
    scores = []
    for indices in partners.values():
        own = labels[indices]
        if own.all() or not own.any():
            continue
        order = np.lexsort((own, -similarities[indices]))  # among equals the positives last
        ranks = np.flatnonzero(own[order]) + 1
        scores.append(
            [
                (np.arange(1, len(ranks) + 1) / ranks).mean(),
                1 / ranks[0],
                *(ranks[0] <= depth for depth in HITS_DEPTHS),
            ]
        )
    if not scores:
        return {}
    return dict(zip(RANKING_METRICS, (100 * np.mean(scores, axis=0)).tolist(), strict=True)) | {"queries": len(scores)}
