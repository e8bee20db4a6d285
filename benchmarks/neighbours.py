"""
Grouping rows by their nearest neighbours, as `--shuffling neighbours` does: seconds and memory by number of rows.

    python benchmarks/neighbours.py --rows 10000 100000

Random embeddings; each size in a process of its own. Embedding the rows is not in it. Figures and their machine:
docs/performance.md.
"""

import argparse
import platform
import resource
import subprocess
import sys
import time

import torch
from tabulate import tabulate
from tqdm.auto import tqdm

from modeling_layerpool.training.neighbours import group_by_neighbours


def measure(rows: int, width: int, group_size: int) -> tuple[float, float]:
    """Seconds, and MiB by which the peak of this process grows over the embeddings."""
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(rows, width, generator=generator)
    group_by_neighbours(embeddings[:1000], group_size, generator)
    scale = 2**20 if platform.system() == "Darwin" else 2**10
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.perf_counter()
    groups = group_by_neighbours(embeddings, group_size, generator)
    seconds = time.perf_counter() - begin
    assert sorted(row for group in groups for row in group) == list(range(rows))
    return seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / scale


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--group_size", type=int, default=5)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)  # a single measurement: its rows
    options = parser.parse_args()
    if options.one:
        print(*measure(options.one, options.width, options.group_size))
        return
    table = []
    for rows in tqdm(options.rows, desc="Sizes", leave=False):
        done = subprocess.run(
            [sys.executable, *sys.argv, "--one", str(rows)], capture_output=True, text=True, check=True
        )
        table.append([rows, *map(float, done.stdout.split())])
    print(f"torch {torch.__version__}, {platform.machine()}, {torch.get_num_threads()} threads, width {options.width}")
    print(tabulate(table, headers=["rows", "seconds", "growth of memory, MiB"], floatfmt=".1f", intfmt=","))


if __name__ == "__main__":
    main()
