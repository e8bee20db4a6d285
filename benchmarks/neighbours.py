"""
Measure time and memory of grouping rows by their nearest neighbors, as `--shuffling neighbours` does.

    python benchmarks/neighbours.py --rows 10000 100000

Uses random embeddings around random topics, other ones in each round, and a process for each measurement. The time
excludes embedding the rows. Figures and their machine: docs/performance.md.
"""

import argparse
import statistics
import time
from itertools import product

import torch
from measuring import in_own_process, machine, peak_mib
from tabulate import tabulate
from tqdm.auto import tqdm

from modeling_layerpool.common.nearest_texts import NEIGHBOUR_SEARCHES
from modeling_layerpool.training.contrastive.neighbours import group_by_neighbours


HEADERS = ["rows", "search", "median s", "min", "max", "growth of memory, MiB", "cosine in a group"]


def measure(rows: int, width: int, group_size: int, search: str, seed: int) -> tuple[float, float, float]:
    """
    Return the seconds, the MiB that grouping adds to the peak memory, and the mean cosine of the members of a group
    to its first one.
    """
    generator = torch.Generator().manual_seed(seed)
    # Texts have topics: about 20 of them are near each other.
    topics = torch.randn(rows // 20 + 1, width, generator=generator)
    embeddings = topics[torch.randint(len(topics), (rows,), generator=generator)]
    embeddings += torch.randn(rows, width, generator=generator)
    group_by_neighbours(embeddings[:1000], group_size, generator, search=search)
    before = peak_mib()
    begin = time.perf_counter()
    groups = group_by_neighbours(embeddings, group_size, generator, search=search)
    seconds = time.perf_counter() - begin
    assert sorted(row for group in groups for row in group) == list(range(rows))
    growth = peak_mib() - before
    whole = torch.tensor([group for group in groups if len(group) == group_size])
    units = torch.nn.functional.normalize(embeddings, dim=-1)
    cosines = [(units[whole[:, 0]] * units[whole[:, index]]).sum(dim=-1) for index in range(1, group_size)]
    return seconds, growth, torch.stack(cosines).mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--group_size", type=int, default=5)
    parser.add_argument("--searches", nargs="+", choices=NEIGHBOUR_SEARCHES, default=list(NEIGHBOUR_SEARCHES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)  # of a single measurement
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)  # a single measurement with this number of rows
    options = parser.parse_args()
    if options.one:
        print(*measure(options.one, options.width, options.group_size, options.searches[0], options.seed))
        return
    table = []
    for rows, search in tqdm(list(product(options.rows, options.searches)), desc="Sizes", leave=False):
        flags = ("--one", rows, "--searches", search, "--seed")
        rounds = [in_own_process(*flags, seed) for seed in range(options.rounds)]
        seconds, growth, cosine = zip(*rounds, strict=True)
        times = [f(seconds) for f in (statistics.median, min, max)]
        table.append([rows, search, *times, statistics.median(growth), statistics.median(cosine)])
    print(f"{machine()}, width {options.width}")
    print(tabulate(table, headers=HEADERS, floatfmt=("", "", ".1f", ".1f", ".1f", ".0f", ".4f"), intfmt=","))


if __name__ == "__main__":
    main()
