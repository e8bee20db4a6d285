"""Plots of a model, its training and its scores: PNG files, 7 inches wide at 150 dots per inch.

They need matplotlib, the extra `plots`, which is imported when the first one is drawn. Without `pyplot` no window
opens.
"""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..common.errors import InputError


if TYPE_CHECKING:
    from matplotlib.figure import Figure


WIDTH, DOTS_PER_INCH = 7.0, 150
# The color-blind safe palette of Okabe and Ito, the dark colors first.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINE_STYLES = ("-", "--", ":")
SCORE_BINS = 5
MAX_NAME = 30
# Heat maps with more columns have no room for a number in each cell or a label on each column.
MAX_COLUMNS_WITH_NUMBERS = 14
MAX_BARS_WITH_NUMBERS = 27
# A smaller share of the variance is rounding of float32.
LEAST_SHARE = 1e-10
# A curve that changes by a smaller share of its largest value looks flat.
LEAST_CHANGE = 0.01


def require_matplotlib() -> None:
    """Raise an [`InputError`] if matplotlib is not installed. It is not imported."""
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError("plots need matplotlib: pip install matplotlib")


def plot_layer_weights(
    weights: Mapping[str, Sequence[float]], path: str | Path, *, rows: str = "", states: Sequence[int] | None = None
) -> Path:
    """Heat map of the weight of each hidden state, with a row for each kind of text.

    Args:
        weights: the mean weight of n hidden states for each row, by its label: the result of `average_by_length`, or
            the mean over the texts of each dataset.
        path: the PNG file to write.
        rows: the label of the axis of the rows.
        states: (n,) the numbers of the hidden states, 0 for the embedding output. Default: 0 to n - 1.

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
            color = "white" if value > 0.6 * percent.max() else "black"
            axes.text(column, row, f"{value:.1f}", ha="center", va="center", size=7.5, color=color)
    figure.colorbar(image, ax=axes, label="mean weight in %", pad=0.02).outline.set_visible(False)
    return _save(figure, path)


def plot_learning_curves(
    log_history: Sequence[Mapping[str, Any]], path: str | Path, *, metric: str, best_step: int | None = None
) -> Path:
    """Training loss and a score of the development data by step, one above the other.

    Args:
        log_history: the `state.log_history` of a Trainer. Evaluations after the training are left out, as they belong
            to no step.
        path: the PNG file to write.
        metric: the name of the score in the log, with or without `eval_`.
        best_step: the step to mark. Default: the step of the highest score, or of the lowest if `metric` ends with
            `loss`.

    Raises:
        InputError: there is neither a loss nor a score in the log.
    """
    metric = metric.removeprefix("eval_")
    losses, scores = curves(log_history, metric)
    panels = {"training loss": losses, f"{metric} on the\ndevelopment data": scores}
    panels = {label: points for label, points in panels.items() if points}
    if not panels:
        raise InputError(f"the log has neither a loss nor eval_{metric}")
    if best_step is None and scores:
        best_step = (min if metric.endswith("loss") else max)(scores, key=scores.get)
    figure = _figure(0.7 + 1.7 * len(panels))
    grid = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
    for axes, (label, points), color in zip(grid, panels.items(), COLORS, strict=False):
        marker = "." if len(points) < 50 else None
        axes.plot(list(points), list(points.values()), color=color, marker=marker, linewidth=1.3)
        axes.set_ylabel(label)
        show_flat_curves_flat(axes)
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


def curves(log_history: Sequence[Mapping[str, Any]], metric: str) -> tuple[dict[int, float], dict[int, float]]:
    """The finite training losses and scores by step, without evaluations after the training."""
    losses, scores = {}, {}
    for entry in log_history:
        if "train_runtime" in entry:
            break
        for points, key in ((losses, "loss"), (scores, f"eval_{metric}")):
            if isinstance(entry.get(key), (int, float)) and np.isfinite(entry[key]):
                points[entry["step"]] = entry[key]
    return losses, scores


def plot_alignment_uniformity(models: Mapping[str, Mapping[str, float]], path: str | Path) -> Path:
    """The plane of Wang and Isola (arXiv 2005.10242), a point for each model. Lower is better on both axes.

    Args:
        models: `"alignment"` and `"uniformity"` of each model by its name, as `evaluate_geometry` returns them. The
            first one is highlighted.
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
    colors = [COLORS[1], *[COLORS[0]] * (len(points) - 1)]
    axes.scatter(*points[::-1].T, c=colors[::-1], s=36, zorder=3)  # the first one on top
    margin = np.maximum(0.1 * np.ptp(points, axis=0), 0.02)
    (left, low), (right, high) = points.min(axis=0) - margin, points.max(axis=0) + margin
    axes.set(xlim=(left, right), ylim=(low, high))
    axes.set(xlabel="uniformity (lower is better)", ylabel="alignment (lower is better)")
    axes.locator_params(nbins=6)
    axes.ticklabel_format(axis="x", useOffset=False)
    _quiet(axes)
    # A column of names on the right, in the order of their points: they cannot cover each other.
    order = np.argsort(-points[:, 1], kind="stable")
    heights = _spread((points[order, 1] - low) / (high - low), 0.25 / (height - 1))
    names = [_name(name) for name in models]
    for index, name_height in zip(order, heights, strict=True):
        axes.annotate(
            names[index],
            points[index],
            (1.04, name_height),
            textcoords="axes fraction",
            va="center",
            color=colors[index],
            size=9,
            annotation_clip=False,
            zorder=2,
            arrowprops={"arrowstyle": "-", "color": "0.75", "linewidth": 0.7, "relpos": (0, 0.5), "shrinkB": 4},
        )
    return _save(figure, path)


