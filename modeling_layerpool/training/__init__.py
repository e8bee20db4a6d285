"""Training on the library's Trainer: of layer-pooled encoders, and of masked language models with token contrast."""

from .arguments import ContrastiveTrainingArguments
from .base import NonFiniteLossError
from .lora import add_lora
from .losses import info_nce
from .objective import EmbeddedBatch, Objective
from .objectives import OBJECTIVES
from .token_contrast import TokenContrastArguments, TokenContrastTrainer, sample_token_pairs, semantic_similarity
from .trainer import ContrastiveTrainer


__all__ = [
    "OBJECTIVES",
    "ContrastiveTrainer",
    "ContrastiveTrainingArguments",
    "EmbeddedBatch",
    "NonFiniteLossError",
    "Objective",
    "TokenContrastArguments",
    "TokenContrastTrainer",
    "add_lora",
    "info_nce",
    "sample_token_pairs",
    "semantic_similarity",
]
