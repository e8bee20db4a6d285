"""Evaluation on development data during training, with the same code as `run_evaluation.py`."""

import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import NamedTuple

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
# The splits of the built-in sets to choose a checkpoint by. The other sets have a test split only.
DEVELOPMENT_SPLITS = {"stsb": "validation"}

logger = logging.getLogger(__name__)


class DevelopmentData(NamedTuple):
    """Development data: a file, a folder, or one of [`STS_DATASETS`] by its name, which is loaded from the Hub."""

    name: str
    is_built_in: bool = False

    @property
    def source(self) -> tuple[str, dict[str, str]]:
        """The file or folder; or the dataset on the Hub, and its split as `validation`."""
        if not self.is_built_in:
            return self.name, {}
        return sts.STS_DATASETS[self.name], {"validation": DEVELOPMENT_SPLITS.get(self.name, "test")}


def parse_development_sets(values: Sequence[str]) -> dict[str, DevelopmentData]:
    """
    Development data by the names of the sets.

    Args:
        values: `FILE`, `FOLDER`, `NAME=FILE`, `NAME=FOLDER`, or the name of one of [`STS_DATASETS`]. Without a NAME, a
            set is called as its file is, without suffixes.

    Raises:
        InputError: two sets have one name, or a name has other characters than letters, digits, ".", "_" and "-".
    """
    sets: dict[str, DevelopmentData] = {}
    for value in values:
        name, equals, path = value.partition("=")
        if equals and not os.path.exists(value):
            if not (path and re.fullmatch(r"[\w.-]+", name)):
                raise InputError(
                    f"--validation_file {value}: expected NAME=FILE, with letters, digits, '.', '_' and '-' in NAME"
                )
            data = DevelopmentData(path)
        else:
            name = re.sub(r"[^\w-]+", "-", Path(value).name.partition(".")[0]) or "validation"
            data = DevelopmentData(value, value in sts.STS_DATASETS and not os.path.exists(value))
            if not (data.is_built_in or Path(value).suffix or os.path.exists(value)):
                known = ", ".join(sts.STS_DATASETS)
                raise InputError(f"--validation_file {value}: no such file or folder, nor a built-in set ({known})")
        if name in sets:
            raise InputError(f"--validation_file: two sets are called {name!r}; name them as NAME=FILE")
        sets[name] = data
    return sets


def development_evaluator(
    path: str | Path | DevelopmentData, columns: ColumnNames | None = None
) -> tuple[DevelopmentEvaluator | None, dict[str, bool]]:
    """
    Read development data and return the function that evaluates a model on it during training.

    Args:
        path: a folder in BEIR's layout (see [`read_retrieval_folder`]), or a file with the columns `sentence1`,
            `sentence2`, and `score` (see [`read_sts_file`]) or `label` (see [`read_pairs_file`]); or a built-in set.
        columns: the names of the columns in the file. Default: those above.

    Returns:
        `(evaluator, metrics)`. `metrics` maps each metric to whether more of it is better; the main one (`spearman`,
        `average_precision` or `ndcg@10`, in percent) comes first. `(None, {})` for a file with other columns.

    Raises:
        InputError: the data is missing or broken.
    """
    is_built_in = isinstance(path, DevelopmentData) and path.is_built_in
    path = path.name if isinstance(path, DevelopmentData) else path
    if is_built_in:
        split = DEVELOPMENT_SPLITS.get(path, "test")
        if split == "test":
            logger.warning(f"{path} has no development part: its test pairs choose the checkpoint, so report others")
        data, evaluate, metrics = sts.load_sts(path, split=split), sts.evaluate_sts, sts.METRICS
    elif is_folder(path):
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


def development_evaluators(
    sets: Mapping[str, DevelopmentData], columns: ColumnNames | None = None
) -> tuple[DevelopmentEvaluator | None, dict[str, bool], str | None]:
    """
    Read several sets of development data and return the function that evaluates a model on all of them.

    Args:
        sets: the data by name. The metrics of several sets are called `<name>_<metric>`; of one set, `<metric>`.
        columns: the names of the columns in the files.

    Returns:
        `(evaluator, metrics, rows)`: the first two as [`development_evaluator`] returns them. With several evaluated
        sets, `mean` comes first, the mean of their main metrics. `rows` is a file with other columns, if there is one.

    Raises:
        InputError: the data is missing or broken, or two files have other columns.
    """
    found = {name: development_evaluator(data, columns) for name, data in sets.items()}
    others = [sets[name].name for name, (evaluator, _) in found.items() if evaluator is None]
    if len(others) > 1:
        raise InputError(
            f"{' and '.join(others)}: only one validation file may have the columns of the training data; the others "
            "need sentence1, sentence2, and score or label"
        )
    rows = others[0] if others else None
    if len(sets) == 1:
        [(evaluator, metrics)] = found.values()
        return evaluator, metrics, rows
    evaluated = {name: pair for name, pair in found.items() if pair[0] is not None}
    main = [f"{name}_{next(iter(metrics))}" for name, (_, metrics) in evaluated.items()]
    every = {f"{name}_{metric}": better for name, (_, own) in evaluated.items() for metric, better in own.items()}

    def measure(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, float]:
        scores = {}
        for name, (evaluator, own) in evaluated.items():
            measured = evaluator(model, tokenizer)
            scores |= {f"{name}_{metric}": measured[metric] for metric in own}
        return ({"mean": mean(scores[name] for name in main)} if len(main) > 1 else {}) | scores

    return measure, ({"mean": True} if len(main) > 1 else {}) | every, rows
