"""A trained folder as others find it: the model card, and plots of models, training and scores."""

from .model_card import write_model_card
from .plots import (
    plot_alignment_uniformity,
    plot_layer_weights,
    plot_learning_curves,
    plot_scores,
    plot_similarities,
    plot_spectrum,
)


__all__ = [
    "plot_alignment_uniformity",
    "plot_layer_weights",
    "plot_learning_curves",
    "plot_scores",
    "plot_similarities",
    "plot_spectrum",
    "write_model_card",
]