def plot_similarities(cosines: Sequence[float], scores: Sequence[float], path: str | Path) -> Path:
    """Histograms of cosine, one for each fifth of the range of the gold scores, the highest on top.

    The less they overlap, the better the encoder separates the pairs.

    Args:
        cosines: (k,) the cosine of the two embeddings of each pair.
        scores: (k,) the gold scores.
        path: the PNG file to write.

    Raises:
        InputError: the two differ in length, a value is not finite, or all gold scores are equal.
    """
    cosines, scores = _numbers(cosines, "cosines"), _numbers(scores, "gold scores")
    if len(cosines) != len(scores):
        raise InputError(f"{len(cosines)} cosines for {len(scores)} gold scores")
    if scores.min() == scores.max():
        raise InputError(f"every gold score is {scores[0]:g}, so their range cannot be divided")
    cosines = np.clip(cosines, -1, 1)  # rounding
    edges = np.linspace(scores.min(), scores.max(), SCORE_BINS + 1)
    bins = np.clip(np.searchsorted(edges, scores, side="right") - 1, 0, SCORE_BINS - 1)
    lowest = min(0.0, np.floor(10 * cosines.min()) / 10)
    bars = np.linspace(lowest, 1, 1 + round(40 * (1 - lowest)))
    figure = _figure(5)
    grid = figure.subplots(SCORE_BINS, sharex=True, sharey=True)
    for index, axes in zip(reversed(range(SCORE_BINS)), grid, strict=True):
        members = cosines[bins == index]
        if len(members):
            axes.hist(members, bars, weights=np.full(len(members), 100 / len(members)), color=COLORS[0], alpha=0.75)
            axes.axvline(np.median(members), color=COLORS[1], linewidth=1.5)
        label = f"gold {edges[index]:.3g} to {edges[index + 1]:.3g}\n{len(members):,} pairs"
        axes.text(1.02, 0.5, label, transform=axes.transAxes, va="center", size=9)
        axes.set_xlim(lowest, 1)
        _quiet(axes)
    grid[-1].set_xlabel("cosine of the two embeddings (line: median)")
    figure.supylabel("pairs in %", size=10)
    return _save(figure, path)


