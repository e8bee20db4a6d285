"""Batches of the stored states of a frozen encoder, in place of packed tokens."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import Trainer

from ...common.command_line import check_used
from ..batching import text_id
from ..frozen import FrozenTexts
from .embedded_rows import SUFFIX
from .prompts import RunPrompts


def read_states(trainer: Trainer) -> tuple[Dataset | None, Dataset | None, "StatesCollator"]:
    """
    The training and the evaluation rows of a contrastive trainer with their states in place of tokens, and their
    collator. Raises an `InputError` for options that have no effect then.
    """
    unread = {"gradient_cache": False, "row_length": False}
    check_used(trainer.args, unread, "with the stored states of freeze_encoder")
    columns, frozen = trainer.columns, trainer.frozen
    datasets = (trainer.train_dataset, trainer.eval_dataset)
    train, evaluation = (_with_states(rows, columns, frozen, trainer.prompts) for rows in datasets)
    return train, evaluation, StatesCollator(columns, frozen, trainer.data_collator)


def states_of(texts: Sequence[Sequence[int]], column: str, trainer: Trainer) -> torch.Tensor:
    """The states of tokenized texts that a column of the training rows holds, `(len(texts), n, 2, h)`."""
    known = map(text_id, trainer.train_dataset[f"{column}_input_ids"])
    index_of = dict(zip(known, trainer.train_states[f"{column}_states"], strict=True))
    return trainer.frozen.states(np.array([index_of[text_id(ids)] for ids in texts]))


def _with_states(
    dataset: Dataset | None, columns: Sequence[str], frozen: FrozenTexts, prompts: RunPrompts
) -> Dataset | None:
    """
    A tokenized dataset with the index of each text among `frozen` in `<column>_states`, and its identity without its
    prompt in `<column>_text_id`, instead of its tokens.
    """
    if not dataset:  # no dataset, or one without rows
        return dataset
    names = list(dict.fromkeys(columns))
    texts = [ids for name in names for ids in dataset[f"{name}_input_ids"]]
    indices = frozen.add(texts).reshape(len(names), -1)
    kept_names = ("row_number", "value", *(name + SUFFIX for name in names))
    kept = {name: dataset[name] for name in kept_names if name in dataset.column_names}
    kept |= {f"{name}_states": row for name, row in zip(names, indices, strict=True)}
    kept |= {f"{name}_text_id": prompts.text_ids(dataset, name) for name in names}
    return Dataset.from_dict(kept)


class StatesCollator:
    """
    Reads the states of all texts of a batch.

    Args:
        columns: the text columns of each row, as for the [`PackingCollator`].
        frozen: the texts by their index, which a row has in `<column>_states`.
        of_tokens: collates rows that have tokens.

    The batch holds `encoder_states (b * c, n, 2, h)`, `text_ids (b, c)`, `row_numbers`, and `values (b,)` if the rows
    have one.
    """

    def __init__(self, columns: Sequence[str], frozen: FrozenTexts, of_tokens: Callable[[list[dict]], dict[str, Any]]):
        self.columns, self.frozen, self.of_tokens = list(columns), frozen, of_tokens

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        if f"{self.columns[0]}_states" not in features[0]:
            return self.of_tokens(features)
        indices = np.array([[feature[f"{column}_states"] for column in self.columns] for feature in features])
        batch = {
            "encoder_states": self.frozen.states(indices.flatten()),
            "text_ids": torch.tensor([[row[f"{column}_text_id"] for column in self.columns] for row in features]),
            "row_numbers": [feature["row_number"] for feature in features],
        }
        if "value" in features[0]:
            batch["values"] = torch.tensor([feature["value"] for feature in features])
        return batch
