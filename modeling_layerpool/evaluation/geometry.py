"""The geometry of an embedding space: alignment and uniformity (Wang and Isola, arXiv 2005.10242), mean cosine.

b: pairs, n: texts, d: width. Arrays of embeddings need not be normalised; every function here normalises them.
"""

import math
import random
from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as F

from ..errors import InputError
from .encoders import CachingEncoder, Encoder


BLOCK = 512


def alignment(embeddings1: np.ndarray, embeddings2: np.ndarray) -> float:
    """Mean squared distance of the two sides of positive pairs, `mean ||f(x) - f(y)||^2`: 0 (equal) to 4.

    `embeddings1` and `embeddings2` are (b, d). nan without any pair.
    """
    difference = _normalize(embeddings1) - _normalize(embeddings2)
    return difference.square().sum(1).mean().item()


def uniformity(embeddings: np.ndarray) -> float:
    """`log mean exp(-2 ||f(x) - f(y)||^2)` over all pairs of different rows of (n, d): 0 (collapsed) down to -8.

    Lower is more uniform. Computed in blocks of 512 rows in float64. nan for fewer than 2 rows.
    """
    normalized = _normalize(embeddings)
    n = len(normalized)
    if n < 2:
        return math.nan
    total = 0.0
    for start in range(0, n, BLOCK):
        cosines = normalized[start : start + BLOCK] @ normalized[start:].T
        # ||x - y||^2 = 2 - 2 cos; above the diagonal each pair stands once
        total += torch.exp(4 * cosines - 4).triu_(diagonal=1).sum().item()
    return math.log(total / (n * (n - 1) / 2))


def mean_cosine(embeddings: np.ndarray) -> float:
    """Mean cosine of all pairs of different rows of (n, d): -1 to 1, near 0 in an isotropic space. nan for n < 2."""
    normalized = _normalize(embeddings)
    n = len(normalized)
    if n < 2:
        return math.nan
    # the sum of all cosines is the squared length of the sum of all vectors; each row's own is taken off
    return ((normalized.sum(0).square().sum() - normalized.square().sum()) / (n * (n - 1))).item()


def _normalize(embeddings: np.ndarray) -> torch.Tensor:
    return F.normalize(torch.as_tensor(embeddings).double(), dim=1)


def evaluate_geometry(
    encoder: Encoder,
    positives1: Sequence[str],
    positives2: Sequence[str],
    texts: Sequence[str],
    *,
    max_texts: int = 10_000,
    seed: int = 0,
) -> dict[str, float]:
    """Alignment of positive pairs, uniformity and mean cosine of texts.

    Args:
        encoder: called once, with each distinct text once.
        positives1, positives2: (b,) the two sides of pairs that mean the same.
        texts: any texts, repeats allowed: only distinct ones count, since a repeat is at distance 0 in any space.
        max_texts: with more distinct texts than this, a random sample of so many stands for them.
        seed: of that sample.

    Returns:
        `{"alignment", "uniformity", "mean_cosine"}`, plain numbers, not percent. A value that is not defined (no
        positive pair, fewer than two texts) is nan.

    Raises:
        InputError: the two sides differ in length.
        RuntimeError: an embedding is not finite.
    """
    if len(positives1) != len(positives2):
        raise InputError(f"{len(positives1)} and {len(positives2)} texts do not make pairs")
    texts = list(dict.fromkeys(texts))
    if len(texts) > max_texts:
        texts = random.Random(seed).sample(texts, max_texts)
    embeddings = CachingEncoder(encoder).encode([*texts, *positives1, *positives2])
    of_texts, first, second = np.split(embeddings, [len(texts), len(texts) + len(positives1)])
    return {
        "alignment": alignment(first, second),
        "uniformity": uniformity(of_texts),
        "mean_cosine": mean_cosine(of_texts),
    }
