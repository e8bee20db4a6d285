"""Adds the scores of `run_evaluation.py` to the card of the model that it measured."""

import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard
from safetensors import safe_open

from ..common.card_facts import COUNTS
from ..common.errors import InputError, one_line
from ..evaluation.sts import STS_DATASETS
from ..evaluation.transfer_tasks import TRANSFER_TASKS
from .card_metadata import PERCENT, eval_result
from .card_peers import Peer, peers_on
from .card_tables import markdown_table, score
from .folders import write_text


CARD_FILE = "README.md"
# The groups of an evaluation.json: task on the Hub, metric of the first sentence, and what one of its sets is called.
GROUPS = {
    "sts": ("semantic-similarity", "spearman", "STS set"),
    "pairs": ("binary-classification", "average_precision", "pair set"),
    "retrieval": ("information-retrieval", "ndcg@10", "retrieval set"),
    "transfer": ("text-classification", "accuracy", "transfer task"),
}
# Dataset, configuration and split on the Hub of the sets that have a name in `run_evaluation.py`. Transfer tasks join
# their splits.
BUILT_IN = {("sts", name): (dataset, None, "test") for name, dataset in STS_DATASETS.items()} | {
    ("transfer", name): (task.repository, task.configuration, None) for name, task in TRANSFER_TASKS.items()
}
# A comment holds all scores with their full digits, so that a later evaluation can add to them.
SECTION = re.compile(r"<!-- evaluation: (?P<scores>.*) -->\n.*?<!-- end of evaluation -->\n\n?", re.DOTALL)
NEXT_SECTION = re.compile(r"^## (Hidden states|Intended use|Limits)$", re.MULTILINE)
HEADLINE = re.compile(r"^.*(?=<!-- headline -->$)", re.MULTILINE)
LIMIT = re.compile(r"^- The model was (not )?evaluated.*$", re.MULTILINE)


def check_card(folder: str | Path) -> None:
    """Raise an `InputError` if the folder has no card, or one whose metadata cannot be read."""
    _read(Path(folder))


def update_model_card(folder: str | Path, results: Mapping[str, Any], built_in: Collection[str] = ()) -> Path:
    """
    Add scores to the table, the first sentence and the metadata of the card `README.md` in `folder`; return its path.

    A set that the card has already gets its new scores, other sets of an earlier call stay. The scores of the training
    run on its development data stay, too. A card that another tool wrote gets a section at its end.

    Args:
        folder: the folder of the model that was measured.
        results: the result of `run_evaluation.py`, as in `evaluation.json`.
        built_in: the names of those STS sets and transfer tasks that were loaded from the Hub by their built-in name.

    Raises:
        InputError: there is no card in the folder, or its metadata cannot be read.
    """
    folder = Path(folder)
    card = _read(folder)
    measured = {group: _finite(results.get(group, {})) for group in GROUPS}
    old = SECTION.search(card.text)
    known = json.loads(old["scores"]) if old else {}
    scores = {group: {**known.get(group, {}), **measured[group]} for group in GROUPS}

    added = [
        result
        for group, sets in measured.items()
        for name, values in sets.items()
        for result in _eval_results(group, name, values, BUILT_IN.get((group, name)) if name in built_in else None)
    ]
    new = {(GROUPS[group][0], name) for group, sets in measured.items() for name in sets}
    # An earlier evaluation may have loaded a set from the Hub, and this one from a file.
    new |= {
        (GROUPS[group][0], dataset) for (group, name), (dataset, *_) in BUILT_IN.items() if name in measured[group]
    }
    kept = [result for result in card.data.eval_results or () if (result.task_type, result.dataset_name) not in new]
    card.data.eval_results = [*kept, *added]
    card.data.model_name = card.data.model_name or folder.resolve().name

    section = _section(scores, results, _parameters(folder))
    text = SECTION.sub("", card.text)
    following = NEXT_SECTION.search(text)
    start = following.start() if following else len(text)
    before = text[:start] if following else f"{text.rstrip()}\n\n"
    text = f"{before}{section}{text[start:]}"
    text = HEADLINE.sub(lambda _: f"**{_first_sentence(scores)}** ", text)
    card.text = LIMIT.sub(
        "- The model was evaluated on the data above only: on no other task and no other domain.", text
    )
    return write_text(folder / CARD_FILE, f"{str(card).rstrip()}\n")


