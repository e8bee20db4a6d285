"""Semantic textual similarity: how well the cosine of two embeddings follows human judgments."""

import logging
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from ..common.columns import ColumnNames
from ..common.errors import InputError
from ..common.rows import check_number, check_text, read_rows, require_columns, row_name
from .encoders import CachingEncoder, Encoder, pair_cosines
from .metrics import SentenceSimilarityMetric


logger = logging.getLogger(__name__)

# The main metric first, and whether more is better.
METRICS = {"spearman": True, "pearson": True}
COLUMNS = ("sentence1", "sentence2", "score")
STS_DATASETS = {
    "stsb": "mteb/stsbenchmark-sts",
    "sts12": "mteb/sts12-sts",
    "sts13": "mteb/sts13-sts",
    "sts14": "mteb/sts14-sts",
    "sts15": "mteb/sts15-sts",
    "sts16": "mteb/sts16-sts",
    "sickr": "mteb/sickr-sts",
}
# SimCSE (arXiv 2104.08821) measures alignment on the STS-B pairs scored above 4 of 5.
POSITIVE_SHARE = 0.8

SentencePairs = tuple[list[str], list[str], list[float]]
SentencePairsOfSubsets = tuple[list[str], list[str], list[float], list[str] | None]


def read_sts_file(
    path: str | Path, subset_column: str | None = None, columns: ColumnNames | None = None
) -> SentencePairs | SentencePairsOfSubsets:
    """Read scored sentence pairs: `evaluate_sts(encoder, *read_sts_file(path))`.

    Args:
        path: jsonl, csv, tsv or parquet, with the columns `sentence1`, `sentence2`, `score`; others are ignored.
        subset_column: the column that names the subset of each row. It adds a fourth list to the result.
        columns: the names of the columns in the file. Default: those above.

    Returns:
        `(sentences1, sentences2, scores)`, one entry for each row, in file order. With `subset_column` also `subsets`,
        which is None if the first row has no such column.

    Raises:
        InputError: the file is missing, or the file or a subset has fewer than 2 rows or equal scores only; or a row
            (with its line) lacks a column, has an empty text, or has a score that is not a finite number.
    """
    rows = ((row_name(path, number), row) for number, row in read_rows(path))
    return _check_pairs(rows, str(path), subset_column, columns or ColumnNames())


def load_sts(name: str, subset_column: str | None = None) -> SentencePairs | SentencePairsOfSubsets:
    """Load the test split of one of [`STS_DATASETS`] from the Hub. Returns the same as [`read_sts_file`].

    STS12 to STS16 hold all pairs of their year.

    Raises:
        InputError: the name is not a built-in one, or the set cannot be loaded, for example without a network.
    """
    if name not in STS_DATASETS:
        raise InputError(f"--sts {name}: no built-in set of this name ({', '.join(STS_DATASETS)}); give NAME=FILE")
    import datasets

    repository = STS_DATASETS[name]
    try:
        rows = datasets.load_dataset(repository, split="test")
    except Exception as error:  # datasets raises many types for a missing set or network
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise InputError(
            f"--sts {name}: {repository} could not be loaded from the Hub ({reason}); give a local file as {name}=FILE"
        ) from error
    numbered = ((f"{repository}, row {index}", row) for index, row in enumerate(rows))
    return _check_pairs(numbered, repository, subset_column, ColumnNames())


def _check_pairs(
    rows: Iterable[tuple[str, dict]], source: str, subset_column: str | None, columns: ColumnNames
) -> SentencePairs | SentencePairsOfSubsets:
    sentences1, sentences2, scores, subsets = [], [], [], []
    needed: list[str] = []
    for where, row in rows:
        if not needed:  # the first row decides
            names = columns.of(row)
            needed = [names.get(name, name) for name in COLUMNS]
            if subset_column in row:
                needed.append(subset_column)
        require_columns(row, needed, where)
        first, second, score, *has_subset = needed
        sentences1.append(check_text(row[first], where, first))
        sentences2.append(check_text(row[second], where, second))
        scores.append(check_number(row[score], where, score))
        if has_subset:
            subset = row[subset_column]
            # A subset may be a year.
            subsets.append(str(subset) if isinstance(subset, int) else check_text(subset, where, subset_column))
    _check_scores(scores, source)
    if subset_column is None:
        return sentences1, sentences2, scores
    for subset, indices in _indices_of_subsets(subsets).items():
        _check_scores([scores[index] for index in indices], f"{source}, {subset_column} {subset!r}")
    return sentences1, sentences2, scores, subsets or None


