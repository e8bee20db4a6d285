"""Reads the files that users provide: JSON lines, CSV, Parquet, text and JSON. Errors name the file and the line."""

import csv
import gzip
import io
import json
import math
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from .errors import InputError


# The loaders of datasets report neither the line of a broken row nor a repeated column, so files are read here.
FORMATS = (".jsonl", ".json", ".csv", ".tsv", ".txt", ".parquet")
# Messages shorten longer values.
SHOWN_CHARACTERS = 60
# Rows of a parquet file in memory at once.
PARQUET_ROWS = 1000


def read_rows(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield `(line number, row)` for each row of a file. Line numbers start at 1, as editors count them. A parquet
    file has row numbers instead, also from 1 on. [`row_name`] writes either into a message.

    Args:
        path: a `.jsonl` (or `.json`, one object a line), `.csv`, `.tsv` or `.txt` file, also with `.gz` appended.
            The first line of a csv or tsv file names the columns. A txt file has one text a line, in the column
            `text`; its blank lines are skipped. Or a `.parquet` file, without `.gz`.

    Raises:
        InputError: the file cannot be read or is of another format, a line is not valid UTF-8 or JSON, a column is
            named twice, or a csv row has more or fewer fields than the header.
    """
    path = Path(path)
    suffixes = [suffix.lower() for suffix in path.suffixes]
    is_gzip = suffixes[-1:] == [".gz"]
    suffix = (suffixes[:-1] if is_gzip else suffixes)[-1:]
    check_file(path)
    if not suffix or suffix[0] not in FORMATS or (is_gzip and suffix[0] == ".parquet"):
        known = f"{', '.join(FORMATS[:-1])}, optionally followed by .gz, or {FORMATS[-1]}"
        raise InputError(f"{path}: unknown format; use one of {known}")
    if suffix[0] == ".parquet":
        yield from _read_parquet(path)
        return
    readers = {".csv": _read_csv, ".tsv": partial(_read_csv, delimiter="\t"), ".txt": _read_txt}
    read = readers.get(suffix[0], _read_json_lines)
    line = 0
    with reading_errors(path):
        try:
            with gzip.open(path, "rb") if is_gzip else path.open("rb") as raw:
                for line, row in read(path, io.TextIOWrapper(raw, encoding="utf-8-sig", newline="")):
                    yield line, row
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: not valid UTF-8 after line {line} ({error.reason})") from error
        except (gzip.BadGzipFile, zlib.error, EOFError) as error:
            raise InputError(f"{path}: not a complete gzip file, broken after line {line} ({error})") from error


def row_name(path: str | Path, number: int) -> str:
    """A row of a file by the number that [`read_rows`] gave, for messages: "pairs.csv, line 3"."""
    return f"{path}, {row_word(path)} {number}"


def row_word(path: str | Path) -> str:
    """What [`read_rows`] counts in a file: lines, or the rows of a parquet file."""
    return "row" if Path(path).suffix.lower() == ".parquet" else "line"


def read_json(path: str | Path) -> Any:
    """The content of a JSON file. Raises an `InputError` if it cannot be read or is not valid JSON."""
    check_file(path)
    with reading_errors(path):
        try:
            return parse_json(Path(path).read_text(encoding="utf-8"), str(path))
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: not valid UTF-8 ({error.reason})") from error


def parse_json(text: str, where: str) -> Any:
    """JSON text as Python objects. The message of the `InputError` begins with `where` ("file, line 3")."""
    try:
        return json.loads(text, object_pairs_hook=_unique_names)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not valid JSON ({error.msg}, column {error.colno})") from error
    except RecursionError as error:
        raise InputError(f"{where}: JSON that is nested too deeply") from error
    except ValueError as error:  # a repeated name, or an integer of thousands of digits
        raise InputError(f"{where}: not usable JSON ({str(error).split(';')[0]})") from error


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {shown(twice)} is given twice")
    return content


def check_file(path: str | Path) -> None:
    """Raise an `InputError` unless `path` is a file."""
    with reading_errors(path):
        if not Path(path).is_file():
            raise InputError(f"{path}: is a folder, not a file" if Path(path).is_dir() else f"{path}: no such file")


def is_folder(path: str | Path) -> bool:
    """Whether this is a folder. Raises an `InputError` for a name that no file system accepts."""
    with reading_errors(path):
        return Path(path).is_dir()


@contextmanager
def reading_errors(path: str | Path) -> Iterator[None]:
    """Turn a failure to open or read `path` (permissions, a name that is too long) into an `InputError`."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error


def _read_json_lines(path: Path, lines: io.TextIOBase) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        row = parse_json(line, f"{path}, line {number}")
        if not isinstance(row, dict):
            raise InputError(f"{path}, line {number}: expected one JSON object a line, got {type(row).__name__}")
        yield number, row


def _read_csv(path: Path, lines: io.TextIOBase, delimiter: str = ",") -> Iterator[tuple[int, dict[str, Any]]]:
    # Tab-separated files (BEIR, GLUE) have no quoting: a quotation mark is an ordinary character.
    quoting = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    reader = csv.reader(lines, delimiter=delimiter, quoting=quoting)
    try:
        header = next(reader, [])
        twice = next((name for name in header if header.count(name) > 1), None)
        if twice is not None:
            raise InputError(f"{path}, line 1: the column {shown(twice)} is named twice; rename or remove one of them")
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


def _read_txt(path: Path, lines: io.TextIOBase) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield number, {"text": line.strip()}


def _read_parquet(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow  # here, as it takes a tenth of a second
    from pyarrow import parquet

    number = 0
    with reading_errors(path):
        try:
            with parquet.ParquetFile(path) as file:
                names = file.schema_arrow.names
                twice = next((name for name in names if names.count(name) > 1), None)
                if twice is not None:
                    raise InputError(f"{path}: the column {shown(twice)} is named twice; rename or remove one of them")
                for batch in file.iter_batches(PARQUET_ROWS):
                    for row in batch.to_pylist():
                        number += 1
                        yield number, row
        except (pyarrow.ArrowException, UnicodeDecodeError) as error:
            after = f"broken after row {number}" if number else "damaged, or another format"
            raise InputError(f"{path}: not a complete parquet file ({after})") from error


def check_text(value: Any, where: str, column: str) -> str:
    """Return `value` if it is a text that is not blank. The error begins with `where` ("file, line 3")."""
    if value is None:
        raise InputError(f"{where}: the column {column!r} is missing or null")
    if not isinstance(value, str):
        raise InputError(f"{where}: the column {column!r} must be a text, got {type(value).__name__}")
    if not value.strip():
        raise InputError(f"{where}: the column {column!r} is empty")
    return check_unicode(value, where, column)


def check_unicode(value: str, where: str, column: str) -> str:
    """Return `value` unless it holds half of a surrogate pair, which JSON can spell but UTF-8 cannot."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{where}: the column {column!r} is not valid Unicode (half of a surrogate pair, "
            f"{value[error.start]!r}, at character {error.start + 1})"
        ) from error
    return value


def check_number(value: Any, where: str, column: str) -> float:
    """Return `value` as a finite float, from a number or (csv) its text."""
    try:
        if isinstance(value, bool):
            raise ValueError
        number = float(value)
    except (TypeError, ValueError):
        raise InputError(f"{where}: the column {column!r} must be a number, got {shown(value)}") from None
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise InputError(f"{where}: the column {column!r} must be a finite number, got {shown(value)}")
    return number


def shown(value: Any) -> str:
    """`repr(value)` for a message, shortened if it is long."""
    text = repr(value)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."


def enumerated(names: Sequence[str], most: int) -> str:
    """Names for a message, at most `most` of them."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def require_columns(row: dict[str, Any], columns: Sequence[str], where: str) -> None:
    """Raise an [`InputError`] that names the missing columns, and the existing ones."""
    missing = [column for column in columns if column not in row]
    if missing:
        has = ", ".join(row) or "none"
        raise InputError(f"{where}: no column {', '.join(map(repr, missing))} (columns here: {has})")
