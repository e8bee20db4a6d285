"""
Measure this package on a GPU, part by part, with random weights and texts: no network and no files are needed.

    python benchmarks/gpu.py                                # every part
    python benchmarks/gpu.py --only step loss --results h100.jsonl
    python benchmarks/gpu.py --tables --results h100.jsonl  # the tables of docs/performance.md
    python benchmarks/gpu.py --device cpu --tiny            # try everything on a CPU; its times mean nothing

Needs torch and transformers. A part that needs more, or newer ones, is skipped with one line that says why. Each part
is a process of its own that takes less than 8 minutes, and adds every figure to the file of results (JSON lines) as
soon as it is measured. A measurement that does not fit into memory has that as its result. If a part fails, the others
still run, and the exit code is 1.
"""

import argparse
import contextlib
import functools
import importlib
import importlib.metadata
import json
import multiprocessing
import os
import platform
import sys
import time
import traceback
import types
from pathlib import Path


ROOT = Path(__file__).resolve().parent.parent
SECONDS_OF_A_PART = 470
# After so many seconds a part begins no further rounds.
SECONDS_OF_ROUNDS = 300

# transformers and tokenizers read these when they are imported.
os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def open_packages() -> None:
    """
    Make the modules of modeling_layerpool importable one by one. The package itself imports all of them, which takes
    datasets, scikit-learn and newer releases than most of them need.
    """
    if "modeling_layerpool" in sys.modules:
        return
    sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
    for name in ("modeling_layerpool", "modeling_layerpool.training", "modeling_layerpool.training.contrastive"):
        package = types.ModuleType(name)
        package.__path__ = [str(ROOT.joinpath(*name.split(".")))]
        sys.modules[name] = package


class Results:
    """The figures of one run of one part, which are printed and added to the file as they come."""

    def __init__(self, path: Path, part: str):
        self.path, self.part = path, part
        self.run, self.begin = time.strftime("%Y-%m-%d %H:%M:%S"), time.perf_counter()
        self.failures: list[str] = []

    def add(self, **row) -> None:
        print("  " + ", ".join(f"{name} {formatted(value)}" for name, value in row.items()), flush=True)
        self.write(row=row)

    def fail(self, reason: str) -> None:
        """Note a failure; the part goes on."""
        self.failures.append(reason)

    def end(self, outcome: str, reason: str = "") -> None:
        seconds = time.perf_counter() - self.begin
        print(f"{self.part}: {outcome}{reason and ': '}{reason} ({seconds:.0f} s)", flush=True)
        self.write(outcome=outcome, reason=reason, seconds=seconds)

    def write(self, **fields) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"part": self.part, "run": self.run, **fields}) + "\n")

    @property
    def has_time(self) -> bool:
        return time.perf_counter() - self.begin < SECONDS_OF_ROUNDS


def machine(device: str, is_tiny: bool) -> str:
    """One line about the device and the versions."""
    import torch

    name = f"{platform.machine()} with {torch.get_num_threads()} threads"
    if device == "cuda":
        name = f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"
    return f"{name}, {versions()}" + ("; tiny shapes, whose times mean nothing" if is_tiny else "")


