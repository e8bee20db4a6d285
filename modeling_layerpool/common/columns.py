"""The columns of the user's data by our names for them: the flag `--columns NAME=COLUMN`."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from .errors import InputError


SCORED_PAIR_COLUMNS = ("sentence1", "sentence2", "score", "label")
# The metadata of the field `columns` of an argument class.
COLUMNS = {
    "action": "extend",
    "help": "Columns of your data as NAME=COLUMN ...: 'anchor=query positive=answer' reads the column query as anchor "
    "and answer as positive. Data without such a column are read by the usual name. A name may be given several "
    "columns, for data that differ: the first one that the data have is read.",
}


@dataclass
class ColumnNames:
    """
    Which columns of the user's data hold what is called `anchor`, `score` and so on here.

    Args:
        columns: the columns that a name stands for, the first choice first. Other names stand for themselves.
    """

    columns: dict[str, list[str]] = field(default_factory=dict)
    seen: dict[str, None] = field(default_factory=dict, init=False)  # all columns of the data so far

    @classmethod
    def parse(cls, values: Sequence[str] | None, known: Sequence[str]) -> "ColumnNames":
        """
        From `NAME=COLUMN` texts.

        Args:
            known: the names that may be given; `negative_N` stands for any number.

        Raises:
            InputError: a text has another form, a name is not known, or a column gets two names.
        """
        columns: dict[str, list[str]] = {}
        name_of: dict[str, str] = {}
        for value in values or ():
            name, _, column = value.partition("=")
            if not (name and column):
                raise InputError(
                    f"--columns {value}: expected NAME=COLUMN, for example {known[0]}={value or 'COLUMN'}"
                )
            if re.sub(r"(?<=^negative_)[1-9]\d*$", "N", name) not in known:
                raise InputError(f"--columns {value}: {name!r} is not read here; use one of {', '.join(known)}")
            if name_of.setdefault(column, name) != name:
                raise InputError(
                    f"--columns: the column {column!r} is given for both {name_of[column]!r} and {name!r}; "
                    "leave one out"
                )
            columns.setdefault(name, []).append(column)
        return cls(columns)

    def of(self, available: Iterable[str]) -> dict[str, str]:
        """
        The columns of one file or dataset by our names: `{"anchor": "query", "id": "id"}`.

        Args:
            available: all columns of the file or dataset.
        """
        available = list(available)
        self.seen |= dict.fromkeys(available)
        found = {
            name: next((column for column in columns if column in available), None)
            for name, columns in self.columns.items()
        }
        named = {name: column for name, column in found.items() if column is not None}
        taken = {*named, *named.values()}
        return named | {column: column for column in available if column not in taken}

    def check_seen(self) -> None:
        """Raise an `InputError` if a column was given that no data have, once all data are known."""
        for name, columns in self.columns.items():
            for column in columns:
                if column not in self.seen:
                    raise InputError(
                        f"no data have the column {column!r}, which was given for {name!r} (columns: "
                        f"{', '.join(self.seen) or 'none'})"
                    )
