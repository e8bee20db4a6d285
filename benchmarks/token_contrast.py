"""
Measure the cost of token contrast in addition to masked language modeling: time of a training step, and memory.

    python benchmarks/token_contrast.py step
    python benchmarks/token_contrast.py memory

`step` trains the same model on the same batches (the paper's small shape: 4 layers of width 512, 8 heads, rows of 256
tokens) with the model's own loss, with `mlm` and with `taco`, alternating, and measures the additional term of `taco`
alone: sampling the pairs, the loss and its gradient. Each round has new random tokens in full rows, as packed blocks
are: a micro-benchmark of a shape. `memory` compares the term with one that gathers all negatives at once, each in its
own process, as the growth of its resident memory. Figures and their machine: docs/performance.md.
"""

import argparse
import statistics
import tempfile
import time

import torch
import torch.nn.functional as F
from measuring import in_own_process, machine, peak_mib
from tabulate import tabulate
from transformers import BertConfig, BertForMaskedLM

from modeling_layerpool.training import MaskedLanguageTrainer, TokenContrastArguments, sample_token_pairs
from modeling_layerpool.training.losses import token_contrast


WIDTH, LENGTH, VOCABULARY, NEGATIVES = 512, 256, 30522, 50


def make_batch(rows: int) -> dict[str, torch.Tensor]:
    """Packed blocks without padding, each one sequence, 15 % of it masked."""
    input_ids = torch.randint(1000, VOCABULARY, (rows, LENGTH))
    masked = torch.rand(rows, LENGTH) < 0.15
    return {
        "input_ids": input_ids.masked_fill(masked, 103),
        "labels": input_ids.masked_fill(~masked, -100),
        "attention_mask": torch.ones_like(input_ids),
        "sequence_ids": torch.arange(rows).unsqueeze(1).expand(rows, LENGTH),
        "content": torch.ones_like(masked),
    }


def seconds(work) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def contrast_and_gradient(states: torch.Tensor, batch: dict[str, torch.Tensor]) -> None:
    pairs = sample_token_pairs(batch["sequence_ids"], batch["content"], negatives=NEGATIVES)
    token_contrast(states, *pairs, temperature=0.07).backward()


def naive_contrast_and_gradient(states: torch.Tensor, batch: dict[str, torch.Tensor]) -> None:
    """The same with all candidates gathered at once: anchors x (1 + negatives) x width."""
    positives, negatives = sample_token_pairs(batch["sequence_ids"], batch["content"], negatives=NEGATIVES)
    units = F.normalize(states, dim=-1)
    candidates = units.detach()[torch.cat([positives.unsqueeze(1), negatives], dim=1)]
    logits = torch.einsum("ph,pkh->pk", units, candidates) / 0.07
    F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long)).backward()


def measure_step(rows: int, rounds: int, bf16: bool) -> None:
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        num_hidden_layers=4,
        num_attention_heads=8,
        intermediate_size=4 * WIDTH,
    )
    model = BertForMaskedLM(config)
    trainers = {}
    for objective in ("mlm", "taco"):
        args = TokenContrastArguments(
            output_dir=tempfile.mkdtemp(), objective=objective, token_negatives=NEGATIVES, bf16=bf16, disable_tqdm=True
        )
        trainers[objective] = MaskedLanguageTrainer(model, args, data_collator=dict)
        trainers[objective].current_gradient_accumulation_steps = 1
        trainers[objective].create_optimizer()

    def step(objective: str, batch: dict[str, torch.Tensor]) -> None:
        trainers[objective].training_step(model, batch)
        trainers[objective].optimizer.step()
        model.zero_grad()

    def library_step(batch: dict[str, torch.Tensor]) -> None:
        with trainers["mlm"].compute_loss_context_manager():
            loss = model(**{name: batch[name] for name in ("input_ids", "attention_mask", "labels")}).loss
        loss.backward()
        trainers["mlm"].optimizer.step()
        model.zero_grad()

    times: dict[str, list[float]] = {"the model's own loss": [], "mlm": [], "taco": [], "the term alone": []}
    for number in range(rounds + 1):  # the first round warms up
        batch = make_batch(rows)
        states = torch.randn(rows * LENGTH, WIDTH, requires_grad=True)
        work = {
            "the model's own loss": lambda batch=batch: library_step(batch),
            "mlm": lambda batch=batch: step("mlm", batch),
            "taco": lambda batch=batch: step("taco", batch),
            "the term alone": lambda states=states, batch=batch: contrast_and_gradient(states, batch),
        }
        for name in sorted(work, reverse=bool(number % 2)):
            taken = seconds(work[name])
            if number:
                times[name].append(taken)
    shares = {
        "the model's own loss over mlm, less 1": [
            b / a - 1 for a, b in zip(times["mlm"], times["the model's own loss"], strict=True)
        ],
        "taco over mlm, less 1": [b / a - 1 for a, b in zip(times["mlm"], times["taco"], strict=True)],
        "the term over a taco step": [b / a for a, b in zip(times["taco"], times["the term alone"], strict=True)],
    }
    print(f"{machine()}, {'bfloat16' if bf16 else 'float32'}, {rows} rows of {LENGTH}, {rounds} rounds")
    table = [[f"{name}, ms", *(1000 * f(x) for f in (min, statistics.median, max))] for name, x in times.items()]
    table += [[f"{name}, %", *(100 * f(x) for f in (min, statistics.median, max))] for name, x in shares.items()]
    print(tabulate(table, headers=["", "min", "median", "max"], floatfmt=".1f"))


def growth(rows: int, kind: str) -> float:
    """MiB that the term with its gradient adds, the states aside."""
    work = naive_contrast_and_gradient if kind == "naive" else contrast_and_gradient
    work(torch.randn(2 * LENGTH, WIDTH, requires_grad=True), make_batch(2))
    batch, states = make_batch(rows), torch.randn(rows * LENGTH, WIDTH, requires_grad=True)
    before = peak_mib()
    work(states, batch)
    return peak_mib() - before


def measure_memory(sizes: list[int]) -> None:
    table = []
    for rows in sizes:
        found = [in_own_process("--rows", rows, "--kind", kind)[0] for kind in ("blocks", "naive")]
        table.append([rows * LENGTH, *found])
    print(tabulate(table, headers=["anchors", "MiB", "all gathered, MiB"], floatfmt=".0f"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("what", choices=["step", "memory"])
    parser.add_argument("--rows", type=int, nargs="+", help="rows of a batch: 8 for step, 8 and 32 for memory")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--kind", choices=["blocks", "naive"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.manual_seed(0)
    if options.kind is not None:
        print(growth(options.rows[0], options.kind))
    elif options.what == "memory":
        measure_memory(options.rows or [8, 32])
    else:
        for rows in options.rows or [8]:
            measure_step(rows, options.rounds, options.bf16)


if __name__ == "__main__":
    main()
