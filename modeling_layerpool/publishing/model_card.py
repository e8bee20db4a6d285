"""The model card of a training run, written from the facts that its trainer returns and nothing else."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard
from transformers import Trainer

from ..common.card_facts import CardFacts, package_versions
from .card_examples import printed_by_example
from .card_metadata import eval_results, metadata, scores_of_set
from .card_names import base_link, clean_command, data_source, name_of, source
from .card_pictures import draw, draw_curves, draw_layers
from .card_scores import CARD_FILE
from .card_tables import facts_table, headline, percent_metrics, results_table, score_table, size
from .folders import write_text


LAYERS_PICTURE = "layer_weights.png"
CURVES_PICTURE = "learning_curves.png"
TEMPLATE = Path(__file__).with_name("model_card_template.md")
LANGUAGE_MODEL_TEMPLATE = Path(__file__).with_name("language_model_card_template.md")

LORA_CITATION = """@inproceedings{hu2022lora,
  title = {{LoRA}: Low-Rank Adaptation of Large Language Models},
  author = {Hu, Edward J. and Shen, Yelong and Wallis, Phillip and Allen-Zhu, Zeyuan and Li, Yuanzhi and Wang, Shean
            and Wang, Lu and Chen, Weizhu},
  booktitle = {ICLR},
  year = {2022}
}"""


def write_model_card(
    trainer: Trainer,
    *,
    base_model: str,
    train_data: str | Sequence[tuple[str, Mapping[str, str]]],
    validation_data: str | Mapping[str, tuple[str, Mapping[str, str]]] | None,
    test_data: str | None = None,
    hub_parts: Mapping[str, str] | None = None,
    text_columns: Sequence[str] = (),
    adapter: Mapping[str, str] | None = None,
    encoders: Mapping[str, Sequence[str]] | None = None,
    command: str,
) -> Path:
    """
    Write `README.md` into `trainer.args.output_dir`, in one step, and return its path.

    The card names files and folders by their names, never by their paths on this machine. With matplotlib (the extra
    `plots`) it may show two pictures: `learning_curves.png`, if the run was evaluated at least twice; and
    `layer_weights.png`, if the pooler learned to weigh hidden states and the development data are on this machine. The
    latter is not drawn under FSDP and DeepSpeed, which spread the model over processes.

    Args:
        trainer: a `ContrastiveTrainer` or a `ClassificationTrainer`, after its training.
        base_model: the checkpoint that the training started from, a folder or a name on the Hub.
        train_data: the training data, a file or a name on the Hub; or several, each with its own `hub_parts`.
        validation_data: the development data, a file, a folder or a name on the Hub, or None if there was none; or
            several sets by name, each with its own `hub_parts`, whose metrics are called `<name>_<metric>`.
        test_data: the data of the metrics that the trainer has logged as `test_<name>`, if there are any.
        hub_parts: for data on the Hub, the configuration (`"config"`, if any) and the splits (`"train"`,
            `"validation"`, `"test"`) that were used.
        text_columns: for a classifier, the columns of the one or two texts of a row.
        adapter: for a run with LoRA, the result of `lora_settings`, called before the adapter is merged.
        encoders: folders or Hub names of other encoders that the run learned from, by what they were: `"teacher"` or
            `"guide"`.
        command: the command line of the run. The card leaves out its tokens and paths outside the working folder.
    """
    facts = trainer.card_facts()
    folder, parts, is_pair = Path(facts.output_dir), hub_parts or {}, len(text_columns) == 2
    kept_scores = facts.evaluations.get(facts.kept_step, {})
    sets = validation_data if isinstance(validation_data, Mapping) else {"": (validation_data, parts)}
    first_data = next(data for data, _ in sets.values())
    of_sets = {name: kept_scores if len(sets) == 1 else scores_of_set(name, kept_scores) for name in sets}
    validation = "; ".join(
        (f"{name}: " if len(sets) > 1 else "") + data_source(data, "validation", own_parts)
        for name, (data, own_parts) in sets.items()
    )
    validation_size = size(kept_scores or next(iter(facts.evaluations.values()), {}))
    test, test_size = data_source(test_data, "test", parts), size(facts.test_scores)
    texts = {"texts of a row": f"column {' and '.join(text_columns)}"} if facts.labels else {}
    others = {group: ", ".join(map(source, names)) for group, names in (encoders or {}).items()}
    return _write(
        facts,
        TEMPLATE,
        base_model=base_model,
        train_data=[(train_data, parts)] if isinstance(train_data, str) else train_data,
        results=[
            *(
                result
                for name, (data, own_parts) in sets.items()
                for result in eval_results(facts, data, "validation", own_parts, of_sets[name])
            ),
            *eval_results(facts, test_data, "test", parts, facts.test_scores),
        ],
        model={"base model": source(base_model)} | facts.model,
        settings=texts | facts.settings | others | dict(adapter or {}),
        command=command,
        token=trainer.args.hub_token,
        versions=facts.versions | (package_versions(["peft"]) if adapter else {}),
        citations=[*facts.citations, *([LORA_CITATION] if adapter else [])],
        is_pair=is_pair,
        is_adapted=bool(adapter),
        duration=_duration(facts),
        headline=headline(facts, kept_scores, f"{validation}{validation_size}", f"{test}{test_size}"),
        printed=printed_by_example(facts, trainer.model, trainer.processing_class, is_pair),
        validation_data=validation,
        validation_size=validation_size,
        has_loss=any("loss" in scores for scores in facts.evaluations.values()),
        curves=draw(folder / CURVES_PICTURE, draw_curves, facts),
        curves_picture=CURVES_PICTURE,
        layers=draw(
            folder / LAYERS_PICTURE,
            draw_layers,
            facts,
            trainer.model,
            trainer.processing_class,
            first_data,
            text_columns,
        ),
        layers_picture=LAYERS_PICTURE,
        added_to=_added_to(facts),
        test_data=test,
        test_size=test_size,
        test_table=score_table(facts.test_scores),
    )


def write_language_model_card(
    trainer: Trainer,
    *,
    base_model: str | None,
    train_data: Sequence[str],
    validation_data: Sequence[str],
    hub_parts: Mapping[str, str] | None = None,
    command: str,
) -> Path:
    """
    Write the card of a masked language model into `trainer.args.output_dir`, in one step, and return its path.

    Args:
        trainer: a `MaskedLanguageTrainer`, after its training.
        base_model: the checkpoint that the training started from, a folder or a name on the Hub, or None for a new
            model.
        train_data: the files of the training texts, or a name on the Hub.
        validation_data: the files of validation texts and probe, if there were any.
        hub_parts, command: as in [`write_model_card`].
    """
    facts = trainer.card_facts()
    start = "random weights" if base_model is None else source(base_model)
    validation = ", ".join(source(data) for data in validation_data)
    return _write(
        facts,
        LANGUAGE_MODEL_TEMPLATE,
        base_model=base_model,
        train_data=[(data, hub_parts or {}) for data in train_data],
        results=[],
        model={"architecture": f"`{facts.architecture}`", "started from": start} | facts.model,
        settings=facts.settings,
        command=command,
        token=trainer.args.hub_token,
        versions=facts.versions,
        citations=facts.citations,
        headline=headline(facts, facts.evaluations.get(facts.kept_step, {}), validation, ""),
        printed=printed_by_example(facts, trainer.model, trainer.processing_class),
        validation_data=validation,
    )


def _write(
    facts: CardFacts,
    template: Path,
    *,
    base_model: str | None,
    train_data: Sequence[tuple[str, Mapping[str, str]]],
    results: Sequence[EvalResult],
    model: Mapping[str, str],
    settings: Mapping[str, str],
    command: str,
    token: str | None,
    versions: Mapping[str, str],
    **details: Any,
) -> Path:
    name = facts.hub_model_id or name_of(facts.output_dir)
    cleaned = clean_command(command, token)
    card = ModelCard.from_template(
        metadata(facts, name, base_model, list(dict(train_data)), results),
        template_path=str(template),
        facts=facts,
        name=name,
        location=json.dumps(name, ensure_ascii=False),
        base=None if base_model is None else base_link(base_model),
        model_table=facts_table(model),
        train_data="; ".join(data_source(data, "train", parts) for data, parts in train_data),
        settings_table=facts_table({**settings, **facts.schedule}),
        command=cleaned,
        command_was_changed=cleaned != command,
        versions=", ".join(f"{package} {number}" for package, number in versions.items()),
        percent=percent_metrics([*facts.evaluations.values(), facts.test_scores]),
        results_table=results_table(facts.evaluations, facts.kept_step, facts.best_step),
        selection=_selection(facts),
        **details,
    )
    return write_text(Path(facts.output_dir) / CARD_FILE, f"{card}\n")


def _duration(facts: CardFacts) -> str:
    """How long the training took; nothing if it is not over."""
    if facts.seconds is None:
        return ""
    minutes, rest = divmod(round(facts.seconds), 60)
    hours, minutes = divmod(minutes, 60)
    time = f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
    trained = "The part of the training since it was resumed" if facts.was_resumed else "The training"
    return f"{trained} took {time}, including evaluation and saving, on {facts.device}."


def _selection(facts: CardFacts) -> str:
    """Why the weights are those of the kept step."""
    if facts.is_best_kept:
        return (
            f"The checkpoint of step {facts.kept_step} was kept because it has the best `{facts.metric}` of those "
            "saved. It was chosen on this data, so its score here is optimistic: evaluate the model on other data."
        )
    last = f"The weights are those of the last step, {facts.kept_step}"
    if facts.kept_step in facts.evaluations:
        return f"{last}; they were not chosen by these scores."
    return f"{last}, which was not evaluated."


def _added_to(facts: CardFacts) -> str | None:
    """The vector that weights of each text leave out; weights that all texts share include it."""
    names = {"mean": "the mean of the last state", "cls": "the first token of the last state"}
    return names.get(facts.pooler_residual) if facts.pooler_weighting == "per_text" else None
