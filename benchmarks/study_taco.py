"""
Compare TACO with masked language modeling alone: same new encoder, texts, steps and seeds.

    python benchmarks/study_taco.py --data data --output_dir runs/taco

For each objective and seed a small BERT is pre-trained with `run_mlm.py`, measured on held-out texts and on a probe,
and fine-tuned with `run_classification.py` on three tasks of GLUE (the first seed chooses the learning rate of each
objective and task on the dev part). Each run is one command. A finished run is a file in `output_dir/results` and is
not repeated; an interrupted run continues from its last checkpoint. The tables are printed and written to
`output_dir/study.jsonl`.
"""

import argparse
import json
import random
import shutil
import statistics
import time
from pathlib import Path

import torch
from studies import DATA_SEED, make_files, report, run_script, spread
from study_hire import TASKS
from tqdm.auto import tqdm
from transformers import AutoTokenizer

from modeling_layerpool.common.rows import read_rows
from modeling_layerpool.training.classification import GLUE
from modeling_layerpool.training.masked_lm.models import new_config, start_model
from modeling_layerpool.training.masked_lm.texts import load_texts, tokenize_texts
from modeling_layerpool.training.masked_lm.tokenizer import train_tokenizer
from modeling_layerpool.training.masked_lm.trainer import MaskedLanguageArguments, MaskedLanguageTrainer


OBJECTIVES = ("mlm", "taco")
FINE_TUNING_TASKS = ("rte", "sst2", "stsb")
HELD_OUT_SHARE = 0.02
# The measures of each evaluation, and whether higher is better.
MEASURES = {
    "mlm_loss": False,
    "masked_accuracy": True,
    "spearman": True,
    "similarity_within": None,
    "similarity_between": None,
}
SHOWN_STEPS = 12


def make_texts(options: argparse.Namespace) -> tuple[Path, Path]:
    """Return the training and the held-out texts, and write them if they do not exist."""
    folder = options.output_dir / "data" / f"texts-{options.max_texts}"
    train, held_out = folder / "train.txt", folder / "held-out.txt"
    if not (train.exists() and held_out.exists()):
        texts = [row["text"] for _, row in read_rows(options.data / "wiki" / "train.txt.gz")]
        random.Random(DATA_SEED).shuffle(texts)
        texts = texts[: options.max_texts]
        size = max(1, round(HELD_OUT_SHARE * len(texts)))
        folder.mkdir(parents=True, exist_ok=True)
        for path, part in ((held_out, texts[:size]), (train, texts[size:])):
            path.write_text("".join(f"{text}\n" for text in part), encoding="utf-8")
    return train, held_out


def make_tokenizer(options: argparse.Namespace) -> Path:
    """The tokenizer of all runs, trained on the training texts unless it is there."""
    folder = options.output_dir / "data" / f"tokenizer-{options.max_texts}-{options.vocab_size}"
    if not folder.exists():
        texts = make_texts(options)[0].read_text(encoding="utf-8").splitlines()
        train_tokenizer(lambda: iter(texts), "bert", options.vocab_size).save_pretrained(folder)
    return folder


def pretrain(objective: str, seed: int, options: argparse.Namespace) -> tuple[dict, Path]:
    train, held_out = make_texts(options)
    flags = {
        "model_type": "bert",
        "config_overrides": options.config_overrides,
        "tokenizer_name": make_tokenizer(options),
        "train_file": train,
        "validation_file": held_out,
        "probe_file": options.data / "stsb" / "dev.jsonl",
        "objective": objective,
        "seed": seed,
        "max_seq_length": options.max_seq_length,
        "block_packing": options.block_packing,
        "per_device_train_batch_size": options.batch_size,
        "per_device_eval_batch_size": options.batch_size,
        "max_steps": options.steps,
        "learning_rate": f"{options.learning_rate:g}",
        "weight_decay": 0.01,
        "warmup_steps": 0.05,
        "eval_strategy": "steps",
        "eval_steps": options.eval_steps,
        "save_steps": options.eval_steps,
        "save_total_limit": 1,
        "logging_steps": options.eval_steps,
    }
    switches = ["--measure_similarity", *(["--attend_within_documents"] if options.attend_within_documents else [])]
    flags["disable_tqdm"] = "true"
    switches += ["--bf16"] if options.bf16 else []
    return run_script("run_mlm.py", f"{objective}-{seed}", flags, switches, options.output_dir, resumable=True)


def fine_tune(encoder: Path, name: str, task: str, rate: float, seed: int, options: argparse.Namespace) -> dict:
    flags = {
        "model_name_or_path": encoder,
        "pooler_type": options.pooler_type,
        **{f"{part}_file": path for part, path in make_files(task, TASKS[task], options).items()},
        "seed": seed,
        "learning_rate": f"{rate:g}",
        "num_train_epochs": f"{options.epochs:g}",
        "per_device_train_batch_size": 32,
        "per_device_eval_batch_size": 64,
        "max_seq_length": options.max_seq_length,
        "warmup_steps": 0.1,
        "metric_for_best_model": GLUE[task],
        "save_total_limit": 1,
    }
    flags["disable_tqdm"] = "true"
    result, folder = run_script(
        *("run_classification.py", f"{name}-{task}-{rate:g}", flags, ["--bf16"] if options.bf16 else []),
        options.output_dir,
        resumable=True,
    )
    if folder.exists():
        shutil.rmtree(folder)  # the weights of all runs would fill a disk
    return result


