"""The geometry of an embedding space: alignment and uniformity (Wang and Isola, arXiv 2005.10242), mean cosine,
and the spectrum.

b: pairs, n: texts, d: width. The functions normalize the embeddings that they are given.
"""

import math
import random
from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as F

from ..common.errors import InputError
from .encoders import CachingEncoder, Encoder


# Whether more is better: an even space has low uniformity, and no direction that all texts share.
METRICS = {
    "alignment": False,
    "uniformity": False,
    "mean_cosine": False,
    "effective_rank": True,
    "top_direction_share": False,
    "isotropy": True,
}
BLOCK = 512
# On the unit sphere, a smaller spread is rounding of float32.
ROUNDING = 1e-6


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
        # ||x - y||^2 = 2 - 2 cos; above the diagonal each pair occurs once
        total += torch.exp(4 * cosines - 4).triu_(diagonal=1).sum().item()
    return math.log(total / (n * (n - 1) / 2))


def mean_cosine(embeddings: np.ndarray) -> float:
    """Mean cosine of all pairs of different rows of (n, d): -1 to 1, near 0 in an isotropic space. nan for n < 2."""
    normalized = _normalize(embeddings)
    n = len(normalized)
    if n < 2:
        return math.nan
    # The squared length of the sum of all vectors is the sum of all cosines, with those of each row with itself.
    return ((normalized.sum(0).square().sum() - normalized.square().sum()) / (n * (n - 1))).item()


def spectrum(embeddings: np.ndarray) -> np.ndarray:
    """Singular values of the normalized, then centered rows of (n, d): (d,) in float64, falling, 0 beyond the rank.

    `spectrum(x) ** 2 / n` is the variance along each principal direction. A direction with a standard deviation below
    1e-6 (rounding) counts as 0, so all values are 0 for a collapsed encoder and for one text.
    """
    normalized = _normalize(embeddings)
    n, d = normalized.shape
    values = np.zeros(d)
    if n > 1:
        found = torch.linalg.svdvals(normalized - normalized.mean(0)).numpy()
        values[: len(found)] = np.where(found < ROUNDING * math.sqrt(n), 0, found)
    return values


def effective_rank(singular_values: np.ndarray) -> float:
    """The number of directions in use: the exponential of the entropy of the values over their sum, 1 to d.

    Roy and Vetterli, EUSIPCO 2007. `singular_values` is (d,), see [`spectrum`]. nan if all are 0.
    """
    shares = _shares(singular_values)
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum())) if len(shares) else math.nan


def top_direction_share(singular_values: np.ndarray) -> float:
    """Share of the variance along the first principal direction, 1/d to 1. nan if all (d,) values are 0."""
    return float(_shares(singular_values**2).max(initial=0)) or math.nan


def isotropy(singular_values: np.ndarray) -> float:
    """IsoScore: 1 if all d directions have the same variance, 0 if one direction has all of it.

    Rudman et al., Findings of ACL 2022, arXiv 2108.07344. With the shares v of the variance, their algorithm gives
    `(1 / sum(v ** 2) - 1) / (d - 1)`. `singular_values` is (d,), see [`spectrum`]. n texts have at most n - 1
    directions, and so a score of at most `(n - 2) / (d - 1)`. nan if all values are 0, or for d = 1.
    """
    shares = _shares(singular_values**2)
    if len(shares) < 2 or not shares.any():
        return math.nan
    return float((1 / np.square(shares).sum() - 1) / (len(shares) - 1))


def _shares(values: np.ndarray) -> np.ndarray:
    total = values.sum()
    return values / total if total > 0 else np.zeros_like(values)


def _normalize(embeddings: np.ndarray) -> torch.Tensor:
    return F.normalize(torch.as_tensor(embeddings).double(), dim=1)


def evaluate_geometry(
    encoder: Encoder,
    positives1: Sequence[str],
    positives2: Sequence[str],
    texts: Sequence[str],
    *,
    query_encoder: Encoder | None = None,
    max_texts: int = 10_000,
    seed: int = 0,
) -> dict[str, float]:
    """Alignment of positive pairs; uniformity, mean cosine and spectrum of texts.

    Args:
        encoder: called once, with each distinct text once.
        positives1, positives2: (b,) the two sides of pairs with the same meaning.
        query_encoder: the encoder of `positives1`, if these are queries that are embedded differently.
        texts: any texts. Repeats are dropped, since a repeat is at distance 0 in any space.
        max_texts: a random sample of this size replaces a larger number of distinct texts.
        seed: seed of that sample.

    Returns:
        `{"alignment", "uniformity", "mean_cosine", "effective_rank", "top_direction_share", "isotropy"}`, not in
        percent. A value that is not defined is nan: without a positive pair, with fewer than two texts, and the last
        three if all texts have the same embedding.

    Raises:
        InputError: the two sides differ in length.
        RuntimeError: an embedding is not finite.
    """
    if len(positives1) != len(positives2):
        raise InputError(f"{len(positives1)} and {len(positives2)} texts do not make pairs")
    texts = list(dict.fromkeys(texts))
    if len(texts) > max_texts:
        texts = random.Random(seed).sample(texts, max_texts)
    remembered = CachingEncoder(encoder)
    if query_encoder is None or query_encoder is encoder:
        embeddings = remembered.encode([*texts, *positives1, *positives2])
        of_texts, first, second = np.split(embeddings, [len(texts), len(texts) + len(positives1)])
    else:
        of_texts, second = np.split(remembered.encode([*texts, *positives2]), [len(texts)])
        first = CachingEncoder(query_encoder).encode(positives1)
    singular_values = spectrum(of_texts)
    return {
        "alignment": alignment(first, second),
        "uniformity": uniformity(of_texts),
        "mean_cosine": mean_cosine(of_texts),
        "effective_rank": effective_rank(singular_values),
        "top_direction_share": top_direction_share(singular_values),
        "isotropy": isotropy(singular_values),
    }
