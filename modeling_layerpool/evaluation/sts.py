"""Semantic textual similarity: how well the cosine of two embeddings follows what people judged."""

import logging
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn import functional as F

from ..errors import InputError
from ..rows import check_number, check_text, read_rows, require_columns
from .encoders import CachingEncoder, Encoder
from .metrics import similarity_scores


logger = logging.getLogger(__name__)

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


def read_sts_file(path: str | Path) -> SentencePairs:
    """Read scored sentence pairs: `evaluate_sts(encoder, *read_sts_file(path))`.

    Args:
        path: jsonl, csv or tsv, also gzipped, with the columns `sentence1`, `sentence2`, `score`; others are ignored.

    Returns:
        `(sentences1, sentences2, scores)`, one entry a row, in file order.

    Raises:
        InputError: the file is missing, has fewer than 2 rows, or all its scores are equal; or a row (named by its
            line) lacks a column, has an empty text, or a score that is no finite number.
    """
    return _check_pairs(((f"{path}, line {line}", row) for line, row in read_rows(path)), str(path))


def load_sts(name: str) -> SentencePairs:
    """Load the test split of a built-in set from the Hub, one of [`STS_DATASETS`], in [`read_sts_file`]'s form.

    STS12 to STS16 hold all pairs of their year, whatever subset they came from.

    Raises:
        InputError: the name is not a built-in one, or the set cannot be loaded (no network, for instance).
    """
    if name not in STS_DATASETS:
        raise InputError(f"--sts {name}: no built-in set of this name ({', '.join(STS_DATASETS)}); give NAME=FILE")
    import datasets

    repository = STS_DATASETS[name]
    try:
        rows = datasets.load_dataset(repository, split="test")
    except Exception as error:  # the library raises a dozen types for "not there" and "no network"
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise InputError(
            f"--sts {name}: {repository} could not be loaded from the Hub ({reason}); give a local file as {name}=FILE"
        ) from error
    return _check_pairs(((f"{repository}, row {index}", row) for index, row in enumerate(rows)), repository)


def _check_pairs(rows, source: str) -> SentencePairs:
    sentences1, sentences2, scores = [], [], []
    for where, row in rows:
        require_columns(row, COLUMNS, where)
        sentences1.append(check_text(row["sentence1"], where, "sentence1"))
        sentences2.append(check_text(row["sentence2"], where, "sentence2"))
        scores.append(check_number(row["score"], where, "score"))
    if len(scores) < 2:
        raise InputError(f"{source}: {len(scores)} sentence pairs, and a correlation needs at least 2")
    if min(scores) == max(scores):
        raise InputError(f"{source}: every score is {scores[0]:g}, so no correlation is defined")
    return sentences1, sentences2, scores


def evaluate_sts(
    encoder: Encoder, sentences1: Sequence[str], sentences2: Sequence[str], scores: Sequence[float]
) -> dict[str, float]:
    """Correlation of the cosine of two embeddings with the gold scores, over all pairs ("all", as SimCSE reports).

    Args:
        encoder: its `encode` is called once, with each distinct sentence once.
        sentences1, sentences2: (n,) the two sides of each pair, n at least 2.
        scores: (n,) gold scores, higher is more similar.

    Returns:
        `{"spearman", "pearson", "pairs"}`, the first two x 100; see [`similarity_scores`]. They are nan, with a
        logged warning, if all cosines are equal (a collapsed encoder).

    Raises:
        InputError: the lengths differ, or the gold scores do not allow a correlation.
        RuntimeError: an embedding is not finite.
    """
    pairs = len(scores)
    if not len(sentences1) == len(sentences2) == pairs:
        raise InputError(f"{len(sentences1)} and {len(sentences2)} sentences for {pairs} scores")
    embeddings = torch.from_numpy(CachingEncoder(encoder).encode([*sentences1, *sentences2])).double()
    embeddings = F.normalize(embeddings, dim=1)
    cosines = (embeddings[:pairs] * embeddings[pairs:]).sum(1)
    result = similarity_scores(cosines.numpy(), scores)
    if math.isnan(result["spearman"]):
        logger.warning("all %d cosines are equal: the encoder tells no pairs apart and has no correlation", pairs)
    return result


def positive_pairs(
    sentences1: Sequence[str], sentences2: Sequence[str], scores: Sequence[float]
) -> tuple[list[str], list[str]]:
    """The pairs that count as positive for alignment: gold score above 4/5 of the highest score given.

    On STS-B (0 to 5) and SICK (1 to 5) that is a score above 4, SimCSE's rule. Returns the two sides as lists.
    """
    threshold = POSITIVE_SHARE * max(scores)
    positives = [pair for *pair, score in zip(sentences1, sentences2, scores, strict=True) if score > threshold]
    return [first for first, _ in positives], [second for _, second in positives]
