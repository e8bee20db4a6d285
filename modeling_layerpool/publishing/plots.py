"""Pictures of a model, its training and its scores: PNG files, 7 inches wide at 150 dots an inch.

They need matplotlib, the extra `plots`, which is imported when the first one is drawn. Nothing is shown and no window
is opened: `pyplot` is not used.
"""

import importlib.util
import logging
import random
import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional as F

from ..common.errors import InputError
from ..evaluation.encoders import CachingEncoder, Encoder, LayerPoolEncoder
from ..evaluation.geometry import spectrum
from ..evaluation.layers import average_by_length, layer_weights, weighs_layers


if TYPE_CHECKING:
    from matplotlib.figure import Figure


logger = logging.getLogger(__name__)

WIDTH, DOTS_PER_INCH = 7.0, 150
# Okabe and Ito's, which can be told apart without seeing red or green as others do; the dark ones first.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINE_STYLES = ("-", "--", ":")
SCORE_BINS = 5
MAX_NAME = 30
MAX_FILE_NAME = 200  # in bytes; file systems have 255
# Of an evaluation, in its folder.
PICTURES = ("similarities_*.png", "alignment_uniformity.png", "spectrum.png", "layer_weights*.png")
# Heat maps with more columns have no room for numbers in their cells, or for a label on each.
MAX_COLUMNS_WITH_NUMBERS = 14
# Of all variance: what is below is the rounding of float32.
LEAST_SHARE = 1e-10
THIS_MODEL = "this model"
# Of a set, drawn at random: enough for a mean, and for the directions of a space.
LAYER_TEXTS, SPECTRUM_TEXTS = 1_000, 10_000


def require_matplotlib() -> None:
    """Raise an [`InputError`] if matplotlib is not installed. It is not imported."""
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError("plots need matplotlib: pip install 'modeling-layerpool[plots]'")


