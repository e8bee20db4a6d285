"""Writes results as a table and as `evaluation.json`."""

import contextlib
import json
import math
import os
import platform
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tabulate import tabulate
from transformers.utils import cached_file, extract_commit_hash

from ..common.errors import InputError
from ..common.folders import output_folder


RESULTS_FILE = "evaluation.json"
PACKAGES = ("modeling-layerpool", "torch", "transformers", "accelerate", "sentence-transformers")


def format_results(results: Mapping[str, Any]) -> str:
    """`results` (as in `evaluation.json`) as tables: STS, pairs, retrieval, transfer tasks with their average, the
    geometry, and the prompts if any.
    """
    tables = []
    for group in ("sts", "pairs", "retrieval"):
        if sets := results.get(group):
            # A score that only other sets have stays empty.
            absent = dict.fromkeys((column for scores in sets.values() for column in scores), "")
            rows = [{group: name, **absent, **scores} for name, scores in sets.items()]
            tables.append(tabulate(rows, headers="keys", floatfmt=".2f", missingval="undefined"))
    if tasks := results.get("transfer"):
        rows = [{"transfer": name, **scores} for name, scores in tasks.items()]
        rows.append({"transfer": "average", "accuracy": sum(row["accuracy"] for row in rows) / len(rows)})
        tables.append(tabulate(rows, headers="keys", floatfmt=".2f"))
    if geometry := results.get("geometry"):
        tables.append(tabulate([geometry], headers="keys", floatfmt=".4f", missingval="undefined"))
    if prompts := results.get("prompts"):
        # Quotation marks show the space at the end of most prompts.
        rows = [
            {"prompts": kind, "before each": json.dumps(text, ensure_ascii=False)} for kind, text in prompts.items()
        ]
        tables.append(tabulate(rows, headers="keys"))
    return "\n\n".join(tables)


def run_metadata(model_name_or_path: str, revision: str = "main") -> dict[str, Any]:
    """`{"model", "commit", "versions", "date"}`: the model, the versions of packages, and the time (UTC, ISO 8601).

    `commit` is that of a Hub model as loaded at `revision`. A folder has none.
    """
    commit = _cached_commit(str(model_name_or_path), revision)
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "model": str(model_name_or_path),
        **({"commit": commit} if commit else {}),
        "versions": versions,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _cached_commit(name: str, revision: str) -> str | None:
    if Path(name).is_dir():
        return None
    for filename in ("config.json", "modules.json"):
        try:
            # Not from the network, where the branch may have changed since the model was loaded.
            path = cached_file(name, filename, revision=revision, local_files_only=True)
        except OSError:
            continue
        if commit := extract_commit_hash(path, None):
            return commit
    return None


@contextlib.contextmanager
def results_folder(output_dir: str | Path) -> Iterator[Path]:
    """An [`output_folder`]. Raises an `InputError` if it cannot be made, or cannot hold the results file."""
    with output_folder(output_dir) as path:
        if (path / RESULTS_FILE).is_dir():
            raise InputError(f"--output_dir {output_dir}: its {RESULTS_FILE} is a folder; remove it")
        yield path


def write_results(results: Mapping[str, Any], output_dir: str | Path) -> Path:
    """Write `results` to `output_dir/evaluation.json` and return its path. Creates the folder.

    The file is written next to its final path and moved there, so it is never incomplete. A nan (an undefined score)
    becomes null, since JSON has no nan.
    """
    text = json.dumps(_null_for_nan(results), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with results_folder(output_dir) as folder:
        temporary = folder / f".{RESULTS_FILE}.{os.getpid()}"
        try:
            temporary.write_text(text, encoding="utf-8")
            os.replace(temporary, folder / RESULTS_FILE)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    return folder / RESULTS_FILE


def _null_for_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _null_for_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
