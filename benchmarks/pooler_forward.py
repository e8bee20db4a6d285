"""
Compare the layer-attention pooler with one that recomputes keys and values for each query, as the authors' code does.

    python benchmarks/pooler_forward.py

Same weights, same random inputs, one process, alternating: a micro-benchmark of one shape, which the lengths of texts
do not change. Prints milliseconds and the ratio over the rounds, and writes nothing. Figures and their machine:
docs/performance.md.
"""

import argparse
import statistics

import torch
from measuring import machine
from tabulate import tabulate
from torch.utils.benchmark import Timer
from tqdm.auto import tqdm

from modeling_layerpool import LayerPoolBertConfig
from modeling_layerpool.models.modeling_layerpool_pooler_base import activate
from modeling_layerpool.models.modeling_layerpool_poolers import LayerAttentionPooler


def recompute_for_each_query(pooler: LayerAttentionPooler, reduced: list[torch.Tensor]) -> torch.Tensor:
    """The same embedding, one query at a time, with keys and values of all states recomputed for each."""
    first, mean = torch.stack(reduced, dim=2).unbind(dim=1)  # (b, n, h) each
    mixed = 0
    for i in range(first.shape[1]):
        query = activate(pooler.activation, pooler.query(first[:, i]))
        key, value = activate(pooler.activation, pooler.key(mean)), activate(pooler.activation, pooler.value(mean))
        attention = torch.softmax(torch.einsum("bh,bnh->bn", query, key) / pooler.divisor, dim=-1)
        mixed = mixed + torch.einsum("bn,bnh->bh", attention, value)
    mixed = mixed / first.shape[1]
    return torch.tanh(pooler.projection(torch.cat([first[:, -1], mixed], dim=-1)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--batch_size", type=int, default=192)
    parser.add_argument("--hidden_size", type=int, default=768)
    parser.add_argument("--num_hidden_layers", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    config = LayerPoolBertConfig(hidden_size=options.hidden_size, num_hidden_layers=options.num_hidden_layers)
    pooler = LayerAttentionPooler(config).eval()
    reduced = [torch.randn(options.batch_size, 2, options.hidden_size) for _ in pooler.states]
    ways = {
        "one batched product": lambda: pooler(reduced)[0],
        "keys and values for each query": lambda: recompute_for_each_query(pooler, reduced),
    }
    with torch.inference_mode():
        one, other = (way() for way in ways.values())
        timers = {
            name: Timer("way()", globals={"way": way}, num_threads=torch.get_num_threads())
            for name, way in ways.items()
        }
        rounds = [
            [timer.blocked_autorange(min_run_time=0.5).median for timer in timers.values()]
            for _ in tqdm(range(options.rounds), desc="Rounds", leave=False)
        ]
    rows = [
        [name, *(1e3 * f(times) for f in (statistics.median, min, max))]
        for name, times in zip(ways, zip(*rounds, strict=True), strict=True)
    ]
    ratios = [slow / fast for fast, slow in rounds]
    print(f"b {options.batch_size}, n {len(pooler.states)}, h {options.hidden_size}, float32, {options.rounds} rounds")
    print(machine())
    print(tabulate(rows, headers=["forward pass", "median ms", "min", "max"], floatfmt=".2f"))
    print(f"ratio: median {statistics.median(ratios):.2f}, min {min(ratios):.2f}, max {max(ratios):.2f}")
    print(f"largest difference of the embeddings: {(one - other).abs().max().item():.1e}")


if __name__ == "__main__":
    main()