def plot_layer_weights(
    weights: Mapping[str, Sequence[float]], path: str | Path, *, rows: str = "", states: Sequence[int] | None = None
) -> Path:
    """Heat map of how much each hidden state weighs, a row for each kind of text.

    Args:
        weights: for each row, by its label, the mean weight of n hidden states: what `average_by_length` returns, or
            the mean over the texts of each data set.
        path: the PNG file to write.
        rows: what the rows are, for the axis.
        states: (n,) the numbers of the hidden states, 0 the embedding output. Default: 0 to n - 1.

    Raises:
        InputError: there is no row, rows differ in length or from `states`, a weight is negative or not finite.
    """
    if not weights:
        raise InputError("no weights of hidden states to plot")
    values = [_numbers(row, f"weights of {name!r}") for name, row in weights.items()]
    numbers = list(range(len(values[0])) if states is None else states)
    for name, row in zip(weights, values, strict=True):
        if len(row) != len(numbers):
            raise InputError(f"weights of {name!r}: {len(row)} numbers for {len(numbers)} hidden states")
        if row.min() < 0:
            raise InputError(f"weights of {name!r}: {row.min():g} is negative")
    percent = 100 * np.stack(values)
    figure = _figure(max(2.1, 1.25 + 0.3 * len(values)))
    axes = figure.add_subplot()
    image = axes.imshow(percent, cmap="Blues", vmin=0, aspect="auto")
    step = -(-len(numbers) // MAX_COLUMNS_WITH_NUMBERS)
    axes.set_xticks(range(0, len(numbers), step), numbers[::step])
    axes.set_yticks(range(len(values)), [_name(name) for name in weights])
    axes.tick_params(length=0)
    axes.set(xlabel="hidden state (0 is the embedding output)", ylabel=rows)
    axes.spines[:].set_visible(False)
    if len(numbers) <= MAX_COLUMNS_WITH_NUMBERS:
        for (row, column), value in np.ndenumerate(percent):
            colour = "white" if value > 0.6 * percent.max() else "black"
            axes.text(column, row, f"{value:.1f}", ha="center", va="center", size=7.5, color=colour)
    figure.colorbar(image, ax=axes, label="mean weight in %", pad=0.02).outline.set_visible(False)
    return _save(figure, path)


def plot_learning_curves(
    log_history: Sequence[Mapping[str, Any]], path: str | Path, *, metric: str, best_step: int | None = None
) -> Path:
    """Training loss and a score of the development data by step, one above the other.

    Args:
        log_history: what a Trainer has logged, its `state.log_history`. What was evaluated after the training is left
            out, as it belongs to no step.
        path: the PNG file to write.
        metric: the score, by its name in the log, with or without `eval_`.
        best_step: the step to mark. Default: that of the highest score, or the lowest if `metric` ends with `loss`.

    Raises:
        InputError: there is neither a loss nor a score in the log.
    """
    metric = metric.removeprefix("eval_")
    losses, scores = {}, {}
    for entry in log_history:
        if "train_runtime" in entry:
            break
        for points, key in ((losses, "loss"), (scores, f"eval_{metric}")):
            if isinstance(entry.get(key), (int, float)) and np.isfinite(entry[key]):
                points[entry["step"]] = entry[key]
    panels = {"training loss": losses, f"{metric} on the\ndevelopment data": scores}
    panels = {label: points for label, points in panels.items() if points}
    if not panels:
        raise InputError(f"the log has neither a loss nor eval_{metric}")
    if best_step is None and scores:
        best_step = (min if metric.endswith("loss") else max)(scores, key=scores.get)
    figure = _figure(0.7 + 1.7 * len(panels))
    grid = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
    for axes, (label, points), colour in zip(grid, panels.items(), COLOURS, strict=False):
        marker = "." if len(points) < 50 else None
        axes.plot(list(points), list(points.values()), color=colour, marker=marker, linewidth=1.3)
        axes.set_ylabel(label)
        _quiet(axes)
        if best_step is not None:
            axes.axvline(best_step, color="0.5", linestyle="--", linewidth=1)
        if points is scores and best_step in scores:
            value = f"{scores[best_step]:.4g}"
            axes.plot(best_step, scores[best_step], "o", color="black", label=f"step {best_step}: {value}")
            axes.legend(frameon=False)
    grid[-1].set_xlabel("step")
    grid[-1].locator_params(axis="x", integer=True)
    return _save(figure, path)


def plot_alignment_uniformity(models: Mapping[str, Mapping[str, float]], path: str | Path) -> Path:
    """The plane of Wang and Isola (arXiv 2005.10242), a point for each model. Lower is better on both axes.

    Args:
        models: for each model, by its name, `"alignment"` and `"uniformity"`, as `evaluate_geometry` returns them.
            The first one stands out.
        path: the PNG file to write.

    Raises:
        InputError: there is no model, or a value is missing or not finite.
    """
    if not models:
        raise InputError("no model to plot")
    points = np.array([_point(name, geometry) for name, geometry in models.items()])
    height = max(4.2, 1 + 0.28 * len(points))
    figure = _figure(height)
    axes = figure.add_subplot()
    colours = [COLOURS[1], *[COLOURS[0]] * (len(points) - 1)]
    axes.scatter(*points[::-1].T, c=colours[::-1], s=36, zorder=3)  # the first one on top
    margin = np.maximum(0.1 * np.ptp(points, axis=0), 0.02)
    (left, low), (right, high) = points.min(axis=0) - margin, points.max(axis=0) + margin
    axes.set(xlim=(left, right), ylim=(low, high))
    axes.set(xlabel="uniformity (lower is better)", ylabel="alignment (lower is better)")
    axes.locator_params(nbins=6)
    _quiet(axes)
    # Names stand in a column on the right, in the order of their points, so that they cannot cover each other.
    order = np.argsort(-points[:, 1], kind="stable")
    places = _spread((points[order, 1] - low) / (high - low), 0.25 / (height - 1))
    names = [_name(name) for name in models]
    for index, place in zip(order, places, strict=True):
        axes.annotate(
            names[index],
            points[index],
            (1.04, place),
            textcoords="axes fraction",
            va="center",
            color=colours[index],
            size=9,
            annotation_clip=False,
            zorder=2,
            arrowprops={"arrowstyle": "-", "color": "0.75", "linewidth": 0.7, "relpos": (0, 0.5), "shrinkB": 4},
        )
    return _save(figure, path)


def plot_similarities(cosines: Sequence[float], scores: Sequence[float], path: str | Path) -> Path:
    """Histograms of cosine, one for each fifth of the range of the gold scores, the highest on top.

    The less they overlap, the better the encoder tells pairs apart.

    Args:
        cosines: (k,) of the two embeddings of each pair.
        scores: (k,) the gold scores.
        path: the PNG file to write.

    Raises:
        InputError: the two differ in length, a value is not finite, or all gold scores are equal.
    """
    cosines, scores = _numbers(cosines, "cosines"), _numbers(scores, "gold scores")
    if len(cosines) != len(scores):
        raise InputError(f"{len(cosines)} cosines for {len(scores)} gold scores")
    if scores.min() == scores.max():
        raise InputError(f"every gold score is {scores[0]:g}, so that they have no range to divide")
    cosines = np.clip(cosines, -1, 1)  # rounding
    edges = np.linspace(scores.min(), scores.max(), SCORE_BINS + 1)
    bins = np.clip(np.searchsorted(edges, scores, side="right") - 1, 0, SCORE_BINS - 1)
    lowest = min(0.0, np.floor(10 * cosines.min()) / 10)
    bars = np.linspace(lowest, 1, 1 + round(40 * (1 - lowest)))
    figure = _figure(5)
    grid = figure.subplots(SCORE_BINS, sharex=True, sharey=True)
    for place, axes in zip(reversed(range(SCORE_BINS)), grid, strict=True):
        members = cosines[bins == place]
        if len(members):
            axes.hist(members, bars, weights=np.full(len(members), 100 / len(members)), color=COLOURS[0], alpha=0.75)
            axes.axvline(np.median(members), color=COLOURS[1], linewidth=1.5)
        label = f"gold {edges[place]:.3g} to {edges[place + 1]:.3g}\n{len(members):,} pairs"
        axes.text(1.02, 0.5, label, transform=axes.transAxes, va="center", size=9)
        axes.set_xlim(lowest, 1)
        _quiet(axes)
    grid[-1].set_xlabel("cosine of the two embeddings (line: median)")
    figure.supylabel("pairs in %", size=10)
    return _save(figure, path)


def plot_scores(
    scores: Mapping[str, Mapping[str, Sequence[float]]], path: str | Path, *, metric: str = "score"
) -> Path:
    """Scores of several poolers (or other ways) over seeds, a panel for each data set.

    Args:
        scores: for each data set, by its name, for each pooler the score of each seed. Poolers stand in the order in
            which they first appear; one that a set lacks leaves its row empty.
        path: the PNG file to write.
        metric: what the scores are, for the axis.

    Raises:
        InputError: there is no set or no pooler, or a score is not finite.
    """
    poolers = list(dict.fromkeys(pooler for of_set in scores.values() for pooler in of_set))
    if not poolers:
        raise InputError("no scores to plot")
    columns = min(3, len(scores))
    lines = -(-len(scores) // columns)
    figure = _figure(0.75 + lines * (0.5 + 0.27 * len(poolers)))
    grid = figure.subplots(lines, columns, sharey=True, squeeze=False).flatten()
    for axes, (name, of_set) in zip(grid, scores.items(), strict=False):
        for row, pooler in enumerate(poolers):
            if pooler not in of_set:
                continue
            values = _numbers(of_set[pooler], f"scores of {pooler!r} on {name!r}")
            axes.plot([values.min(), values.max()], [row, row], color=COLOURS[0], linewidth=1.5)
            axes.plot(values.mean(), row, "|", color=COLOURS[0], markersize=12, markeredgewidth=2.5)
            axes.plot(values, [row] * len(values), "o", color=COLOURS[1], markersize=3.5)
        axes.set_title(_name(name), size=10)
        axes.set_yticks(range(len(poolers)), [_name(pooler) for pooler in poolers])
        axes.set_ylim(len(poolers) - 0.5, -0.5)
        axes.locator_params(axis="x", nbins=4)
        _quiet(axes, "x")
    for axes in grid[len(scores) :]:
        axes.set_axis_off()
    figure.supxlabel(f"{metric}: each seed (dot), lowest to highest (line), mean (stroke)", size=10)
    return _save(figure, path)


def plot_spectrum(spectra: Mapping[str, Sequence[float]], path: str | Path) -> Path:
    """How the variance of embeddings is spread over its principal directions, a line for each model, on a log scale.

    A line that falls steeply belongs to embeddings that use few of their dimensions.

    Args:
        spectra: for each model, by its name, the variance along each principal direction, or its share, in any order:
            `spectrum(embeddings) ** 2` of the geometry, for one.
        path: the PNG file to write.

    Raises:
        InputError: there is no model, or a variance is negative, not finite, or zero in all directions.
    """
    if not spectra:
        raise InputError("no spectrum to plot")
    figure = _figure(3.8)
    axes = figure.add_subplot()
    for number, (name, values) in enumerate(spectra.items()):
        variances = np.sort(_numbers(values, f"spectrum of {name!r}"))[::-1]
        if variances[-1] < 0 or variances[0] == 0:
            raise InputError(f"spectrum of {name!r}: variances must not be negative, nor all of them zero")
        shares = variances / variances.sum()
        shares = shares[shares > LEAST_SHARE]
        style = {"color": COLOURS[number % len(COLOURS)], "linestyle": LINE_STYLES[number // len(COLOURS) % 3]}
        axes.plot(range(1, len(shares) + 1), 100 * shares, label=_name(name), linewidth=1.5, **style)
    axes.set(yscale="log", xlabel="principal direction, by variance", ylabel="share of the variance in %")
    _quiet(axes)
    axes.legend(frameon=False, fontsize=9)
    return _save(figure, path)


class EvaluationPlots:
    """The plots of one evaluation: what they show is noted while the embeddings are at hand, and drawn in the end.

    Args:
        compared: for each other model, by its name, `"alignment"` and `"uniformity"`.

    Raises:
        InputError: matplotlib is not installed, or another model is called `this model`.
    """

    def __init__(self, compared: Mapping[str, Mapping[str, float]]):
        require_matplotlib()
        if THIS_MODEL in compared:
            raise InputError(f"{THIS_MODEL!r} is the name of the model that is measured; give the other one another")
        self.compared = compared
        self.texts: dict[str, list[str]] = {}
        self.similarities: dict[str, tuple[np.ndarray, Sequence[float]]] = {}
        self.variances: np.ndarray | None = None

    def note_texts(
        self, name: str, texts: Sequence[str], encoder: CachingEncoder | None = None, prompt: str = ""
    ) -> None:
        """Note the texts of a set, and of the first set that has an encoder how their embeddings are spread.

        The `prompt` is what the model reads before each text.
        """
        self.texts[name] = _sample([*self.texts.get(name, ()), *(prompt + text for text in texts)], LAYER_TEXTS)
        if encoder is not None and self.variances is None:
            self.variances = spectrum(encoder.encode(_sample(texts, SPECTRUM_TEXTS))) ** 2

    def note_similarities(
        self, name: str, encoder: CachingEncoder, first: Sequence[str], second: Sequence[str], scores: Sequence[float]
    ) -> None:
        """Note the cosine of the two sides of each pair, whose embeddings the encoder remembers."""
        sides = [torch.from_numpy(encoder.encode(side)).double() for side in (first, second)]
        self.similarities[name] = (F.cosine_similarity(*sides).numpy(), scores)

    def write(self, folder: Path, encoder: Encoder, geometry: Mapping[str, float]) -> None:
        """Draw what can be drawn, in place of what was drawn there before.

        The weights of hidden states are computed here, on a sample of each set.

        Args:
            folder: where the PNG files go; created if it is not there.
            encoder: what was measured.
            geometry: its `"alignment"` and `"uniformity"`, if they are defined.
        """
        for pattern in PICTURES:  # of another model, perhaps, which has some that this one lacks
            for path in folder.glob(pattern):
                path.unlink()
        for name, (cosines, scores) in self.similarities.items():
            plot_similarities(cosines, scores, folder / f"similarities_{_file_name(name)}.png")
        if np.isfinite([geometry.get(value, np.nan) for value in ("alignment", "uniformity")]).all():
            plot_alignment_uniformity({THIS_MODEL: geometry, **self.compared}, folder / "alignment_uniformity.png")
        else:
            logger.warning("alignment or uniformity is not defined, and so not plotted")
        if self.variances is not None and self.variances.any():
            plot_spectrum({THIS_MODEL: self.variances}, folder / "spectrum.png")
        if isinstance(encoder, LayerPoolEncoder) and weighs_layers(encoder.model):
            self._write_layer_weights(folder, encoder)

    def _write_layer_weights(self, folder: Path, encoder: LayerPoolEncoder) -> None:
        model, states = encoder.model, encoder.model.pooler.states
        options = {"max_tokens_per_batch": encoder.max_tokens_per_batch}
        of_sets = {
            name: layer_weights(model, encoder.tokenizer, texts, **options) for name, texts in self.texts.items()
        }
        means = {name: weights.mean(axis=0) for name, (weights, _) in of_sets.items()}
        if model.config.pooler_type == "weighted_layers":
            plot_layer_weights({"every text": next(iter(means.values()))}, folder / "layer_weights.png", states=states)
            return
        plot_layer_weights(means, folder / "layer_weights_by_set.png", rows="data set", states=states)
        weights, lengths = (np.concatenate(arrays) for arrays in zip(*of_sets.values(), strict=True))
        averages = average_by_length(weights, lengths)
        plot_layer_weights(averages, folder / "layer_weights_by_length.png", rows="length in tokens", states=states)


def _sample(texts: Sequence[str], size: int) -> list[str]:
    """At most so many distinct texts: drawn at random, but the same ones each time."""
    texts = list(dict.fromkeys(texts))
    return random.Random(0).sample(texts, size) if len(texts) > size else texts


def _figure(height: float) -> "Figure":
    require_matplotlib()
    from matplotlib.figure import Figure  # an extra

    return Figure(figsize=(WIDTH, height), dpi=DOTS_PER_INCH, layout="constrained")


def _save(figure: "Figure", path: str | Path) -> Path:
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise InputError(f"{path}: plots are PNG files, so that its name must end with .png")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    figure.savefig(partial, format="png", metadata={"Software": None})  # so that equal data make equal files
    partial.replace(path)
    return path


def _quiet(axes: Any, grid: str = "y") -> None:
    """A light grid, and no frame where there is no scale."""
    axes.grid(axis=grid, color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _file_name(name: str) -> str:
    """A name as it may stand in that of a file: of bounded length, and the same for no other name."""
    plain = re.sub(r"[^\w .,=+-]", "_", name)
    if plain == name and len(name.encode()) <= MAX_FILE_NAME:
        return name
    return f"{plain[:MAX_NAME]}-{zlib.crc32(name.encode()):08x}"


def _name(name: str) -> str:
    """A name as it may stand in a picture: of bounded length, and with no formula in it."""
    name = " ".join(str(name).split())
    name = name if len(name) <= MAX_NAME else f"{name[: MAX_NAME // 2]}...{name[3 - MAX_NAME // 2 :]}"
    return name.replace("$", r"\$")


def _numbers(values: Sequence[float], what: str) -> np.ndarray:
    """`values` as a row of float64, at least one, all of them finite."""
    try:
        numbers = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{what}: not all of them are numbers") from error
    if numbers.ndim != 1 or len(numbers) == 0:
        raise InputError(f"{what}: expected a row of numbers, not an array of shape {numbers.shape}")
    if not np.isfinite(numbers).all():
        raise InputError(f"{what}: not all of them are finite numbers")
    return numbers


def _point(name: str, geometry: Mapping[str, float]) -> np.ndarray:
    return _numbers([geometry.get("uniformity"), geometry.get("alignment")], f"uniformity and alignment of {name!r}")


def _spread(places: np.ndarray, gap: float) -> list[float]:
    """Places (m,), descending from at most 1 to at least 0, moved until they are `gap` apart."""
    spread: list[float] = []
    for place in places:
        spread.append(min(place, spread[-1] - gap) if spread else place)
    floor = 0.0
    for index in reversed(range(len(spread))):
        spread[index] = max(spread[index], floor)
        floor = spread[index] + gap
    return spread
