"""Measure any sentence encoder: semantic similarity (STS), retrieval, and the geometry of its space.

An *encoder* is anything with `encode(list[str]) -> numpy array (len, d)`. This code does not depend on training.
"""

from .distributed import ShardedEncoder, is_main_process, join_processes
from .encoders import CachingEncoder, Encoder
from .geometry import (
    alignment,
    effective_rank,
    evaluate_geometry,
    isotropy,
    mean_cosine,
    spectrum,
    top_direction_share,
    uniformity,
)
from .layers import average_by_length, layer_weights, weighs_layers
from .loading import load_encoder
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
    "ShardedEncoder",
    "alignment",
    "average_by_length",
    "effective_rank",
    "evaluate_geometry",
    "evaluate_pairs",
    "evaluate_retrieval",
    "evaluate_sts",
    "format_results",
    "is_main_process",
    "isotropy",
    "join_processes",
    "layer_weights",
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
    "spectrum",
    "top_direction_share",
    "uniformity",
    "weighs_layers",
    "write_results",
]