def plot_scores(
    scores: Mapping[str, Mapping[str, Sequence[float]]], path: str | Path, *, metric: str = "score"
) -> Path:
    """Scores of several poolers (or other methods) over seeds, with a panel for each dataset.

    Args:
        scores: the score of each seed, by dataset and pooler. Poolers are drawn in the order in which they first
            appear; the row of one that a dataset lacks stays empty.
        path: the PNG file to write.
        metric: the name of the scores, for the axis.

    Raises:
        InputError: there is no dataset or no pooler, or a score is not finite.
    """
    poolers = list(dict.fromkeys(pooler for by_pooler in scores.values() for pooler in by_pooler))
    if not poolers:
        raise InputError("no scores to plot")
    columns = min(3, len(scores))
    lines = -(-len(scores) // columns)
    figure = _figure(0.75 + lines * (0.5 + 0.27 * len(poolers)))
    grid = figure.subplots(lines, columns, sharey=True, squeeze=False).flatten()
    for axes, (name, by_pooler) in zip(grid, scores.items(), strict=False):
        for row, pooler in enumerate(poolers):
            if pooler not in by_pooler:
                continue
            values = _numbers(by_pooler[pooler], f"scores of {pooler!r} on {name!r}")
            axes.plot([values.min(), values.max()], [row, row], color=COLORS[0], linewidth=1.5)
            axes.plot(values.mean(), row, "|", color=COLORS[0], markersize=12, markeredgewidth=2.5)
            axes.plot(values, [row] * len(values), "o", color=COLORS[1], markersize=3.5)
        axes.set_title(_name(name), size=10)
        axes.set_yticks(range(len(poolers)), [_name(pooler) for pooler in poolers])
        axes.set_ylim(len(poolers) - 0.5, -0.5)
        axes.locator_params(axis="x", nbins=4)
        _quiet(axes, "x")
    for axes in grid[len(scores) :]:
        axes.set_axis_off()
    figure.supxlabel(f"{metric}: each seed (dot), lowest to highest (line), mean (stroke)", size=10)
    return _save(figure, path)


def plot_transfer(accuracies: Mapping[str, Mapping[str, float]], path: str | Path) -> Path:
    """Accuracies on transfer tasks: a group of bars for each task, a bar for each thing that the classifier reads.

    Args:
        accuracies: by task and what is read (`last layer`, `best single state`, `all states`), in percent. Each task
            has the same names.
        path: the PNG file to write.

    Raises:
        InputError: there is no task, the names differ between tasks, or an accuracy is not finite.
    """
    if not accuracies:
        raise InputError("no accuracies to plot")
    kinds = list(next(iter(accuracies.values())))
    if any(list(by_kind) != kinds for by_kind in accuracies.values()):
        raise InputError("accuracies: each task needs the same names")
    values = np.stack([_numbers(list(row.values()), f"accuracies on {name!r}") for name, row in accuracies.items()])
    figure = _figure(3.6)
    axes = figure.add_subplot()
    width = 0.8 / len(kinds)
    for number, kind in enumerate(kinds):
        middles = np.arange(len(values)) + (number - (len(kinds) - 1) / 2) * width
        bars = axes.bar(middles, values[:, number], width, label=_name(kind), color=COLORS[number % len(COLORS)])
        if values.size <= MAX_BARS_WITH_NUMBERS:
            axes.bar_label(bars, fmt="%.1f", fontsize=6.5, padding=1)
    # Bars start at a round number below the lowest, since all are far above 0.
    axes.set_ylim(max(0, 10 * np.floor((values.min() - 2) / 10)), min(100, 5 * np.ceil((values.max() + 2) / 5)))
    axes.set_xticks(range(len(values)), [_name(name) for name in accuracies])
    axes.set_ylabel("accuracy in % (the axis does not start at 0)")
    _quiet(axes)
    figure.legend(loc="outside upper center", ncols=len(kinds), frameon=False, fontsize=9)
    return _save(figure, path)


def plot_spectrum(spectra: Mapping[str, Sequence[float]], path: str | Path) -> Path:
    """The share of the variance of embeddings along each principal direction, a line for each model, on a log scale.

    A steep line belongs to embeddings that use few of their dimensions.

    Args:
        spectra: the variance along each principal direction of each model, or its share, in any order; for example
            `spectrum(embeddings) ** 2`.
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
        style = {"color": COLORS[number % len(COLORS)], "linestyle": LINE_STYLES[number // len(COLORS) % 3]}
        axes.plot(range(1, len(shares) + 1), 100 * shares, label=_name(name), linewidth=1.5, **style)
    axes.set(xlabel="principal direction, by variance", ylabel="share of the variance in %")
    _quiet(axes)
    axes.set_yscale("log")
    axes.legend(frameon=False, fontsize=9)
    return _save(figure, path)


def show_flat_curves_flat(axes: Any) -> None:
    """Let the y axis span at least 1% of the largest value, so that rounding does not look like a slope."""
    low, high = axes.dataLim.intervaly
    span = LEAST_CHANGE * max(abs(low), abs(high))
    if high - low < span:
        middle = (low + high) / 2
        axes.set_ylim(middle - 0.55 * span, middle + 0.55 * span)
    axes.ticklabel_format(axis="y", useOffset=False)  # such as 1e-5+8.2


def _figure(height: float) -> "Figure":
    require_matplotlib()
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH, height), dpi=DOTS_PER_INCH, layout="constrained")


def _save(figure: "Figure", path: str | Path) -> Path:
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise InputError(f"{path}: plots are PNG files; the name must end with .png")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    figure.savefig(partial, format="png", metadata={"Software": None})  # so that equal data make equal files
    partial.replace(path)
    return path


def _quiet(axes: Any, grid: str = "y") -> None:
    """A light grid on an axis with numbers in full, and no frame on the sides without a scale."""
    axes.ticklabel_format(axis=grid, useOffset=False)
    axes.grid(axis=grid, color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _name(name: str) -> str:
    """A name as a plot shows it: of bounded length, and never read as a formula."""
    name = " ".join(str(name).split())
    name = name if len(name) <= MAX_NAME else f"{name[: MAX_NAME // 2]}...{name[3 - MAX_NAME // 2 :]}"
    return name.replace("$", r"\$")


def _numbers(values: Sequence[float], what: str) -> np.ndarray:
    """`values` as a float64 array (n,) of at least one number, all of them finite."""
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


def _spread(heights: np.ndarray, gap: float) -> list[float]:
    """Heights (m,), descending from at most 1 to at least 0, moved until they are `gap` apart."""
    spread: list[float] = []
    for height in heights:
        spread.append(min(height, spread[-1] - gap) if spread else height)
    floor = 0.0
    for index in reversed(range(len(spread))):
        spread[index] = max(spread[index], floor)
        floor = spread[index] + gap
    return spread
