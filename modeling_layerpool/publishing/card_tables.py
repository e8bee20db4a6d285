"""The tables and scores of a card, in Markdown."""

from collections.abc import Iterable, Mapping

from tabulate import tabulate

from ..common.card_facts import COUNTS, CardFacts, Evaluations
from .card_metadata import PERCENT, metric_of


MAX_RESULT_ROWS = 10


def facts_table(rows: Mapping[str, str]) -> str:
    return markdown_table([["", "of this model"], *rows.items()])


def results_table(evaluations: Evaluations, kept_step: int, best_step: int | None) -> str:
    """The evaluations by step. Of many, evenly spread ones are shown, with the kept, the best and the last one."""
    if not evaluations:
        return ""
    steps = sorted(evaluations)
    shown = {step for step in (kept_step, best_step, steps[-1]) if step in evaluations}
    others = [step for step in steps if step not in shown]
    free = MAX_RESULT_ROWS - len(shown)
    shown |= {others[index * len(others) // free] for index in range(free)} if len(others) > free else {*others}
    names = list(dict.fromkeys(name for step in steps for name in evaluations[step] if name not in COUNTS))
    rows = [
        [f"**{step}** (kept)" if step == kept_step else f"{step}"]
        + [score(name, evaluations[step].get(name)) for name in names]
        for step in sorted(shown)
    ]
    table = markdown_table([["step", *names], *rows])
    return table if len(shown) == len(steps) else f"{table}\n\n{len(shown)} of {len(steps)} evaluations are shown."


def score_table(scores: Mapping[str, float]) -> str:
    names = [name for name in scores if name not in COUNTS]
    return markdown_table([names, [score(name, scores[name]) for name in names]]) if names else ""


def percent_metrics(measured: Iterable[Mapping[str, float]]) -> str:
    """The names of those metrics that are x 100."""
    names = {metric_of(name) for scores in measured for name in scores}
    return ", ".join(f"`{name}`" for name in PERCENT if name in names)


def headline(facts: CardFacts, kept_scores: Mapping[str, float], validation: str, test: str) -> str:
    """
    The score that matters most, in one sentence: that of the test data, else that of the kept step.

    Args:
        kept_scores: the scores of the kept step on the development data.
        validation, test: the data of both, with their sizes.
    """
    part, scores, data = "test", facts.test_scores, test
    if not scores:
        part, scores, data = "development", kept_scores, validation
    names = [name for name in scores if name not in COUNTS]
    if not names:
        return "Not evaluated: the quality of this model is unknown."
    name = facts.metric if facts.metric in names else names[0]
    title = PERCENT[name][1] if name in PERCENT else f"`{name}`"
    chosen = ", on which the checkpoint was chosen" if facts.is_best_kept and part == "development" else ""
    return f"{title} {score(name, scores[name])} on the {part} data: {data}{chosen}."


def size(scores: Mapping[str, float]) -> str:
    """How much was measured, to follow the name of the data."""
    return "".join(f", {int(scores[name]):,} {name}" for name in COUNTS if name in scores)


def score(name: str, value: float | None) -> str:
    if value is None:
        return "undefined"
    return f"{value:.2f}" if metric_of(name) in PERCENT else f"{value:.4g}"


def markdown_table(rows: list) -> str:
    header, *body = [[str(cell).replace("|", r"\|") for cell in row] for row in rows]
    return tabulate(body, header, tablefmt="github", disable_numparse=True)