def curve(result: dict, measure: str) -> dict[int, float]:
    """Return a measure of a pre-training run, by step."""
    name = f"eval_{measure}"
    return {entry["step"]: entry[name] for entry in result["log_history"] if name in entry}


def steps_to(goal: float, reached: dict[int, float], more_is_better: bool) -> int | None:
    """Return the first step with a measure at least as good as `goal`."""
    return next(
        (step for step, value in sorted(reached.items()) if (value >= goal if more_is_better else value <= goal)), None
    )


def measure_steps(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """
    Time a training step of each objective on the same batches and weights, alternating between objectives.

    A step is forward, loss, backward and AdamW. `ratio` is the median over the batches of the time relative to `mlm`.
    """
    path = options.output_dir / "results" / "steps.json"
    names = ("config_overrides", "vocab_size", "max_texts", "max_seq_length", "block_packing")
    names += ("attend_within_documents", "batch_size", "timed_steps", "bf16")
    settings = {name: getattr(options, name) for name in names} | {"threads": torch.get_num_threads()}
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if known.get("settings") == settings:
        return known["steps"]
    tokenizer = AutoTokenizer.from_pretrained(make_tokenizer(options))
    piece_length = options.max_seq_length if options.block_packing == "pack" else None
    rows = tokenize_texts(load_texts([str(make_texts(options)[0])]), tokenizer, piece_length, "training texts")
    trainers = {}
    for objective in OBJECTIVES:
        torch.manual_seed(0)
        args = MaskedLanguageArguments(
            str(options.output_dir / "steps"),
            objective=objective,
            max_seq_length=options.max_seq_length,
            block_packing=options.block_packing,
            attend_within_documents=options.attend_within_documents,
            per_device_train_batch_size=options.batch_size,
            bf16=options.bf16,
        )
        model = start_model(new_config("bert", options.config_overrides), tokenizer).train()
        trainers[objective] = MaskedLanguageTrainer(model, args, train_dataset=rows, processing_class=tokenizer)
        trainers[objective].create_optimizer()
    seconds: dict[str, list[float]] = {objective: [] for objective in OBJECTIVES}
    batches = iter(trainers["mlm"].get_train_dataloader())
    for number in tqdm(range(options.timed_steps + 1), desc="steps", leave=False):
        batch = next(batches)
        for objective, trainer in trainers.items():
            inputs = trainer._prepare_inputs(dict(batch))
            begin = time.perf_counter()
            with trainer.compute_loss_context_manager():
                loss = trainer.compute_loss(trainer.model, inputs)
            loss.backward()
            trainer.optimizer.step()
            trainer.optimizer.zero_grad()
            if trainer.args.device.type != "cpu":
                torch.accelerator.synchronize()
            if number > 0:  # the first one warms up
                seconds[objective].append(time.perf_counter() - begin)
    steps = {
        objective: {
            "seconds": statistics.median(times),
            "ratio": statistics.median(own / base for own, base in zip(times, seconds["mlm"], strict=True)),
        }
        for objective, times in seconds.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"settings": settings, "steps": steps}, indent=2) + "\n", encoding="utf-8")
    return steps