def _read(folder: Path) -> ModelCard:
    path = folder / CARD_FILE
    if not path.is_file():
        raise InputError(f"{folder}: has no {CARD_FILE}, so there is no model card to add scores to")
    try:
        return ModelCard(path.read_text(encoding="utf-8"))
    except Exception as error:  # YAML that is none, or metadata of another form
        raise InputError(f"{path}: its metadata cannot be read ({one_line(error)})") from error


def _finite(sets: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """The metrics that are x 100 and the counts of each set."""
    return {
        name: {
            metric: value
            for metric, value in values.items()
            if metric in (*PERCENT, *COUNTS) and isinstance(value, (int, float)) and math.isfinite(value)
        }
        for name, values in sets.items()
    }


def _eval_results(
    group: str, name: str, values: Mapping[str, float], hub_parts: tuple[str, str | None, str | None] | None
) -> list[EvalResult]:
    task, (on_hub, config, split) = GROUPS[group][0], hub_parts or (None, None, None)
    return [
        eval_result(task, metric, value, name, on_hub=on_hub, config=config, split=split)
        for metric, value in values.items()
        if metric in PERCENT
    ]


def _first_sentence(scores: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """The mean of the main metric of each group, `Spearman 82.03 on the STS set stsb.` for example."""
    parts = []
    for group, (_, metric, kind) in GROUPS.items():
        values = {name: each[metric] for name, each in scores[group].items() if metric in each}
        if values:
            sets = f"the {kind} `{next(iter(values))}`" if len(values) == 1 else f"average over {len(values)} {kind}s"
            parts.append(f"{PERCENT[metric][1]} {sum(values.values()) / len(values):.2f} on {sets}")
    return f"{', '.join(parts)}." if parts else "Not evaluated."


def _section(scores: Mapping[str, Mapping[str, Any]], results: Mapping[str, Any], parameters: int | None) -> str:
    # A name of a set must not end the comment.
    hidden = json.dumps(scores).replace(">", "\\u003e")
    versions = ", ".join(f"{package} {number}" for package, number in results.get("versions", {}).items())
    prompts = ", ".join(f"`{text}` ({kind})" for kind, text in results.get("prompts", {}).items())
    blocks = [
        f"<!-- evaluation: {hidden} -->",
        "## Evaluation",
        "Measured with `run_evaluation.py`. Scores x 100, by the cosine of two embeddings; the `accuracy` of transfer "
        "tasks is that of a linear classifier on the embeddings.",
        *([f"Prompts before each text: {prompts}."] if prompts else []),
        *(_group_table(group, sets) for group, sets in scores.items() if sets),
    ]
    names, peers = peers_on(scores["sts"], parameters) if parameters else ([], [])
    if peers:
        blocks += [
            "Spearman on the same test sets, of this model and of others of its size:",
            _peers_table(scores["sts"], names, peers, parameters),
        ]
    if versions:
        blocks.append(f"Last measured on {results['date'][:10]}. Versions: {versions}.")
    return "\n\n".join([*blocks, "<!-- end of evaluation -->\n\n"])


def _group_table(group: str, sets: Mapping[str, Mapping[str, float]]) -> str:
    metrics = list(dict.fromkeys(metric for values in sets.values() for metric in values))
    metrics.sort(key=lambda metric: metric in COUNTS)
    rows = [[name, *(_cell(metric, values.get(metric)) for metric in metrics)] for name, values in sets.items()]
    main = GROUPS[group][1]
    if len(sets) > 1 and all(main in values for values in sets.values()):
        mean = sum(values[main] for values in sets.values()) / len(sets)
        rows.append(["average", *(_cell(main, mean) if metric == main else "" for metric in metrics)])
    return markdown_table([[{"sts": "STS"}.get(group, group), *metrics], *rows])


def _cell(metric: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,}" if metric in COUNTS else score(metric, value)


def _peers_table(
    sts: Mapping[str, Mapping[str, float]], names: Sequence[str], peers: Sequence[Peer], parameters: int
) -> str:
    def row(name, size, values, source):
        return [
            name,
            f"{size / 1e6:.1f} M",
            *(f"{values[each]:.2f}" if each in values else "" for each in names),
            source,
        ]

    own = {name: sts[name]["spearman"] for name in names if "spearman" in sts[name]}
    rows = [row("**this model**", parameters, own, "see above")]
    rows += [row(peer.name, peer.parameters, peer.scores, peer.source) for peer in peers]
    return markdown_table([["model", "parameters", *names, "source"], *rows])


def _parameters(folder: Path) -> int | None:
    """The number of weights in the folder, or None if they are not in safetensors."""
    count = 0
    for path in folder.glob("model*.safetensors"):
        with safe_open(path, "pt") as weights:
            count += sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118
    return count or None
