"""Measure any sentence encoder: semantic similarity (STS), retrieval, transfer tasks, and the geometry of its
space.

An *encoder* is anything with `encode(list[str]) -> numpy array (len, d)`. This code does not depend on training.
"""

from .distributed import ShardedEncoder, is_main_process, join_processes
from .encoders import CachingEncoder, Encoder, StatesEncoder
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
from .loading import load_encoder, load_states_encoder
from .metrics import RetrievalMetric, SentenceSimilarityMetric, ranking_scores, similarity_scores
from .pairs import Pairs, evaluate_pairs, read_pairs_file
from .report import format_results, run_metadata, write_results
from .retrieval import evaluate_retrieval, read_retrieval_folder, relevant_pairs, search
from .sts import STS_DATASETS, evaluate_sts, load_sts, positive_pairs, read_sts_file
from .transfer import single_state_accuracies, transfer_accuracy, transfer_features
from .transfer_tasks import TRANSFER_TASKS, TransferTask, load_transfer_task, read_transfer_task


__all__ = [
    "STS_DATASETS",
    "TRANSFER_TASKS",
    "CachingEncoder",
    "Encoder",
    "Pairs",
    "RetrievalMetric",
    "SentenceSimilarityMetric",
    "ShardedEncoder",
    "StatesEncoder",
    "TransferTask",
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
    "load_states_encoder",
    "load_sts",
    "load_transfer_task",
    "mean_cosine",
    "positive_pairs",
    "ranking_scores",
    "read_pairs_file",
    "read_retrieval_folder",
    "read_sts_file",
    "read_transfer_task",
    "relevant_pairs",
    "run_metadata",
    "search",
    "similarity_scores",
    "single_state_accuracies",
    "spectrum",
    "top_direction_share",
    "transfer_accuracy",
    "transfer_features",
    "uniformity",
    "weighs_layers",
    "write_results",
]
