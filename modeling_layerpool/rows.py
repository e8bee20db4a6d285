"""Rows of text files: JSON lines, CSV and plain text, plain or gzipped, each mistake named by file and line."""

import csv
import gzip
import io
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .errors import InputError


FORMATS = (".jsonl", ".json", ".csv", ".tsv", ".txt")


def read_rows(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield `(line number, row)` for each row of a file. Line numbers start at 1, as editors count them.

    Args:
        path: a `.jsonl` (or `.json`, one object a line), `.csv`, `.tsv` or `.txt` file, also with `.gz` appended.
            The first line of a csv or tsv file names the columns. A txt file has one text a line, in the column
            `text`; its blank lines are skipped.

    Raises:
        InputError: the file is missing or of another format, a line is not valid UTF-8 or JSON, or a csv row has
            more or fewer fields than the header.
    """
    path = Path(path)
    suffixes = [suffix.lower() for suffix in path.suffixes]
    is_gzip = suffixes[-1:] == [".gz"]
    suffix = (suffixes[:-1] if is_gzip else suffixes)[-1:]
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if not suffix or suffix[0] not in FORMATS:
        raise InputError(f"{path}: unknown format; use one of {', '.join(FORMATS)}, optionally followed by .gz")
    read = {".csv": _read_csv, ".tsv": _read_tsv, ".txt": _read_txt}.get(suffix[0], _read_json_lines)
    line = 0
    with gzip.open(path, "rb") if is_gzip else path.open("rb") as raw:
        try:
            for line, row in read(path, io.TextIOWrapper(raw, encoding="utf-8-sig", newline="")):
                yield line, row
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: not valid UTF-8 after line {line} ({error.reason})") from error
        except (gzip.BadGzipFile, EOFError) as error:
            raise InputError(f"{path}: not a complete gzip file ({error})") from error


def _read_json_lines(path: Path, lines: io.TextIOBase) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}, line {number}: not valid JSON ({error.msg}, column {error.colno})") from error
        if not isinstance(row, dict):
            raise InputError(f"{path}, line {number}: expected one JSON object a line, got {type(row).__name__}")
        yield number, row


def _read_csv(path: Path, lines: io.TextIOBase, delimiter: str = ",") -> Iterator[tuple[int, dict[str, Any]]]:
    # A tab-separated file of the field (BEIR, GLUE) has no quoting: a lone quotation mark is a character of the text.
    quoting = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    reader = csv.reader(lines, delimiter=delimiter, quoting=quoting)
    try:
        header = next(reader, None)
        for fields in reader:
            if not fields:
                continue
            if len(fields) != len(header):
                raise InputError(
                    f"{path}, line {reader.line_num}: {len(fields)} fields where the header names {len(header)}"
                )
            yield reader.line_num, dict(zip(header, fields, strict=True))
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: {error}") from error


def _read_tsv(path: Path, lines: io.TextIOBase) -> Iterator[tuple[int, dict[str, Any]]]:
    return _read_csv(path, lines, delimiter="\t")


def _read_txt(path: Path, lines: io.TextIOBase) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield number, {"text": line.strip()}


def check_text(value: Any, where: str, column: str) -> str:
    """Return `value` if it is a text with something in it; `where` ("file, line 3") begins the error's sentence."""
    if value is None:
        raise InputError(f"{where}: the column {column!r} is missing or null")
    if not isinstance(value, str):
        raise InputError(f"{where}: the column {column!r} must be a text, got {type(value).__name__}")
    if not value.strip():
        raise InputError(f"{where}: the column {column!r} is empty")
    return value


def check_number(value: Any, where: str, column: str) -> float:
    """Return `value` as a finite float, from a number or (csv) its text."""
    try:
        if isinstance(value, bool):
            raise ValueError
        number = float(value)
    except (TypeError, ValueError):
        raise InputError(f"{where}: the column {column!r} must be a number, got {value!r}") from None
    if not math.isfinite(number):
        raise InputError(f"{where}: the column {column!r} must be a finite number, got {value!r}")
    return number


def require_columns(row: dict[str, Any], columns: Sequence[str], where: str) -> None:
    """Raise an [`InputError`] naming the columns that `row` lacks, and those it has."""
    missing = [column for column in columns if column not in row]
    if missing:
        has = ", ".join(row) or "none"
        raise InputError(f"{where}: no column {', '.join(map(repr, missing))} (columns here: {has})")
