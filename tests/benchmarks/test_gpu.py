"""The benchmark for a GPU runs as a whole on a CPU, so that it works the first time."""

import json
import subprocess
import sys

import pytest

from tests.processes import ROOT, Running


pytestmark = pytest.mark.long

SCRIPT = ROOT / "benchmarks" / "gpu.py"
PARTS = ["step", "against", "attention", "loss", "encode", "exact", "tests"]
TRIAL = ["--device", "cpu", "--tiny", "--results"]

# A part that raises, one whose process dies, one that runs out of memory, one that lacks a release, and a good one.
WITH_BROKEN_PARTS = """
import os, signal, sys
sys.path.insert(0, {benchmarks!r})
import gpu
gpu.open_packages()
import torch
from gpu_parts import PARTS

def fail(bench):
    bench.results.add(batch=8, rows=1.5)
    raise RuntimeError("this part is broken")

def die(bench):
    os.kill(os.getpid(), signal.SIGKILL)

def fill_the_memory(bench):
    def way(number):
        raise torch.cuda.OutOfMemoryError("no memory is left")

    timings = bench.measure({{"large": way, "small": lambda number: None}})
    for name, timing in timings.items():
        bench.results.add(way=name, **timing.columns)

PARTS["step"] = PARTS["step"]._replace(measure=fail)
PARTS["loss"] = PARTS["loss"]._replace(measure=die)
PARTS["attention"] = PARTS["attention"]._replace(measure=fill_the_memory)
PARTS["encode"] = PARTS["encode"]._replace(needs=("torch>=99.0",))
sys.exit(gpu.main())
"""


def read(path):
    """For each part in the file of results, its rows and its end."""
    entries = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {
        part: (
            [entry["row"] for entry in entries if entry["part"] == part and "row" in entry],
            next(entry for entry in entries if entry["part"] == part and "outcome" in entry),
        )
        for part in dict.fromkeys(entry["part"] for entry in entries)
    }


def test_every_part_runs_and_makes_its_table(tmp_path):
    path = tmp_path / "results.jsonl"
    done = Running(SCRIPT, *TRIAL, path).finish()
    assert done.returncode == 0, done.stdout + done.stderr
    results = read(path)
    assert list(results) == PARTS
    for part, (rows, end) in results.items():
        assert end["outcome"] == "passed", end
        assert rows, part
    assert all(row["rows/s"] > 0 for row in results["step"][0])
    assert {row["outcome"] for row in results["tests"][0]} <= {"passed", "skipped"}

    tables = Running(SCRIPT, "--tables", "--results", path).finish().stdout
    assert [line.partition(":")[0] for line in tables.splitlines() if line.startswith("#")] == [
        f"### {part}" for part in PARTS
    ]
    assert "tiny shapes, whose times mean nothing" in tables


def test_parts_that_fail_leave_the_results_of_the_others(tmp_path):
    script, path = tmp_path / "broken.py", tmp_path / "results.jsonl"
    script.write_text(WITH_BROKEN_PARTS.format(benchmarks=str(ROOT / "benchmarks")))
    parts = ["step", "attention", "loss", "encode", "exact"]
    done = Running(script, "--only", *parts, *TRIAL, path).finish()
    assert done.returncode == 1, done.stdout + done.stderr
    results = read(path)
    ends = {part: (end["outcome"], end["reason"]) for part, (_, end) in results.items()}
    assert ends["step"] == ("failed", "RuntimeError: this part is broken")
    assert results["step"][0] == [{"batch": 8, "rows": 1.5}]
    assert ends["loss"] == ("failed", "its process ended with exit code -9")
    assert ends["attention"] == ("passed", "")
    assert [row["median ms"] == "out of memory" for row in results["attention"][0]] == [True, False]
    assert ends["encode"][0] == "skipped"
    assert ends["encode"][1].startswith("it needs torch>=99.0; installed: torch ")
    assert ends["exact"] == ("passed", "")


def test_a_part_starts_in_a_fresh_process_as_on_a_gpu(tmp_path):
    path = tmp_path / "results.jsonl"
    command = [sys.executable, SCRIPT, *TRIAL, path, "--only", "loss", "--start", "spawn"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert read(path)["loss"][1]["outcome"] == "passed"
