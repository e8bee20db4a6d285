"""Trainers of layer-pooled encoders and of masked language models, on the transformers Trainer."""

import sys

from . import contrastive, masked_lm
from .base import NonFiniteLossError
from .computed_files import embed_texts
from .contrastive.arguments import ContrastiveTrainingArguments
from .contrastive.objectives import OBJECTIVES
from .contrastive.objectives.base import EmbeddedBatch, Objective
from .contrastive.trainer import ContrastiveTrainer
from .lora import add_lora
from .losses import info_nce
from .masked_lm.arguments import MaskedLanguageArguments, TokenContrastArguments
from .masked_lm.token_contrast import sample_token_pairs, semantic_similarity
from .masked_lm.trainer import MaskedLanguageTrainer
from .masked_lm.trainer import TokenContrastTrainer as TokenContrastTrainer  # its name before


# The modules that were documented before they moved into folders, under their old names.
sys.modules |= {
    f"{__name__}.mlm": masked_lm,
    f"{__name__}.neighbours": contrastive.neighbours,
    f"{__name__}.objective": contrastive.objectives.base,
    f"{__name__}.pairwise": contrastive.objectives.pairwise,
}

__all__ = [
    "OBJECTIVES",
    "ContrastiveTrainer",
    "ContrastiveTrainingArguments",
    "EmbeddedBatch",
    "MaskedLanguageArguments",
    "MaskedLanguageTrainer",
    "NonFiniteLossError",
    "Objective",
    "TokenContrastArguments",
    "add_lora",
    "embed_texts",
    "info_nce",
    "sample_token_pairs",
    "semantic_similarity",
]
