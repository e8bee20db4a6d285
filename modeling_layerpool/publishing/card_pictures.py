"""The pictures of a card: learning curves, and the weights of the hidden states."""

import importlib.util
import logging
import random
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..common.card_facts import COUNTS, CardFacts
from ..common.rows import read_rows
from ..evaluation.layers import average_by_length, layer_weights, weighs_layers
from .plots import curves, plot_layer_weights, plot_learning_curves


logger = logging.getLogger(__name__)

# Enough texts for means by length, in seconds on a CPU.
LAYER_TEXTS = 256
# Rows of a file that those texts are drawn from.
MAX_ROWS_READ = 20_000
TEXT_COLUMNS = ("sentence1", "sentence2", "text", "anchor", "positive")


def draw(path: Path, picture: Callable[..., Any], *args: Any) -> Any:
    """Return `picture(path, *args)`, or None without matplotlib or if it fails: the card then has no such picture."""
    path.unlink(missing_ok=True)  # an overwritten run may have left one
    if importlib.util.find_spec("matplotlib") is None:
        return None
    try:
        return picture(path, *args)
    except Exception as error:  # no error of a picture may cost a finished run its card
        logger.warning("the model card is written without a picture: %s", error)
        return None


def draw_curves(path: Path, facts: CardFacts) -> str | None:
    """Draw loss and score by step; returns the picture in words, or None if there is no curve."""
    names = list(dict.fromkeys(name for scores in facts.evaluations.values() for name in scores if name not in COUNTS))
    metric = facts.metric if facts.metric in names else next(iter(names), None)
    losses, scores = curves(facts.log_history, metric or "")
    if len(scores) < 2:
        return None
    plot_learning_curves(facts.log_history, path, metric=metric, best_step=facts.kept_step)
    lines = {"training loss": losses, f"{metric} on the development data": scores}
    words = [f"{name}, {_in_words(points, facts.kept_step)}" for name, points in lines.items() if points]
    return f"Curves by step: {'; '.join(words)}"


def _in_words(points: Mapping[int, float], kept_step: int) -> str:
    """The first and the last value of a curve, and that of the kept step."""
    steps = dict.fromkeys([min(points), *([kept_step] if kept_step in points else []), max(points)])
    return " and ".join(
        f"{points[step]:.4g} at step {step}{' (kept)' * (step == kept_step)}" for step in sorted(steps)
    )


def draw_layers(
    path: Path,
    facts: CardFacts,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    validation_data: str | None,
    text_columns: Sequence[str],
) -> tuple[int, str] | None:
    """
    Draw the weights of the hidden states; returns the number of texts and the picture in words, or None if there are
    no weights or texts.
    """
    if facts.is_sharded or validation_data is None or not weighs_layers(model):
        return None
    texts = sample_texts(Path(validation_data), text_columns)
    if not texts:
        return None
    weights, lengths = layer_weights(model, tokenizer, texts, max_tokens_per_batch=4096)
    rows, averages = "length in tokens", average_by_length(weights, lengths)
    if facts.pooler_weighting == "shared":
        rows, averages = "", {"every text": weights[0]}
    states = model.pooler.states
    plot_layer_weights(averages, path, rows=rows, states=states)
    percent = 100 * np.mean(weights, axis=0, dtype=np.float64)
    each = ", ".join(f"{state}: {value:.1f}%" for state, value in zip(states, percent, strict=True))
    largest = (
        f"The largest is that of state {states[percent.argmax()]}." if np.ptp(percent) > 0.1 else "All are equal."
    )
    return len(texts), f"Heat map of the weight of each hidden state. Averages over all texts: {each}. {largest}"


def sample_texts(data: Path, text_columns: Sequence[str]) -> list:
    """A random sample of the texts of a file, or of a folder in BEIR's layout; pairs if there are two columns."""
    files = [*data.glob("corpus.jsonl*"), *data.glob("queries.jsonl*")] if data.is_dir() else [data]
    texts = []
    for file in files:
        if not file.is_file():  # the name of a dataset on the Hub
            continue
        rows = [row for _, row in islice(read_rows(file), MAX_ROWS_READ)]
        if text_columns:
            found = [tuple(row[column] for column in text_columns) for row in rows]
            found = found if len(text_columns) == 2 else [text for (text,) in found]
        else:
            found = [row[column] for row in rows for column in TEXT_COLUMNS if row.get(column)]
        found = list(dict.fromkeys(found))
        texts += random.Random(0).sample(found, min(len(found), LAYER_TEXTS // len(files)))
    return texts
