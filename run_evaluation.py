#!/usr/bin/env python
"""Measure a sentence encoder: semantic similarity, retrieval, transfer tasks and the geometry of its space.

    python run_evaluation.py --model_name_or_path M --sts stsb=test.jsonl --retrieval scifact=folder --output_dir D

prints a table and writes `D/evaluation.json`, and with --plots also pictures in `D/plots`. M is a model of this
package, a sentence-transformers model, or any other encoder of transformers. See docs/evaluation.md and docs/plots.md.
"""

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from modeling_layerpool.common.columns import COLUMNS, SCORED_PAIR_COLUMNS, ColumnNames
from modeling_layerpool.common.command_line import Range, check_arguments, read_arguments
from modeling_layerpool.common.errors import InputError, usage_errors
from modeling_layerpool.common.folders import output_folder
from modeling_layerpool.common.rows import read_json
from modeling_layerpool.evaluation import (
    STS_DATASETS,
    TRANSFER_TASKS,
    CachingEncoder,
    ShardedEncoder,
    evaluate_geometry,
    evaluate_pairs,
    evaluate_retrieval,
    evaluate_sts,
    format_results,
    is_main_process,
    join_processes,
    load_encoder,
    load_states_encoder,
    load_sts,
    load_transfer_task,
    positive_pairs,
    read_pairs_file,
    read_retrieval_folder,
    read_sts_file,
    read_transfer_task,
    relevant_pairs,
    run_metadata,
    single_state_accuracies,
    transfer_accuracy,
    transfer_features,
    write_results,
)
from modeling_layerpool.evaluation.encoders import prompts_in_use, query_and_document_encoders
from modeling_layerpool.evaluation.report import results_folder
from modeling_layerpool.evaluation.transfer import FEATURES


SUBSET_COLUMN = "subset"
# What --columns can name. The files of --retrieval have the columns of BEIR.
COLUMN_NAMES = ("sentence", "text", *SCORED_PAIR_COLUMNS)


