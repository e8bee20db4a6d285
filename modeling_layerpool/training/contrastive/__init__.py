"""Contrastive training of sentence encoders."""

from .arguments import ContrastiveTrainingArguments, DataArguments
from .objectives import OBJECTIVES
from .objectives.base import EmbeddedBatch, Objective
from .objectives.info_nce import InfoNCEObjective, SupervisedObjective, UnsupervisedObjective
from .objectives.pairwise import PairwiseObjective
from .trainer import ContrastiveTrainer


__all__ = [
    "OBJECTIVES",
    "ContrastiveTrainer",
    "ContrastiveTrainingArguments",
    "DataArguments",
    "EmbeddedBatch",
    "InfoNCEObjective",
    "Objective",
    "PairwiseObjective",
    "SupervisedObjective",
    "UnsupervisedObjective",
]
