"""Transfer tasks: how well a small classifier on frozen features predicts the labels, as SentEval measures it.

The features are an encoder's embeddings, with logistic regression, or all of its hidden states, with kernel ridge
regression. Whatever is chosen, is chosen on the dev part or on inner folds of the training part.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers.utils import logging

from ..common.errors import InputError
from .encoders import Encoder
from .transfer_tasks import FOLDS, INNER_FOLDS, TransferTask


FEATURES = ("pooled", "states")
# From the strongest regularization to the weakest, which loses a tie.
INVERSE_STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)  # C of the logistic regression
RIDGES = (0.4, 0.15, 0.05)  # alpha of the kernel ridge regression
# The kernel is exp(-GAMMA d^2 / v), with v the sum of the variances of all dimensions: the mean of d^2 is 2v.
GAMMA = 0.25
# Less variance, of numbers around 1, is rounding.
ROUNDING_VARIANCE = 1e-8
# Rows of a training part that choose the best single state.
STATE_ROWS = 3_000
# The kernel matrix holds the square of this many float32, 1.6 GB.
MAX_KERNEL_ROWS = 20_000


Inner = list[tuple[np.ndarray, np.ndarray]]  # indices of rows to fit, and of rows to compare settings on
# Fits rows (indices) with a strength of regularization, and predicts the labels of other rows.
Predict = Callable[[np.ndarray, np.ndarray, float], np.ndarray]


def transfer_features(encoder: Encoder, task: TransferTask, states: int | None = None) -> np.ndarray:
    """The frozen features of each row.

    Args:
        encoder: `encode` returns embeddings, or hidden states as a [`StatesEncoder`] does. Called once.
        task: the rows.
        states: the number of hidden states in the result of `encode`. Default: None, it returns embeddings.

    Returns:
        (rows, width) for embeddings; (rows, states, width) for states, each normalized to mean 0 and variance 1 over
        its width. Pairs have |u - v| and u * v side by side, and so twice the width. float32.

    Raises:
        InputError: there are more than 20,000 rows, whose kernel matrix would take more than 1.6 GB.
    """
    rows = len(task.first)
    if states is not None and rows > MAX_KERNEL_ROWS:
        raise InputError(
            f"--features states: {rows:,} rows, and the classifier on states takes at most {MAX_KERNEL_ROWS:,}; use "
            "--features pooled"
        )
    vectors = encoder.encode([*task.first, *(task.second or ())])
    if states is not None:
        vectors = vectors.reshape(len(vectors), states, -1)
        vectors = vectors - vectors.mean(axis=-1, keepdims=True)
        vectors /= np.sqrt(np.square(vectors).mean(axis=-1, keepdims=True) + 1e-12)
    if task.second is None:
        return vectors
    first, second = vectors[:rows], vectors[rows:]
    return np.concatenate([np.abs(first - second), first * second], axis=-1)


def transfer_accuracy(
    features: np.ndarray, task: TransferTask, *, seed: int = 0, name: str = "", show_progress_bar: bool = False
) -> dict[str, Any]:
    """The accuracy of a classifier on frozen features, on the test part or over 10 stratified folds.

    Args:
        features: as [`transfer_features`] returns them: (rows, width) for logistic regression, or (rows, states,
            width) for kernel ridge regression on all states.
        task: the rows.
        seed: the seed of the folds, outer and inner.
        name: the name of the task, for the progress bar.
        show_progress_bar: show one bar over the folds. Default: False.

    Returns:
        `{"accuracy", "rows", "features"}`: percent of the reported rows, their number, `pooled` or `states`.
    """
    hits = []
    for train, inner, test in _splits(task, seed, name, show_progress_bar):
        if features.ndim == 2:
            hits.append(
                _test(_logistic_regression(features, task.labels), INVERSE_STRENGTHS, task, train, inner, test)
            )
        else:
            hits.append(_test(_kernel_ridge(features, task.labels, train), RIDGES, task, train, inner, test))
    hits = np.concatenate(hits)
    return {"accuracy": 100 * float(hits.mean()), "rows": len(hits), "features": FEATURES[features.ndim - 2]}


def single_state_accuracies(
    features: np.ndarray, task: TransferTask, *, seed: int = 0, name: str = "", show_progress_bar: bool = False
) -> dict[str, float]:
    """The accuracy of the same classifier on a single hidden state: what reading all states is compared with.

    Args:
        features, task, seed, name, show_progress_bar: as in [`transfer_accuracy`], with features of states.

    Returns:
        `{"last layer", "best single state"}`, in percent. The best state is chosen like the regularization, but with
        at most 3,000 rows of each training part.
    """
    hits: dict[str, list[np.ndarray]] = {"last layer": [], "best single state": []}
    last = features.shape[1] - 1
    for train, inner, test in _splits(task, seed, name, show_progress_bar):
        best = _best_state(features, task, train, seed)
        of_state = {}
        for state in {last, best}:
            predict = _kernel_ridge(features[:, state], task.labels, train)
            of_state[state] = _test(predict, RIDGES, task, train, inner, test)
        hits["last layer"].append(of_state[last])
        hits["best single state"].append(of_state[best])
    return {kind: 100 * float(np.concatenate(parts).mean()) for kind, parts in hits.items()}


def _best_state(features: np.ndarray, task: TransferTask, train: np.ndarray, seed: int) -> int:
    if len(train) > STATE_ROWS:
        train = train_test_split(train, train_size=STATE_ROWS, stratify=task.labels[train], random_state=seed)[0]
    inner = _inner(task, train, seed)
    rows = np.unique(np.concatenate([indices for pair in inner for indices in pair]))
    accuracies = []
    for state in range(features.shape[1]):
        predict = _kernel_ridge(features[:, state], task.labels, train, rows)
        accuracies.append(max(_inner_accuracies(predict, RIDGES, task.labels, inner)))
    return int(np.argmax(accuracies))


def _splits(
    task: TransferTask, seed: int, name: str, show_progress_bar: bool
) -> Iterator[tuple[np.ndarray, Inner, np.ndarray]]:
    """The rows to train on, the inner pairs that choose settings, and the rows to report: of each fold, or once."""
    if task.sizes is None:
        folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
        splits = list(folds.split(task.first, task.labels))
    else:
        parts = _parts(task.sizes)
        splits = [(parts["train"], parts["test"])]
    description = f"Classifying {name}".rstrip()
    options = {"unit": "fold", "leave": False, "disable": not show_progress_bar}
    for train, test in logging.tqdm(splits, desc=description, **options):
        yield train, _inner(task, train, seed), test


def _parts(sizes: dict[str, int]) -> dict[str, np.ndarray]:
    ends = np.cumsum(list(sizes.values()))
    return {part: np.arange(end - size, end) for (part, size), end in zip(sizes.items(), ends, strict=True)}


def _inner(task: TransferTask, train: np.ndarray, seed: int) -> Inner:
    """What settings are chosen on: the dev part, or folds of the rows to train on."""
    if task.sizes and "dev" in task.sizes:
        return [(train, _parts(task.sizes)["dev"])]
    folds = StratifiedKFold(INNER_FOLDS, shuffle=True, random_state=seed)
    return [(train[fit], train[held]) for fit, held in folds.split(train, task.labels[train])]


def _test(
    predict: Predict, strengths: Sequence[float], task: TransferTask, train: np.ndarray, inner: Inner, test: np.ndarray
) -> np.ndarray:
    """Which rows of `test` are predicted correctly, (rows,) bool, with the strength that does best on `inner`."""
    strength = strengths[int(np.argmax(_inner_accuracies(predict, strengths, task.labels, inner)))]
    return predict(train, test, strength) == task.labels[test]


def _inner_accuracies(predict: Predict, strengths: Sequence[float], labels: np.ndarray, inner: Inner) -> list[float]:
    return [
        float(np.mean([np.mean(predict(fit, held, strength) == labels[held]) for fit, held in inner]))
        for strength in strengths
    ]


def _logistic_regression(features: np.ndarray, labels: np.ndarray) -> Predict:
    """Logistic regression on features that are standardized on the rows to fit."""

    def predict(fit: np.ndarray, rows: np.ndarray, strength: float) -> np.ndarray:
        # The default tolerance, 1e-4, ends long before the minimum.
        classifier = make_pipeline(StandardScaler(), LogisticRegression(C=strength, tol=1e-5, max_iter=1000))
        return classifier.fit(features[fit], labels[fit]).predict(features[rows])

    return predict


def _kernel_ridge(
    features: np.ndarray, labels: np.ndarray, train: np.ndarray, rows: np.ndarray | None = None
) -> Predict:
    """Kernel ridge regression of one target a label, which is 1 or -1, with a Gaussian kernel.

    The kernel of `rows` (default: all) is computed once, of features that are standardized on `train`.
    """
    rows = np.arange(len(features)) if rows is None else rows
    positions = np.full(len(features), -1)
    positions[rows] = np.arange(len(rows))
    flat = features.reshape(len(features), -1)
    scaler = StandardScaler(copy=False).fit(flat[train])
    vectors = scaler.transform(flat[rows])  # fancy indexing made a copy
    is_constant = scaler.var_ < ROUNDING_VARIANCE
    vectors[:, is_constant] = 0
    squares = np.einsum("rd,rd->r", vectors, vectors)
    kernel = vectors @ vectors.T
    kernel *= -2
    kernel += squares[:, None]
    kernel += squares
    kernel *= -GAMMA / max(1, np.count_nonzero(~is_constant))  # all other variances are 1 now
    np.exp(np.minimum(kernel, 0, out=kernel), out=kernel)
    targets = np.where(labels[:, None] == np.unique(labels), 1, -1).astype(kernel.dtype)

    def predict(fit: np.ndarray, held: np.ndarray, strength: float) -> np.ndarray:
        mean = targets[fit].mean(axis=0)
        ridge = KernelRidge(alpha=strength, kernel="precomputed")
        ridge.fit(kernel[np.ix_(positions[fit], positions[fit])], targets[fit] - mean)
        return (ridge.predict(kernel[np.ix_(positions[held], positions[fit])]) + mean).argmax(axis=1)

    return predict
