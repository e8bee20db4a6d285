"""Labels: from rows to the targets of the loss."""

import re
from typing import Any

from ...common.errors import InputError
from ...common.labels import LabelNames
from ...common.rows import check_number, check_unicode, enumerated, shown
from .data import LabelledTexts


# The metrics, the default for choosing a checkpoint first. f1 is computed for two classes only.
METRIC_NAMES = {
    "single_label_classification": ("accuracy", "f1", "macro_f1", "matthews", "loss"),
    "multi_label_classification": ("micro_f1", "macro_f1", "accuracy", "loss"),
    "regression": ("spearman", "pearson", "loss"),
}
WHOLE_NUMBER = re.compile(r"[+-]?\d+")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
# Spellings of numbers in a csv file that are not finite.
UNDEFINED = ("nan", "inf", "-inf", "+inf", "infinity", "-infinity")
MOST_CLASSES_NAMED = 10


class Labels(LabelNames):
    """The labels of a classifier, found in the rows that it is trained on, and as the targets of its loss."""

    @classmethod
    def from_rows(cls, part: LabelledTexts, problem_type: str | None = None) -> "Labels":
        """
        The labels of training rows: the class names of the dataset, or those of the rows, sorted (integers by value).

        Raises:
            InputError: a label has another type than the others, or all rows have the same label.
        """
        problem_type = problem_type or _find_problem_type(part)
        if problem_type == "regression":
            return cls(problem_type, (part.label_column,))
        several = problem_type == "multi_label_classification"
        named = {name for index in range(len(part.labels)) for name in _names_of(part, index, several)}
        if not several and len(named) == 1:
            raise InputError(
                f"{part.source}: the column {part.label_column!r} is {named.pop()!r} in every row; at least two "
                "classes are needed"
            )
        if not named:
            raise InputError(f"{part.source}: the column {part.label_column!r} names no class in any row")
        if part.class_names is not None:
            return cls(problem_type, part.class_names)
        are_numbers = all(WHOLE_NUMBER.fullmatch(name) for name in named)
        return cls(problem_type, tuple(sorted(named, key=lambda name: (int(name) if are_numbers else 0, name))))

    def encode(self, part: LabelledTexts, whose: str, fix: str) -> list[Any]:
        """
        The targets of the loss for the labels of rows: a number, a class ID, or 0 or 1 for each class.

        Args:
            whose: the source of these classes, for the error: `"train.jsonl"`.
            fix: advice for an unknown label, for the error.

        Raises:
            InputError: a label is not a number or not one of the classes, or all numbers are equal, which leaves the
                correlation undefined. With file, line and column.
        """
        if self.problem_type == "regression":
            rows = enumerate(part.labels)
            numbers = [check_number(label, part.where(index), part.label_column) for index, label in rows]
            if len(set(numbers)) == 1:
                raise InputError(
                    f"{part.source}: the column {part.label_column!r} is {numbers[0]:g} in every row, so no "
                    "correlation is defined; at least two different numbers are needed"
                )
            return numbers
        several = self.problem_type == "multi_label_classification"
        number_of = {name: number for number, name in enumerate(self.names)}
        encoded = []
        for index in range(len(part.labels)):
            named = _names_of(part, index, several)
            unknown = next((name for name in named if name not in number_of), None)
            if unknown is not None:
                raise InputError(
                    f"{part.where(index)}: the column {part.label_column!r} is {unknown!r}, which is not among the "
                    f"classes of {whose} ({enumerated(self.names, MOST_CLASSES_NAMED)}); correct the row, or {fix}"
                )
            numbers = [number_of[name] for name in named]
            encoded.append([float(number in numbers) for number in range(len(self.names))] if several else numbers[0])
        return encoded


def _find_problem_type(part: LabelledTexts) -> str:
    labels = part.labels
    if part.is_score:
        return "regression"
    if any(isinstance(label, list) for label in labels):
        return "multi_label_classification"
    if part.is_csv:
        undefined = [index for index, label in enumerate(labels) if label.strip().lower() in UNDEFINED]
        are_numbers = all(NUMBER.fullmatch(label.strip()) for label in labels)
        if undefined and all(
            NUMBER.fullmatch(label.strip()) for label in labels if label.strip().lower() not in UNDEFINED
        ):
            check_number(labels[undefined[0]], part.where(undefined[0]), part.label_column)
        have_decimals = not all(WHOLE_NUMBER.fullmatch(label.strip()) for label in labels)
    else:
        are_numbers = all(isinstance(label, (int, float)) for label in labels)
        have_decimals = any(isinstance(label, float) for label in labels)
    return "regression" if are_numbers and have_decimals else "single_label_classification"


def _names_of(part: LabelledTexts, index: int, several: bool) -> list[str]:
    """The class names in the label of a row."""
    label = part.labels[index]
    if several and not isinstance(label, list):
        raise InputError(
            f"{part.where(index)}: the column {part.label_column!r} must be a list of classes, got {shown(label)}"
        )
    names = []
    for value in label if several else [label]:
        if isinstance(value, float):
            # Otherwise NaN would become a class.
            check_number(value, part.where(index), part.label_column)
            value = int(value) if value.is_integer() else value
        if not isinstance(value, (str, int, float)) or value == "":
            is_list = isinstance(label, list) and not several
            hint = "; several classes a row need --problem_type multi_label_classification" if is_list else ""
            raise InputError(
                f"{part.where(index)}: the column {part.label_column!r} must be a class, as a text or a whole number, "
                f"got {shown(value)}{hint}"
            )
        names.append(check_unicode(str(value).strip(), part.where(index), part.label_column))
    return names