@dataclass
class EvaluationArguments:
    """The model, the data sets, and the folder for the results."""

    RANGES: ClassVar = dict.fromkeys(("max_seq_length", "max_tokens_per_batch"), Range(at_least=1))

    model_name_or_path: str = field(metadata={"help": "Model to measure: a folder or a Hub model ID."})
    output_dir: str = field(metadata={"help": "Folder for evaluation.json; created if needed."})
    revision: str = field(default="main", metadata={"help": "Branch, tag or commit of a Hub model."})
    sts: list[str] = field(
        default_factory=list,
        metadata={
            "action": "extend",
            "help": "STS sets as NAME=FILE ...: jsonl, csv, tsv or parquet with sentence1, sentence2, score. The "
            f"name alone means a built-in set from the Hub: {', '.join(STS_DATASETS)}.",
        },
    )
    sts_subset_column: str = field(
        default=SUBSET_COLUMN,
        metadata={
            "help": "Column of the --sts sets that names the subset of a pair. Sets with this column also report the "
            "mean over the subsets. Empty: no subsets."
        },
    )
    pairs: list[str] = field(
        default_factory=list,
        metadata={
            "action": "extend",
            "help": "Pairs as NAME=FILE ...: jsonl, csv, tsv or parquet with sentence1, sentence2, and score or "
            "label (0 or 1).",
        },
    )
    pairs_dev: list[str] = field(
        default_factory=list,
        metadata={
            "action": "extend",
            "help": "Labeled pairs as NAME=FILE ... that choose the thresholds of the --pairs with the same name.",
        },
    )
    retrieval: list[str] = field(
        default_factory=list,
        metadata={
            "action": "extend",
            "help": "Retrieval sets as NAME=FOLDER ... in BEIR's layout: corpus.jsonl[.gz], queries.jsonl[.gz], and "
            "qrels_test.tsv or qrels/test.tsv.",
        },
    )
    transfer: list[str] = field(
        default_factory=list,
        metadata={
            "action": "extend",
            "help": "Transfer tasks as NAME=FILE (10 folds) or NAME=FOLDER (train, test, perhaps dev) ...: the "
            "accuracy of a classifier on frozen features. Columns: sentence, or sentence1 and sentence2; label. The "
            f"name alone means a built-in task from the Hub: {', '.join(TRANSFER_TASKS)}.",
        },
    )
    columns: list[str] = field(default_factory=list, metadata=COLUMNS)
    features: str = field(
        default="pooled",
        metadata={
            "choices": FEATURES,
            "help": "Features of --transfer: pooled is the embedding, with logistic regression; states is the "
            "token mean of every hidden state, with kernel ridge regression.",
        },
    )
    max_seq_length: int | None = field(
        default=None, metadata={"help": "Maximum number of tokens of a text. Default: that of the saved tokenizer."}
    )
    pooling: str | None = field(
        default=None,
        metadata={"help": "Pooling of the last hidden state, mean or cls. Default: the model's own, otherwise mean."},
    )
    max_tokens_per_batch: int = field(
        default=8192, metadata={"help": "Number of tokens computed at once. Lower it if memory runs out."}
    )
    device: str | None = field(
        default=None, metadata={"help": "Device, such as cpu or cuda:1. Default: the GPU if there is one."}
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that comes with the checkpoint."})
    allow_pickle: bool = field(default=False, metadata={"help": "Also load pickled weights, which can run code."})
    plots: bool = field(
        default=False, metadata={"help": "Write plots into plots/ in the --output_dir. Needs the extra 'plots'."}
    )
    compare: list[str] = field(
        default_factory=list,
        metadata={
            "action": "extend",
            "help": "Other models as NAME=FILE ..., each with its evaluation.json, for the --plots of alignment and "
            "uniformity.",
        },
    )

    def __post_init__(self) -> None:
        check_arguments(self)
        self.column_names = ColumnNames.parse(self.columns, COLUMN_NAMES)


def read_sets(flag: str, values: list[str], read: Callable, built_in: Callable | None = None) -> dict[str, Any]:
    """Read every `NAME=PATH` (or built-in `NAME`) of a flag: `{name: data}`, in the given order."""
    sets: dict[str, Any] = {}
    for value in values:
        name, equals, path = value.partition("=")
        if not name or (equals and not path) or (not equals and built_in is None):
            raise InputError(f"{flag} {value}: expected NAME=PATH")
        if name in sets:
            raise InputError(f"{flag}: the name {name!r} is given twice")
        sets[name] = read(path) if equals else built_in(name)
    return sets


def read_geometry(path: str) -> dict[str, float]:
    """Alignment and uniformity from the `evaluation.json` of another model."""
    content = read_json(path)
    try:
        geometry = {name: float(content["geometry"][name]) for name in ("alignment", "uniformity")}
        if all(map(math.isfinite, geometry.values())):
            return geometry
    except (ValueError, TypeError, LookupError, OverflowError):
        pass
    raise InputError(f"--compare {path}: no evaluation.json with alignment and uniformity")


def run(arguments: EvaluationArguments) -> dict[str, Any]:
    """Evaluate, write `evaluation.json` and return its content. All data is read before the model is loaded."""
    join_processes()
    with ExitStack() as folders:
        if is_main_process():
            folders.enter_context(results_folder(arguments.output_dir))
            if arguments.plots:
                folders.enter_context(output_folder(Path(arguments.output_dir, "plots")))
        return measure(arguments)


def measure(arguments: EvaluationArguments) -> dict[str, Any]:
    """[`run`] with an existing output folder."""
    if not (arguments.sts or arguments.pairs or arguments.retrieval or arguments.transfer):
        raise InputError("nothing to evaluate: give --sts, --pairs, --retrieval or --transfer")
    if arguments.features != FEATURES[0] and not arguments.transfer:
        raise InputError(f"--features {arguments.features} does nothing without --transfer")
    if arguments.compare and not arguments.plots:
        raise InputError("--compare does nothing without --plots")
    plots = None
    if arguments.plots:
        from modeling_layerpool.publishing import EvaluationPlots

        plots = EvaluationPlots(read_sets("--compare", arguments.compare, read_geometry))
    column = arguments.sts_subset_column
    names = arguments.column_names
    read_sts = partial(read_sts_file, subset_column=column, columns=names)
    sts = read_sets("--sts", arguments.sts, read_sts, partial(load_sts, subset_column=column))
    if column not in ("", SUBSET_COLUMN) and all(subsets is None for *_, subsets in sts.values()):
        raise InputError(f"--sts_subset_column {column}: no --sts set has this column")
    read_pairs = partial(read_pairs_file, columns=names)
    pairs = read_sets("--pairs", arguments.pairs, read_pairs)
    pairs_dev = read_sets("--pairs_dev", arguments.pairs_dev, read_pairs)
    for name, dev in pairs_dev.items():
        if name not in pairs:
            raise InputError(f"--pairs_dev {name}: there is no --pairs of this name")
        if not (dev.are_labels and pairs[name].are_labels):
            raise InputError(f"--pairs_dev {name}: thresholds need labels, and one of the two files has scores")
    retrieval = read_sets("--retrieval", arguments.retrieval, read_retrieval_folder)
    read_task = partial(read_transfer_task, columns=names)
    transfer = read_sets("--transfer", arguments.transfer, read_task, load_transfer_task)
    names.check_seen()

    options = ("revision", "max_seq_length", "max_tokens_per_batch", "device", "allow_pickle")
    loading = {option: getattr(arguments, option) for option in options}
    loaded = load_encoder(
        arguments.model_name_or_path,
        pooling=arguments.pooling,
        trust_remote_code=arguments.trust_remote_code,
        **loading,
    )
    encoder = ShardedEncoder(loaded)
    prompts = prompts_in_use(loaded, sentences=bool(sts or pairs or transfer), retrieval=bool(retrieval))
    of_sentences, of_documents = prompts.get("sentences", ""), prompts.get("documents", "")
    of_states = None
    if arguments.features == "states":
        of_states = load_states_encoder(arguments.model_name_or_path, prompt=of_sentences, **loading)
    results: dict[str, Any] = {"sts": {}, "retrieval": {}, "geometry": {}}
    for name, (sentences1, sentences2, scores, subsets) in sts.items():
        remembered = CachingEncoder(encoder)
        results["sts"][name] = evaluate_sts(remembered, sentences1, sentences2, scores, subsets)
        if plots:
            plots.note_similarities(name, remembered, sentences1, sentences2, scores)
            plots.note_texts(name, [*sentences1, *sentences2], remembered, prompt=of_sentences)
        if not results["geometry"]:
            positives = positive_pairs(sentences1, sentences2, scores)
            results["geometry"] = evaluate_geometry(remembered, *positives, [*sentences1, *sentences2])
    for name, labeled in pairs.items():
        results.setdefault("pairs", {})[name] = evaluate_pairs(encoder, labeled, pairs_dev.get(name))
        if plots:
            plots.note_texts(name, [*labeled.sentences1, *labeled.sentences2], prompt=of_sentences)
    for name, (corpus, queries, qrels) in retrieval.items():
        remembered = CachingEncoder(encoder)
        results["retrieval"][name] = evaluate_retrieval(remembered, corpus, queries, qrels)
        query_encoder, document_encoder = query_and_document_encoders(remembered)
        texts = list(corpus.values())
        if plots:
            plots.note_texts(name, texts, document_encoder, prompt=of_documents)
        if not results["geometry"]:
            positives = relevant_pairs(corpus, queries, qrels)
            results["geometry"] = evaluate_geometry(document_encoder, *positives, texts, query_encoder=query_encoder)
    if transfer:
        states = of_states and of_states.states
        results["transfer"] = measure_transfer(transfer, ShardedEncoder(of_states or loaded), states, plots)
        for name, task in transfer.items():
            if plots:
                plots.note_texts(name, [*task.first, *(task.second or ())], prompt=of_sentences)
    if prompts:
        results["prompts"] = prompts
    results |= run_metadata(arguments.model_name_or_path, arguments.revision)
    if is_main_process():
        write_results(results, arguments.output_dir)
        if plots:
            plots.write(Path(arguments.output_dir, "plots"), loaded, results["geometry"])
    return results


def measure_transfer(tasks: dict[str, Any], encoder: Any, states: int | None, plots: Any) -> dict[str, Any]:
    """The accuracy of each transfer task. Only the main process fits classifiers; the others return no tasks."""
    results = {}
    for name, task in tasks.items():
        features = transfer_features(CachingEncoder(encoder), task, states)
        if is_main_process():
            options = {"name": name, "show_progress_bar": True}
            results[name] = transfer_accuracy(features, task, **options)
            if plots and states is not None:
                single = single_state_accuracies(features, task, **options)
                plots.note_transfer(name, single | {"all states": results[name]["accuracy"]})
    return results


def main() -> None:
    with usage_errors():
        (arguments,) = read_arguments(EvaluationArguments, description=__doc__)
        results = run(arguments)
        if is_main_process():
            print(format_results(results))


if __name__ == "__main__":
    main()