def _check_scores(scores: list[float], source: str) -> None:
    if len(scores) < 2:
        raise InputError(f"{source}: {len(scores)} sentence pairs, and a correlation needs at least 2")
    if min(scores) == max(scores):
        raise InputError(f"{source}: every score is {scores[0]:g}, so no correlation is defined")


def _indices_of_subsets(subsets: Sequence[str]) -> dict[str, list[int]]:
    indices: dict[str, list[int]] = {}
    for index, subset in enumerate(subsets):
        indices.setdefault(subset, []).append(index)
    return indices


def evaluate_sts(
    encoder: Encoder,
    sentences1: Sequence[str],
    sentences2: Sequence[str],
    scores: Sequence[float],
    subsets: Sequence[str] | None = None,
) -> dict[str, float]:
    """Correlation of the cosine of two embeddings with the gold scores, over all pairs ("all", as SimCSE reports).

    `subsets` adds the mean of the correlations within each subset, with equal weights ("mean") or weighted by the
    number of pairs ("wmean"), as the STS tasks do with Pearson correlation. The names are those of SentEval.

    Args:
        encoder: its `encode` is called once, with each distinct sentence once.
        sentences1, sentences2: (n,) the two sides of each pair, n at least 2.
        scores: (n,) gold scores, higher is more similar.
        subsets: (n,) the name of the subset of each pair.

    Returns:
        `{"spearman", "pearson", "pairs"}`, the first two x 100; see [`similarity_scores`]. They are nan, with a
        logged warning, if all cosines are equal (a collapsed encoder). With `subsets` also `spearman_subsets_mean`,
        `spearman_subsets_wmean`, `pearson_subsets_mean`, `pearson_subsets_wmean`, also x 100, and the number of
        `subsets`. The means are nan if all cosines of one subset are equal.

    Raises:
        InputError: the lengths differ, or the gold scores, also those of a subset, do not allow a correlation.
        RuntimeError: an embedding is not finite.
    """
    pairs = len(scores)
    if not len(sentences1) == len(sentences2) == pairs:
        raise InputError(f"{len(sentences1)} and {len(sentences2)} sentences for {pairs} scores")
    if subsets is not None and len(subsets) != pairs:
        raise InputError(f"{len(subsets)} subsets for {pairs} scores")
    cosines = pair_cosines(CachingEncoder(encoder), sentences1, sentences2)
    result = SentenceSimilarityMetric().compute(predictions=cosines, references=scores)
    if math.isnan(result["spearman"]):
        logger.warning("all %d cosines are equal: the encoder tells no pairs apart and has no correlation", pairs)
    if subsets is not None:
        result |= _subset_means(cosines, np.asarray(scores), subsets)
    return result


def _subset_means(cosines: np.ndarray, scores: np.ndarray, subsets: Sequence[str]) -> dict[str, float]:
    parts = []
    for subset, indices in _indices_of_subsets(subsets).items():
        try:
            parts.append(SentenceSimilarityMetric().compute(predictions=cosines[indices], references=scores[indices]))
        except InputError as error:
            raise InputError(f"subset {subset!r}: {error}") from error
    pairs = [part["pairs"] for part in parts]
    means: dict[str, float] = {}
    for name in ("spearman", "pearson"):
        correlations = [part[name] for part in parts]
        means[f"{name}_subsets_mean"] = float(np.mean(correlations))
        means[f"{name}_subsets_wmean"] = float(np.average(correlations, weights=pairs))
    return means | {"subsets": len(parts)}


def positive_pairs(
    sentences1: Sequence[str], sentences2: Sequence[str], scores: Sequence[float]
) -> tuple[list[str], list[str]]:
    """The pairs that count as positive for alignment: gold score above 4/5 of the highest given score.

    On STS-B (0 to 5) and SICK (1 to 5) that is a score above 4, SimCSE's rule. Returns the two sides as lists.
    """
    threshold = POSITIVE_SHARE * max(scores)
    positives = [pair for *pair, score in zip(sentences1, sentences2, scores, strict=True) if score > threshold]
    return [first for first, _ in positives], [second for _, second in positives]
