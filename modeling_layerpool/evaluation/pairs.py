"""Scored or labelled pairs: regression, classification by a threshold on the cosine, ranking of a text's partners."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from ..common.errors import InputError
from ..common.rows import check_number, check_text, read_rows, require_columns
from .encoders import CachingEncoder, Encoder
from .metrics import similarity_scores


HITS_DEPTHS = (1, 5)
# Of labelled pairs without thresholds: the headline first, and whether more of it is better.
METRICS = {"average_precision": True}
RANKING_METRICS = dict.fromkeys(("map", "mrr", *(f"has_positives@{depth}" for depth in HITS_DEPTHS)), True)


class Pairs(NamedTuple):
    """Pairs of texts and what is said of each: a score, or a label that is 1 for those that belong together."""

    sentences1: list[str]
    sentences2: list[str]
    values: list[float]
    are_labels: bool


def read_pairs_file(path: str | Path) -> Pairs:
    """
    Read scored or labelled pairs.

    Args:
        path: jsonl, csv or tsv, also gzipped, with the columns `sentence1`, `sentence2`, and `score` or `label`.

    Raises:
        InputError: the file is missing or has fewer than 2 rows, all its values are equal, a label is neither 0 nor 1,
            or a row (named by its line) lacks a column or has an empty text.
    """
    sentences1, sentences2, values, column = [], [], [], None
    for line, row in read_rows(path):
        where = f"{path}, line {line}"
        if column is None:
            column = "score" if "score" in row or "label" not in row else "label"
        require_columns(row, ("sentence1", "sentence2", column), where)
        sentences1.append(check_text(row["sentence1"], where, "sentence1"))
        sentences2.append(check_text(row["sentence2"], where, "sentence2"))
        values.append(check_number(row[column], where, column))
        if column == "label" and values[-1] not in (0, 1):
            raise InputError(f"{where}: the label must be 0 or 1, got {row[column]!r}")
    if len(values) < 2:
        raise InputError(f"{path}: {len(values)} pairs, and at least 2 are needed")
    if min(values) == max(values):
        raise InputError(f"{path}: every {column} is {values[0]:g}, so that there is nothing to tell apart")
    return Pairs(sentences1, sentences2, values, column == "label")


def pairs_metrics(pairs: Pairs) -> dict[str, bool]:
    """What [`evaluate_pairs`] measures of labelled pairs without `dev`, and whether more of it is better."""
    labels = np.asarray(pairs.values) > 0
    can_rank = pair_ranking_scores(pairs.sentences1, np.zeros(len(labels)), labels)
    return METRICS | (RANKING_METRICS if can_rank else {})


def evaluate_pairs(encoder: Encoder, pairs: Pairs, dev: Pairs | None = None) -> dict[str, float]:
    """
    How well the cosine of two embeddings follows scores, or tells positive pairs from negative ones.

    Args:
        encoder: each distinct text is embedded once.
        pairs: what is measured.
        dev: labelled pairs on which the thresholds are chosen, those of the highest accuracy and of the highest F1.
            Without them no accuracy and no F1 are told: a threshold chosen on the measured pairs would flatter them.

    Returns:
        Of scores `{"spearman", "pearson", "pairs"}`. Of labels `average_precision`, with `dev` also `accuracy`, `f1`,
        `accuracy_threshold` and `f1_threshold`, and [`pair_ranking_scores`] where texts have several partners. All
        but counts and thresholds x 100.

    Raises:
        InputError: `dev` has scores where `pairs` have labels, or the other way round.
    """
    if dev is not None and not (dev.are_labels and pairs.are_labels):
        raise InputError("a dev part is for labels, on both sides: scores have no threshold to choose")
    encoder = CachingEncoder(encoder)
    cosines = _cosines(encoder, pairs)
    if not pairs.are_labels:
        return similarity_scores(cosines, pairs.values)
    labels = np.asarray(pairs.values) > 0
    scores = {"average_precision": average_precision(cosines, labels)}
    if dev is not None:
        thresholds = best_thresholds(_cosines(encoder, dev), np.asarray(dev.values) > 0)
        scores |= _scores_at(cosines, labels, **thresholds) | thresholds
    ranking = pair_ranking_scores(pairs.sentences1, cosines, labels)
    return scores | ranking | {"pairs": len(labels)}


def _cosines(encoder: Encoder, pairs: Pairs) -> np.ndarray:
    embeddings = torch.from_numpy(encoder.encode([*pairs.sentences1, *pairs.sentences2])).double()
    first, second = F.normalize(embeddings, dim=1).chunk(2)
    return (first * second).sum(1).numpy()


def average_precision(similarities: np.ndarray, labels: np.ndarray) -> float:
    """
    Average precision x 100 of `(n,)` similarities for `(n,)` labels: the precision at each similarity that occurs,
    weighted by the recall that it adds, as scikit-learn has it. Equal similarities count together.
    """
    rights, counts, _ = _cuts(similarities, labels)
    gained = np.diff(rights, prepend=0)
    return 100 * float((gained * rights / counts).sum() / rights[-1])


def best_thresholds(similarities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """
    The similarities from which on a pair is called positive so that accuracy and F1 are highest, halfway between two
    that occur: `{"accuracy_threshold", "f1_threshold"}`.
    """
    rights, counts, values = _cuts(similarities, labels)
    positives, rows = rights[-1], len(labels)
    accuracy = rights + (rows - positives) - (counts - rights)
    f1 = 2 * rights / (counts + positives)
    between = np.append((values[:-1] + values[1:]) / 2, values[-1])  # the last one: all are positive
    found = {"f1_threshold": float(between[f1.argmax()])}
    # With no pair called positive at all, all negative ones are right.
    none_is_best = accuracy.max() < rows - positives
    above = float(np.nextafter(values[0], math.inf))
    found["accuracy_threshold"] = above if none_is_best else float(between[accuracy.argmax()])
    return found


def _cuts(similarities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each similarity that occurs, falling: positives that reach it, pairs that reach it, and itself."""
    order = np.argsort(-similarities, kind="stable")
    values = similarities[order]
    ends = np.append(np.flatnonzero(np.diff(values)), len(values) - 1)
    return np.cumsum(labels[order])[ends], ends + 1, values[ends]


def _scores_at(
    similarities: np.ndarray, labels: np.ndarray, accuracy_threshold: float, f1_threshold: float
) -> dict[str, float]:
    is_right = (similarities >= accuracy_threshold) == labels
    called = similarities >= f1_threshold
    f1 = 2 * (called & labels).sum() / max(1, called.sum() + labels.sum())
    return {"accuracy": 100 * float(is_right.mean()), "f1": 100 * float(f1)}


def pair_ranking_scores(queries: Sequence[str], similarities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """
    How high each first text's positive partners stand among all of its partners.

    Only first texts with a positive partner and a negative one count; equal similarities stand in the worst order.

    Returns:
        `{"map", "mrr", "has_positives@1", "has_positives@5", "queries"}`, all but the count x 100: mean average
        precision, reciprocal rank of the first positive, and the share with a positive among the first k. Empty if no
        first text counts.
    """
    partners: dict[str, list[int]] = {}
    for place, query in enumerate(queries):
        partners.setdefault(query, []).append(place)
    scores = []
    for places in partners.values():
        own = labels[places]
        if own.all() or not own.any():
            continue
        order = np.lexsort((own, -similarities[places]))  # among equals the positives last
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
