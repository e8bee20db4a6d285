"""The outputs of a classifier: their names, and predictions from logits."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression")


@dataclass(frozen=True)
class LabelNames:
    """
    The names of the outputs of a classifier.

    Args:
        problem_type: one of `PROBLEM_TYPES`, as in the configuration of transformers.
        names: the names of the classes in the order of their IDs; for a regression the one name of its number.
    """

    problem_type: str
    names: tuple[str, ...]

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "LabelNames":
        """The labels of a saved classifier, from the dictionary of its configuration."""
        id2label = config.get("id2label") or {0: "LABEL_0", 1: "LABEL_1"}
        names = tuple(id2label[key] for key in sorted(id2label, key=int))
        default = "regression" if len(names) == 1 else "single_label_classification"
        return cls(config.get("problem_type") or default, names)

    @property
    def config_fields(self) -> dict[str, Any]:
        """These labels as fields of the configuration."""
        return {
            "problem_type": self.problem_type,
            "id2label": dict(enumerate(self.names)),
            "label2id": {name: number for number, name in enumerate(self.names)},
        }

    def decide(self, logits: np.ndarray) -> np.ndarray:
        """The predictions for logits `(n, c)`: numbers or class IDs `(n,)`, or 0 or 1 for each class `(n, c)`."""
        if self.problem_type == "regression":
            return logits.reshape(-1)
        return (logits > 0).astype(int) if self.problem_type == "multi_label_classification" else logits.argmax(-1)

    def predictions(self, logits: np.ndarray) -> list[dict[str, Any]]:
        """The `prediction` of each row, by name, and the `scores` of all classes, for logits `(n, c)`."""
        decided = self.decide(logits)
        if self.problem_type == "regression":
            return [{"prediction": float(number)} for number in decided]
        scores = torch.from_numpy(np.asarray(logits, dtype=np.float64))
        if self.problem_type == "multi_label_classification":
            named = [[self.names[number] for number in row.nonzero()[0]] for row in decided]
            scores = scores.sigmoid()
        else:
            named = [self.names[number] for number in decided]
            scores = scores.softmax(dim=-1)
        return [
            {"prediction": prediction, "scores": dict(zip(self.names, row, strict=True))}
            for prediction, row in zip(named, scores.tolist(), strict=True)
        ]
