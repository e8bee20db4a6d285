"""Shared code of the studies: each run is one command of a script, run once, and its results are kept in a file."""

import argparse
import json
import multiprocessing
import os
import random
import runpy
import shlex
import shutil
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tabulate import tabulate

from modeling_layerpool.common.rows import read_rows
from modeling_layerpool.training.fault_tolerance import last_whole_checkpoint


SCRIPTS = Path(__file__).parent.parent
DATA_SEED = 0  # for every split and sample, whatever the seeds of the runs
DEV_SHARE = 0.1

# Each run is a process of its own, forked from one that has imported the packages, which takes most of a short run.
_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(["modeling_layerpool.publishing", "modeling_layerpool.training.classification"])
TEST_SHARE = 0.2


class Task(NamedTuple):
    """The files of a task, under `--data`; a dev or test part that it lacks is split off the training rows."""

    train: str
    validation: str | None
    test: str | None


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.part")  # a file that exists is complete
    partial.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    partial.replace(path)


def make_files(name: str, source: Task, options: argparse.Namespace) -> dict[str, Path]:
    """
    Return the train, validation and test file of a task, and write them if they do not exist.

    Without a test part, a fifth of the training rows becomes one; without a dev part, a tenth of the rest. At most
    `--max_train_rows` training rows are sampled, always the same ones.
    """
    folder = options.output_dir / "data" / f"{name}-{options.max_train_rows}"
    files = {part: folder / f"{part}.jsonl" for part in Task._fields}
    if not all(path.exists() for path in files.values()):
        parts = {
            part: [row for _, row in read_rows(options.data / path)]
            for part, path in source._asdict().items()
            if path is not None
        }
        draw = random.Random(DATA_SEED)
        draw.shuffle(parts["train"])
        if source.test is None:
            size = round(TEST_SHARE * len(parts["train"]))
            parts["test"], parts["train"] = parts["train"][:size], parts["train"][size:]
        if source.validation is None:
            size = round(DEV_SHARE * len(parts["train"]))
            parts["validation"], parts["train"] = parts["train"][:size], parts["train"][size:]
        parts["train"] = parts["train"][: options.max_train_rows]
        for part, rows in parts.items():
            write_rows(files[part], rows)
    return files


def run_script(
    script: str, name: str, flags: dict[str, Any], switches: Sequence[str], output_dir: Path, resumable: bool = False
) -> tuple[dict[str, Any], Path]:
    """
    Run a script once, and return its results with its command, and its folder.

    The results are read from their file if the run was already made.

    Args:
        flags: Flags by name, in addition to `--output_dir`; a list stands for several values.
        resumable: Whether an interrupted run continues from its last checkpoint.
    """
    folder, result = output_dir / "runs" / name, output_dir / "results" / f"{name}.json"
    words = []
    for flag, value in ({"output_dir": folder} | flags).items():
        words += [f"--{flag}", *map(str, value if isinstance(value, list) else [value])]
    words += switches
    command = shlex.join(["python", script, *words])
    if result.exists():
        known = json.loads(result.read_text(encoding="utf-8"))
        if known["command"] != command:
            sys.exit(f"{result}: belongs to another command ({known['command']}); choose another --output_dir")
        return known, folder
    if resumable:
        checkpoint = last_whole_checkpoint(folder) if folder.exists() else None
        words += ["--overwrite_output_dir"] if checkpoint is None else ["--resume_from_checkpoint", checkpoint]
    log = output_dir / "logs" / f"{name}.log"
    for path in (log, result):
        path.parent.mkdir(parents=True, exist_ok=True)
    process = _server.Process(target=_run, args=(str(SCRIPTS / script), words, str(log)))
    process.start()
    process.join()
    if process.exitcode != 0:
        sys.exit(f"{command}\nended with exit code {process.exitcode}; see {log}")
    measured = {
        path.stem.removesuffix("_results"): json.loads(path.read_text(encoding="utf-8"))
        for path in sorted([*folder.glob("*_results.json"), *folder.glob("evaluation.json")])
        if path.stem != "all_results"
    }
    state = folder / "trainer_state.json"
    if state.exists():
        measured["log_history"] = json.loads(state.read_text(encoding="utf-8"))["log_history"]
    partial = result.with_suffix(".part")
    partial.write_text(json.dumps({"command": command, **measured}, indent=2) + "\n", encoding="utf-8")
    partial.rename(result)
    for path in folder.glob("checkpoint-*"):
        shutil.rmtree(path)
    return json.loads(result.read_text(encoding="utf-8")), folder


def _run(script: str, words: list[str], log: str) -> None:
    sys.argv = [script, *words]
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for number in (1, 2):
        os.dup2(descriptor, number)
    runpy.run_path(script, run_name="__main__")


def spread(values: Sequence[float]) -> str:
    """Return mean and sample standard deviation over the seeds."""
    mean = f"{statistics.mean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.2f}"


def report(output_dir: Path, about: str, rows: Sequence[dict[str, Any]]) -> None:
    """
    Write `study.jsonl`, one row of a table per line, and print the tables.

    Args:
        rows: Cells by column; `table` names the row's table, and `commands` are the runs that it summarizes.
    """
    write_rows(output_dir / "study.jsonl", [{"about": about}, *rows])
    tables: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        cells = {column: cell for column, cell in row.items() if column not in ("table", "commands")}
        tables.setdefault(row["table"], []).append(cells)
    print(about)
    for title, cells in tables.items():
        print(f"\n{title}\n\n{tabulate(cells, 'keys', tablefmt='github', disable_numparse=True)}")
