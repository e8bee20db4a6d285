"""Contrastive training of layer-pooled encoders on the library's Trainer."""

from .arguments import ContrastiveTrainingArguments
from .base import NonFiniteLossError
from .losses import info_nce
from .objective import EmbeddedBatch, Objective
from .objectives import OBJECTIVES
from .trainer import ContrastiveTrainer


__all__ = [
    "OBJECTIVES",
    "ContrastiveTrainer",
    "ContrastiveTrainingArguments",
    "EmbeddedBatch",
    "NonFiniteLossError",
    "Objective",
    "info_nce",
]
