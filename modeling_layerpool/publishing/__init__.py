"""Model cards, plots, ONNX export and conversion of other checkpoints."""

from . import plots
from .card_scores import update_model_card
from .evaluation_plots import EvaluationPlots
from .model_card import write_model_card
from .plots import (
    plot_alignment_uniformity,
    plot_layer_weights,
    plot_learning_curves,
    plot_scores,
    plot_similarities,
    plot_spectrum,
    plot_transfer,
)


plots.EvaluationPlots = EvaluationPlots  # documented there before it moved

__all__ = [
    "EvaluationPlots",
    "plot_alignment_uniformity",
    "plot_layer_weights",
    "plot_learning_curves",
    "plot_scores",
    "plot_similarities",
    "plot_spectrum",
    "plot_transfer",
    "update_model_card",
    "write_model_card",
]
