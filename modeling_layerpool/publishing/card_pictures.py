"""The pictures of a card: learning curves, and the weights of the hidden states."""

import importlib.util
import logging
import random
from collections.abc import Callable, Sequence
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..common.card_facts import COUNTS, CardFacts, finite_scores
from ..common.rows import read_rows
from ..evaluation.layers import average_by_length, layer_weights, weighs_layers
from .plots import plot_layer_weights, plot_learning_curves


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
    """Draw loss and score by step; returns the name of the score, or None if there is no curve."""
    names = list(dict.fromkeys(name for scores in facts.evaluations.values() for name in scores if name not in COUNTS))
    metric = facts.metric if facts.metric in names else next(iter(names), None)
    in_training = takewhile(lambda log: "train_runtime" not in log, facts.log_history)
    if sum(metric in finite_scores(log, "eval_") for log in in_training) < 2:
        return None
    plot_learning_curves(facts.log_history, path, metric=metric, best_step=facts.kept_step)
    return metric


def draw_layers(
    path: Path,
    facts: CardFacts,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    validation_data: str | None,
    text_columns: Sequence[str],
) -> int | None:
    """Draw the weights of the hidden states; returns the number of texts, or None if there are no weights or texts."""
    if facts.is_sharded or validation_data is None or not weighs_layers(model):
        return None
    texts = sample_texts(Path(validation_data), text_columns)
    if not texts:
        return None
    weights, lengths = layer_weights(model, tokenizer, texts, max_tokens_per_batch=4096)
    rows, averages = "length in tokens", average_by_length(weights, lengths)
    if facts.pooler_weighting == "shared":
        rows, averages = "", {"every text": weights[0]}
    plot_layer_weights(averages, path, rows=rows, states=model.pooler.states)
    return len(texts)


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
