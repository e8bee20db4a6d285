"""The plots of one evaluation, as `run_evaluation.py --plots` writes them."""

import logging
import random
import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..common.errors import InputError
from ..evaluation.encoders import CachingEncoder, Encoder, LayerPoolEncoder, pair_cosines
from ..evaluation.geometry import spectrum
from ..evaluation.layers import average_by_length, layer_weights, weighs_layers
from .plots import (
    MAX_NAME,
    plot_alignment_uniformity,
    plot_layer_weights,
    plot_similarities,
    plot_spectrum,
    plot_transfer,
    require_matplotlib,
)


logger = logging.getLogger(__name__)

MAX_FILE_NAME = 200  # in bytes; file systems have 255
# The files of an evaluation in its folder.
PICTURES = ("similarities_*.png", "alignment_uniformity.png", "spectrum.png", "layer_weights*.png", "transfer.png")
THIS_MODEL = "this model"
# Texts drawn at random from each set: enough for a mean, and for the directions of a space.
LAYER_TEXTS, SPECTRUM_TEXTS = 1_000, 10_000


class EvaluationPlots:
    """The plots of one evaluation: it collects their data while the embeddings are at hand, and draws them at the end.

    Args:
        compared: `"alignment"` and `"uniformity"` of each other model, by the name of the model.

    Raises:
        InputError: matplotlib is not installed, or another model is called `this model`.
    """

    def __init__(self, compared: Mapping[str, Mapping[str, float]]):
        require_matplotlib()
        if THIS_MODEL in compared:
            raise InputError(f"{THIS_MODEL!r} is the name of the model that is measured; rename the other one")
        self.compared = compared
        self.texts: dict[str, list[str]] = {}
        self.similarities: dict[str, tuple[np.ndarray, Sequence[float]]] = {}
        self.variances: np.ndarray | None = None
        self.transfer: dict[str, Mapping[str, float]] = {}

    def note_texts(
        self, name: str, texts: Sequence[str], encoder: CachingEncoder | None = None, prompt: str = ""
    ) -> None:
        """Note the texts of a set; for the first set with an encoder, also the spread of their embeddings.

        The model reads `prompt` before each text.
        """
        self.texts[name] = _sample([*self.texts.get(name, ()), *(prompt + text for text in texts)], LAYER_TEXTS)
        if encoder is not None and self.variances is None:
            self.variances = spectrum(encoder.encode(_sample(texts, SPECTRUM_TEXTS))) ** 2

    def note_similarities(
        self, name: str, encoder: CachingEncoder, first: Sequence[str], second: Sequence[str], scores: Sequence[float]
    ) -> None:
        """Note the cosine of the two sides of each pair; the encoder remembers their embeddings."""
        self.similarities[name] = (pair_cosines(encoder, first, second), scores)

    def note_transfer(self, name: str, accuracies: Mapping[str, float]) -> None:
        """Note the accuracies of a transfer task, by what they are read from."""
        self.transfer[name] = accuracies

    def write(self, folder: Path, encoder: Encoder, geometry: Mapping[str, float]) -> None:
        """Draw all plots that the evaluation has data for, and remove those of an earlier evaluation.

        The weights of hidden states are computed here, on a sample of each set.

        Args:
            folder: the folder of the PNG files; created if it does not exist.
            encoder: the encoder that was measured.
            geometry: its `"alignment"` and `"uniformity"`, if they are defined.
        """
        for pattern in PICTURES:  # another model may have had plots that this one lacks
            for path in folder.glob(pattern):
                path.unlink()
        for name, (cosines, scores) in self.similarities.items():
            plot_similarities(cosines, scores, folder / f"similarities_{_file_name(name)}.png")
        if self.transfer:
            plot_transfer(self.transfer, folder / "transfer.png")
        if np.isfinite([geometry.get(value, np.nan) for value in ("alignment", "uniformity")]).all():
            plot_alignment_uniformity({THIS_MODEL: geometry, **self.compared}, folder / "alignment_uniformity.png")
        else:
            logger.warning("alignment or uniformity is not defined; they are not plotted")
        if self.variances is not None and self.variances.any():
            plot_spectrum({THIS_MODEL: self.variances}, folder / "spectrum.png")
        if isinstance(encoder, LayerPoolEncoder) and weighs_layers(encoder.model):
            self._write_layer_weights(folder, encoder)

    def _write_layer_weights(self, folder: Path, encoder: LayerPoolEncoder) -> None:
        model, states = encoder.model, encoder.model.pooler.states
        options = {"max_tokens_per_batch": encoder.max_tokens_per_batch}
        by_set = {
            name: layer_weights(model, encoder.tokenizer, texts, **options) for name, texts in self.texts.items()
        }
        means = {name: weights.mean(axis=0) for name, (weights, _) in by_set.items()}
        if model.pooler.weighting == "shared":
            plot_layer_weights({"every text": next(iter(means.values()))}, folder / "layer_weights.png", states=states)
            return
        plot_layer_weights(means, folder / "layer_weights_by_set.png", rows="data set", states=states)
        weights, lengths = (np.concatenate(arrays) for arrays in zip(*by_set.values(), strict=True))
        averages = average_by_length(weights, lengths)
        plot_layer_weights(averages, folder / "layer_weights_by_length.png", rows="length in tokens", states=states)


def _sample(texts: Sequence[str], size: int) -> list[str]:
    """At most `size` distinct texts, drawn with a fixed seed."""
    texts = list(dict.fromkeys(texts))
    return random.Random(0).sample(texts, size) if len(texts) > size else texts


def _file_name(name: str) -> str:
    """A valid file name of bounded length, different for each name."""
    plain = re.sub(r"[^\w .,=+-]", "_", name)
    if plain == name and len(name.encode()) <= MAX_FILE_NAME:
        return name
    return f"{plain[:MAX_NAME]}-{zlib.crc32(name.encode()):08x}"