def versions() -> str:
    """The releases of the packages that make a difference."""
    parts = []
    for package in ("torch", "transformers", "sentence-transformers", "flash-attn", "triton"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            parts.append(f"{package} {importlib.metadata.version(package)}")
    return ", ".join(parts)


def run_in_this_process(name: str, results: Results, options: argparse.Namespace) -> None:
    """Run a part and note how it ended. The exit code is 1 if it failed."""
    open_packages()
    from gpu_bench import FULL, TINY, Bench
    from gpu_parts import PARTS
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        results.write(machine=machine(options.device, options.tiny))
        PARTS[name].measure(Bench(options.device, TINY if options.tiny else FULL, results))
    except Exception as error:
        traceback.print_exc()
        results.fail(one_line(error))
    if results.failures:
        results.end("failed", "; ".join(dict.fromkeys(results.failures)))
        sys.exit(1)
    results.end("passed")


def run(name: str, options: argparse.Namespace) -> bool:
    """Run a part in a process of its own. Returns whether it passed or was skipped."""
    from gpu_parts import PARTS

    print(f"\n{name}: {PARTS[name].what}", flush=True)
    results = Results(options.results, name)
    reasons = [reason for reason in map(what_lacks, PARTS[name].needs) if reason]
    if reasons:
        results.end("skipped", f"{reasons[0]}; installed: {versions()}")
        return True
    process = multiprocessing.get_context(options.start).Process(
        target=run_in_this_process, args=(name, results, options)
    )
    process.start()
    process.join(SECONDS_OF_A_PART)
    if process.is_alive():
        process.kill()
        process.join()
        results.end("failed", f"it was stopped after {SECONDS_OF_A_PART} s; what it had measured is kept")
    elif process.exitcode not in (0, 1):
        results.end("failed", f"its process ended with exit code {process.exitcode}")
    return process.exitcode == 0


@functools.cache
def what_lacks(need: str) -> str | None:
    """Why a module, or a release such as torch>=2.6, is not here; None if it is."""
    package, _, oldest = need.partition(">=")
    try:
        if oldest:
            installed = importlib.metadata.version(package)
            return None if release_of(installed) >= release_of(oldest) else f"it needs {need}"
        importlib.import_module(need)
    except Exception as error:  # releases that do not fit each other raise others than ImportError
        reason = one_line(error).partition(" (/")[0]  # without the path
        return f"{need.rpartition('.')[2]} cannot be imported ({reason})"
    return None


def release_of(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in version.split(".")[:2])


def one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def formatted(value) -> str:
    if value is None:
        return "-"
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def tables(path: Path) -> str:
    """The tables of the last run of each part, in Markdown, as docs/performance.md has them."""
    runs: dict[str, list[dict]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        before = runs.get(entry["part"], [])
        runs[entry["part"]] = [*(before if before and before[-1]["run"] == entry["run"] else []), entry]
    texts = []
    for part, entries in runs.items():
        machines = [entry["machine"] for entry in entries if "machine" in entry]
        rows = [entry["row"] for entry in entries if "row" in entry]
        ends = [entry for entry in entries if "outcome" in entry] or [{"outcome": "it did not end", "reason": ""}]
        texts.append(f"### {part}\n")
        texts.append(f"`python benchmarks/gpu.py --only {part}`, {', '.join([entries[0]['run'], *machines])}.\n")
        if ends[-1]["outcome"] != "passed":
            texts.append(f"{ends[-1]['outcome']}: {ends[-1]['reason']}\n")
        titles = list(dict.fromkeys(title for row in rows for title in row))
        if titles:
            texts += [markdown_row(titles), markdown_row(["---"] * len(titles))]
            texts += [markdown_row([formatted(row.get(title)) for title in titles]) for row in rows]
            texts.append("")
    return "\n".join(texts)


def markdown_row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> int:
    open_packages()
    from gpu_parts import PARTS

    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    listed = "; ".join(f"{name}: {part.what}" for name, part in PARTS.items())
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS), help=listed)
    parser.add_argument("--results", type=Path, default=Path("gpu_results.jsonl"), help="results are added here")
    parser.add_argument("--tables", action="store_true", help="only print the tables of the results")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, to try whether everything runs")
    parser.add_argument("--start", choices=["fork", "spawn"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.tables:
        if not options.results.is_file():
            parser.error(f"{options.results}: there is no such file of results")
        print(tables(options.results))
        return 0

    import torch

    if options.device == "cuda" and torch.cuda.device_count() == 0:
        parser.error("torch finds no GPU here. To try the script on a CPU: --device cpu --tiny")
    # A fork shares what is imported, but CUDA does not work in a fork of a process that has opened it.
    options.start = options.start or ("spawn" if options.device == "cuda" else "fork")
    passed = [run(name, options) for name in options.only]
    print(f"\nResults: {options.results}; their tables: python {sys.argv[0]} --tables --results {options.results}")
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
