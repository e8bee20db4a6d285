"""Classification and regression on the pooled vector."""

from ...common.labels import PROBLEM_TYPES
from .arguments import (
    GLUE,
    GLUE_DATASET,
    ClassificationDataArguments,
    ClassificationModelArguments,
    ClassificationTrainingArguments,
)
from .data import LabelledTexts, read_part
from .labels import METRIC_NAMES, Labels
from .sampler import LengthGroupedBatchSampler
from .trainer import ClassificationTrainer, restart_classifier, tokenize_part


__all__ = [
    "GLUE",
    "GLUE_DATASET",
    "METRIC_NAMES",
    "PROBLEM_TYPES",
    "ClassificationDataArguments",
    "ClassificationModelArguments",
    "ClassificationTrainer",
    "ClassificationTrainingArguments",
    "LabelledTexts",
    "Labels",
    "LengthGroupedBatchSampler",
    "read_part",
    "restart_classifier",
    "tokenize_part",
]
