"""Masked language modeling, alone or with token-level contrast."""

from ...common.positions import position_limit
from .arguments import MaskedLanguageArguments, TokenContrastArguments
from .models import load_masked_language_model, new_config, start_model
from .texts import load_texts, tokenize_texts
from .token_contrast import sample_token_pairs, semantic_similarity
from .trainer import MaskedLanguageTrainer
from .trainer import TokenContrastTrainer as TokenContrastTrainer  # its name before


__all__ = [
    "MaskedLanguageArguments",
    "MaskedLanguageTrainer",
    "TokenContrastArguments",
    "load_masked_language_model",
    "load_texts",
    "new_config",
    "position_limit",
    "sample_token_pairs",
    "semantic_similarity",
    "start_model",
    "tokenize_texts",
]
