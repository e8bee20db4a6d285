"""Evaluation on development data during training, with the same code as `run_evaluation.py`."""

from collections.abc import Callable
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..common.checksums import encoder_checksum
from ..common.columns import ColumnNames
from ..common.errors import InputError
from ..common.prompts import prompts_of
from ..common.rows import is_folder, read_rows
from . import retrieval, sts
from .encoders import FrozenLayerPoolEncoder, LayerPoolEncoder, PromptingEncoder, with_prompts
from .pairs import evaluate_pairs, pairs_metrics, read_pairs_file


DevelopmentEvaluator = Callable[[PreTrainedModel, PreTrainedTokenizerBase], dict[str, float]]


def development_evaluator(
    path: str | Path, columns: ColumnNames | None = None
) -> tuple[DevelopmentEvaluator | None, dict[str, bool]]:
    """
    Read development data and return the function that evaluates a model on it during training.

    Args:
        path: a folder in BEIR's layout (see [`read_retrieval_folder`]), or a file with the columns `sentence1`,
            `sentence2`, and `score` (see [`read_sts_file`]) or `label` (see [`read_pairs_file`]).
        columns: the names of the columns in the file. Default: those above.

    Returns:
        `(evaluator, metrics)`. `metrics` maps each metric to whether more of it is better; the main one (`spearman`,
        `average_precision` or `ndcg@10`, in percent) comes first. `(None, {})` for a file with other columns.

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
        names = (columns or ColumnNames()).of(first)
        if set(sts.COLUMNS) <= set(names):
            data, evaluate, metrics = sts.read_sts_file(path, columns=columns), sts.evaluate_sts, sts.METRICS
        elif {"sentence1", "sentence2", "label"} <= set(names):
            pairs = read_pairs_file(path, columns)
            data, evaluate, metrics = (pairs,), evaluate_pairs, pairs_metrics(pairs)
        else:
            return None, {}

    frozen: dict[tuple, FrozenLayerPoolEncoder] = {}  # by all that the states depend on

    def measure(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, float]:
        prompts = prompts_of(model.config)
        encoder = LayerPoolEncoder(model, tokenizer, show_progress_bar=False)
        # The states of a text would have to know how many of its tokens their means leave out.
        leaves_out = any(prompts) and not model.config.include_prompt
        is_trained = any(weight.requires_grad for weight in model.base_model.parameters())
        if not (is_trained or leaves_out or model.pooler.reads_tokens):
            key = (encoder_checksum(model), tuple(model.pooler.states), tokenizer.model_max_length)
            states = frozen.setdefault(key, FrozenLayerPoolEncoder(model, tokenizer))
            states.model = model
            encoder = PromptingEncoder(states)
        return evaluate(with_prompts(encoder, prompts), *data)

    return measure, metrics