def rows_of(pretrained: dict, fine_tuned: dict, timings: dict, options: argparse.Namespace) -> list[dict]:
    """Return the rows of the study's tables."""

    def values(objective: str, measure: str, step: int) -> str:
        known = [curve(pretrained[objective, seed], measure).get(step) for seed in options.seeds]
        return spread(known) if None not in known else ""

    steps = sorted(curve(pretrained["mlm", options.seeds[0]], "mlm_loss"))
    shown = sorted({steps[index * (len(steps) - 1) // max(1, SHOWN_STEPS - 1)] for index in range(SHOWN_STEPS)})
    rows = [
        {"table": "Pre-training", "step": str(step), "objective": objective}
        | {measure: values(objective, measure, step) for measure in MEASURES}
        for step in shown
        for objective in options.objectives
    ]
    if set(OBJECTIVES) <= set(options.objectives):
        for measure, more_is_better in MEASURES.items():
            if more_is_better is None:
                continue
            for seed in options.seeds:
                goal = list(curve(pretrained["mlm", seed], measure).values())[-1]
                reached = steps_to(goal, curve(pretrained["taco", seed], measure), more_is_better)
                cost = None if reached is None else reached * timings["taco"]["ratio"] / options.steps
                rows.append(
                    {
                        "table": "Steps to the final value of masked language modeling alone",
                        "measure": measure,
                        "seed": str(seed),
                        f"mlm at step {options.steps}": f"{goal:.4g}",
                        "taco's first step there": str(reached or "not reached"),
                        "time against mlm": f"{cost:.2f}" if cost else "",
                    }
                )
    for (task, objective), (rate, results) in fine_tuned.items():
        metric = GLUE[task]
        test = [result["test"][f"test_{metric}"] for result in results]
        dev = [result["eval"][f"eval_{metric}"] for result in results]
        rows.append(
            {
                "table": "Fine-tuning",
                "task": task,
                "objective": objective,
                "metric": metric,
                "test": spread(test),
                "dev": spread(dev),
                "learning rate": f"{rate:g}",
                "commands": [result["command"] for result in results],
            }
        )
    for name, timing in timings.items():
        cells = {"objective": name, "s a step": f"{timing['seconds']:.3f}", "against mlm": f"{timing['ratio']:.2f}"}
        rows.append({"table": "Cost of a step", **cells})
    for (objective, seed), result in pretrained.items():
        rows.append({"table": "Commands", "objective": objective, "seed": str(seed), "command": result["command"]})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--data", type=Path, required=True, help="folder with wiki/, stsb/, rte/ and sst2/")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--objectives", nargs="+", choices=OBJECTIVES, default=list(OBJECTIVES))
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[1, 2, 3], help="seeds; the first one chooses the learning rate"
    )
    parser.add_argument(
        "--config_overrides",
        default="hidden_size=256,num_hidden_layers=4,num_attention_heads=4,intermediate_size=1024",
    )
    parser.add_argument("--vocab_size", type=int, default=8000)
    parser.add_argument("--max_texts", type=int, help="default: all")
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--eval_steps", type=int, default=500)
    parser.add_argument("--batch_size", type=int, default=32, help="blocks per batch")
    parser.add_argument("--max_seq_length", type=int, default=128)
    parser.add_argument("--block_packing", default="pack", help="as in run_mlm.py")
    parser.add_argument("--attend_within_documents", action="store_true", help="as in run_mlm.py")
    parser.add_argument("--learning_rate", type=float, default=5e-4)
    parser.add_argument("--tasks", nargs="*", choices=TASKS, default=list(FINE_TUNING_TASKS))
    parser.add_argument("--pooler_type", choices=("cls", "mean"), default="mean", help="pooler of fine-tuning")
    parser.add_argument("--fine_tuning_rates", type=float, nargs="+", default=[5e-5, 1e-4, 2e-4])
    parser.add_argument("--epochs", type=float, default=3, help="epochs of fine-tuning")
    parser.add_argument("--max_train_rows", type=int, default=10_000, help="rows of a fine-tuning task")
    parser.add_argument("--timed_steps", type=int, default=10, help="batches on which a step is timed")
    parser.add_argument("--bf16", action="store_true", help="train in bf16 autocast")
    options = parser.parse_args()
    timings = measure_steps(options)
    pretrained: dict[tuple[str, int], dict] = {}
    fine_tuned: dict[tuple[str, str], tuple[float, list[dict]]] = {}
    fine_tunings = len(options.tasks) * (len(options.fine_tuning_rates) + len(options.seeds) - 1)
    with tqdm(total=len(options.objectives) * (len(options.seeds) + fine_tunings), desc="runs") as progress:
        folders = {}
        for seed in options.seeds:
            for objective in options.objectives:
                progress.set_postfix_str(f"{objective}, seed {seed}")
                pretrained[objective, seed], folders[objective, seed] = pretrain(objective, seed, options)
                progress.update()

        def tuned(objective: str, task: str, rate: float, seed: int) -> dict:
            progress.set_postfix_str(f"{objective}, {task}, {rate:g}, seed {seed}")
            result = fine_tune(folders[objective, seed], f"{objective}-{seed}", task, rate, seed, options)
            progress.update()
            return result

        for task in options.tasks:
            for objective in options.objectives:
                first = {rate: tuned(objective, task, rate, options.seeds[0]) for rate in options.fine_tuning_rates}
                rate = max(first, key=lambda rate: first[rate]["eval"][f"eval_{GLUE[task]}"])
                results = [first[rate], *(tuned(objective, task, rate, seed) for seed in options.seeds[1:])]
                fine_tuned[task, objective] = (rate, results)
    about = (
        f"Seeds {', '.join(map(str, options.seeds))}; mean ± standard deviation over them. A new BERT "
        f"({options.config_overrides}), {options.vocab_size} tokens, {options.steps} steps of "
        f"{options.batch_size} blocks of {options.max_seq_length}. Measured on {HELD_OUT_SHARE:.0%} of the texts, "
        f"held out, and on STS-B dev. torch {torch.__version__}, {'bf16 autocast' if options.bf16 else 'float32'}, "
        f"{torch.get_num_threads()} threads. Dev chose epoch and learning rate of the fine-tuning: optimistic."
    )
    report(options.output_dir, about, rows_of(pretrained, fine_tuned, timings, options))


if __name__ == "__main__":
    main()
