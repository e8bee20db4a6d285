"""What a training run measures on its development data, with the same code as `run_evaluation.py`."""

from collections.abc import Callable
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import InputError
from ..rows import read_rows
from .encoders import LayerPoolEncoder
from .retrieval import evaluate_retrieval, read_retrieval_folder
from .sts import COLUMNS, evaluate_sts, read_sts_file


DevelopmentEvaluator = Callable[[PreTrainedModel, PreTrainedTokenizerBase], dict[str, float]]


def development_evaluator(
    path: str | Path, max_tokens_per_batch: int = 8192
) -> tuple[DevelopmentEvaluator | None, str | None]:
    """
    Read development data, and make of it the function that measures a model while it trains.

    Args:
        path: a folder in BEIR's layout (see [`read_retrieval_folder`]), or a file whose columns hold `sentence1`,
            `sentence2` and `score` (see [`read_sts_file`]). A file with other columns is not measured here.
        max_tokens_per_batch: tokens computed at a time.

    Returns:
        `(evaluator, name of its headline metric)`: `spearman` or `ndcg@10`, in percent; `(None, None)` for a file with
        other columns.

    Raises:
        InputError: the data is missing or broken.
    """
    if Path(path).is_dir():
        data, evaluate, headline = read_retrieval_folder(path), evaluate_retrieval, "ndcg@10"
    else:
        _, first = next(read_rows(path), (0, None))
        if first is None:
            raise InputError(f"{path}: the file is empty")
        if not set(COLUMNS) <= set(first):
            return None, None
        data, evaluate, headline = read_sts_file(path), evaluate_sts, "spearman"

    def measure(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, float]:
        return evaluate(LayerPoolEncoder(model, tokenizer, max_tokens_per_batch, show_progress_bar=False), *data)

    return measure, headline
