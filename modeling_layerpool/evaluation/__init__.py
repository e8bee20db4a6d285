"""Measure any sentence encoder: semantic similarity (STS), retrieval, and the geometry of its space.

An *encoder* is anything with `encode(list[str]) -> numpy array (len, d)`. Nothing here knows how a model was trained.
"""

from .encoders import CachingEncoder, Encoder, load_encoder
from .geometry import alignment, evaluate_geometry, mean_cosine, uniformity
from .metrics import RetrievalMetric, SentenceSimilarityMetric, ranking_scores, similarity_scores
from .pairs import Pairs, evaluate_pairs, read_pairs_file
from .report import format_results, run_metadata, write_results
from .retrieval import evaluate_retrieval, read_retrieval_folder, relevant_pairs, search
from .sts import STS_DATASETS, evaluate_sts, load_sts, positive_pairs, read_sts_file


__all__ = [
    "STS_DATASETS",
    "CachingEncoder",
    "Encoder",
    "Pairs",
    "RetrievalMetric",
    "SentenceSimilarityMetric",
    "alignment",
    "evaluate_geometry",
    "evaluate_pairs",
    "evaluate_retrieval",
    "evaluate_sts",
    "format_results",
    "load_encoder",
    "load_sts",
    "mean_cosine",
    "positive_pairs",
    "ranking_scores",
    "read_pairs_file",
    "read_retrieval_folder",
    "read_sts_file",
    "relevant_pairs",
    "run_metadata",
    "search",
    "similarity_scores",
    "uniformity",
    "write_results",
]
