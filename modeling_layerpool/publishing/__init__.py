"""A trained folder as others find it: the model card."""

from .model_card import write_model_card


__all__ = ["write_model_card"]
