"""What a training run measures on its development data, with the same code as `run_evaluation.py`."""

from collections.abc import Callable
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..common.errors import InputError
from ..common.rows import is_folder, read_rows
from . import retrieval, sts
from .encoders import LayerPoolEncoder
from .pairs import evaluate_pairs, pairs_metrics, read_pairs_file


DevelopmentEvaluator = Callable[[PreTrainedModel, PreTrainedTokenizerBase], dict[str, float]]


def development_evaluator(
    path: str | Path, max_tokens_per_batch: int = 8192
) -> tuple[DevelopmentEvaluator | None, dict[str, bool]]:
    """
    Read development data, and make of it the function that measures a model while it trains.

    Args:
        path: a folder in BEIR's layout (see [`read_retrieval_folder`]), or a file whose columns hold `sentence1`,
            `sentence2`, and `score` (see [`read_sts_file`]) or `label` (see [`read_pairs_file`]). A file with other
            columns is not measured here.
        max_tokens_per_batch: tokens computed at a time.

    Returns:
        `(evaluator, its metrics)`: the headline (`spearman`, `average_precision` or `ndcg@10`, in percent) first, each
        with whether more of it is better; `(None, {})` for a file with other columns.

    Raises:
        InputError: the data is missing or broken.
    """
    if is_folder(path):
        data, evaluate, metrics = (
            retrieval.read_retrieval_folder(path),
            retrieval.evaluate_retrieval,
            retrieval.METRICS,
        )
    else:
        _, first = next(read_rows(path), (0, None))
        if first is None:
            raise InputError(f"{path}: the file is empty")
        if set(sts.COLUMNS) <= set(first):
            data, evaluate, metrics = sts.read_sts_file(path), sts.evaluate_sts, sts.METRICS
        elif {"sentence1", "sentence2", "label"} <= set(first):
            pairs = read_pairs_file(path)
            data, evaluate, metrics = (pairs,), evaluate_pairs, pairs_metrics(pairs)
        else:
            return None, {}

    def measure(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, float]:
        return evaluate(LayerPoolEncoder(model, tokenizer, max_tokens_per_batch, show_progress_bar=False), *data)

    return measure, metrics
